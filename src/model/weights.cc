#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "tensor/convert.h"

namespace tinyserve {
namespace {

constexpr uint32_t kPanelRowsMax = 64;
// Panels are packed in pieces of about this size, each a parallel region, so that source pages can
// be released and progress shown as loading goes on.
constexpr uint64_t kPieceBytes = 4 << 20;

}  // namespace

uint64_t Linear::bytes() const {
  uint64_t sum = 0;
  for (const Part& part : parts) sum += part.matrix.panels * part.matrix.panel_bytes;
  return sum;
}

const StoredTensor* WeightLoader::Require(const std::string& name, uint64_t rows, uint64_t cols) {
  const Result<const StoredTensor*> tensor = file_.RequireTensor(name, rows, cols);
  if (tensor.ok()) return *tensor;
  Fail(tensor.status());
  return nullptr;
}

void WeightLoader::AddPart(Linear* linear, const std::vector<const StoredTensor*>& sources,
                           uint32_t rows, uint32_t out_offset) {
  Linear::Part part{.matrix = {}, .out_offset = out_offset};
  kernels_->plan_matrix(sources[0]->type, compute_, rows, linear->cols, &part.matrix);
  TS_CHECK(part.matrix.panel_rows >= 1 && part.matrix.panel_rows <= kPanelRowsMax &&
           part.matrix.panel_bytes % 64 == 0);
  linear->act_kinds |= static_cast<uint8_t>(1u << static_cast<uint32_t>(part.matrix.acts));
  linear->parts.push_back(part);
  jobs_.push_back({.linear = linear,
                   .part = linear->parts.size() - 1,
                   .sources = sources,
                   .arena_offset = arena_bytes_});
  const Checked end =
      Checked(part.matrix.panels) * Checked(part.matrix.panel_bytes) + Checked(arena_bytes_);
  if (!end.valid())
    return Fail(Status(Code::kOutOfMemory, "the weights are larger than the address space"));
  arena_bytes_ = end.value();
}

void WeightLoader::AddLinear(const std::vector<std::string>& names,
                             const std::vector<uint32_t>& rows_of, uint32_t cols, Linear* out) {
  out->cols = cols;
  std::vector<const StoredTensor*> tensors;
  bool one_part = true;  // same type, and no panel would straddle two tensors
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor* tensor = Require(names[i], rows_of[i], cols);
    if (tensor == nullptr) return;
    tensors.push_back(tensor);
    PackedMatrix plan{};
    kernels_->plan_matrix(tensor->type, compute_, rows_of[i], cols, &plan);
    one_part = one_part && tensor->type == tensors[0]->type &&
               (i + 1 == names.size() || rows_of[i] % plan.panel_rows == 0);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (!one_part) AddPart(out, {tensors[i]}, rows_of[i], out->rows);
    out->rows += rows_of[i];
  }
  if (one_part) AddPart(out, tensors, out->rows, 0);
}

void WeightLoader::AddGated(const std::string& gate, const std::string& up, uint32_t rows,
                            uint32_t cols, Linear* out) {
  const StoredTensor* a = Require(gate, rows, cols);
  const StoredTensor* b = Require(up, rows, cols);
  if (a == nullptr || b == nullptr) return;
  PackedMatrix one{};
  kernels_->plan_matrix(a->type, compute_, rows, cols, &one);
  if (a->type != b->type || rows % one.panel_rows != 0)
    return AddLinear({gate, up}, {rows, rows}, cols, out);
  out->cols = cols;
  out->rows = 2 * rows;
  out->gated = true;
  AddPart(out, {a, b}, 2 * rows, 0);
}

void WeightLoader::AddBias(const std::vector<std::string>& names,
                           const std::vector<uint32_t>& rows_of, bool optional, Linear* out) {
  if (optional && !Has(names[0])) return;
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor* tensor = Require(names[i], 1, rows_of[i]);
    if (tensor == nullptr) return;
    out->bias.resize(out->bias.size() + rows_of[i]);
    ReadVector(*tensor, out->bias.data() + out->bias.size() - rows_of[i]);
  }
}

void WeightLoader::AddVector(const std::string& name, uint32_t size, std::vector<float>* out) {
  const StoredTensor* tensor = Require(name, 1, size);
  if (tensor == nullptr) return;
  out->resize(size);
  ReadVector(*tensor, out->data());
}

void WeightLoader::ReadVector(const StoredTensor& tensor, float* out) const {
  DequantizeRow(tensor.type, tensor.data, tensor.cols, out);
  file_.ReleasePages(tensor);
}

Status WeightLoader::Load(ThreadPool* threads, const std::function<void(double)>& progress,
                          Buffer* arena) {
  TS_RETURN_IF_ERROR(status_);
  TS_ASSIGN_OR_RETURN(*arena, Buffer::Allocate(arena_bytes_, /*huge=*/true));
  uint64_t done = 0;
  for (const Job& job : jobs_) {
    PackedMatrix& w = job.linear->parts[job.part].matrix;
    uint8_t* panels = arena->data() + job.arena_offset;
    w.data = panels;
    const uint32_t unit = job.linear->gated ? 2 : 1;
    const uint32_t piece =
        std::max<uint32_t>(unit, static_cast<uint32_t>(kPieceBytes / w.panel_bytes) / unit * unit);
    for (uint32_t begin = 0; begin < w.panels; begin += piece) {
      const uint32_t end = std::min(w.panels, begin + piece);
      threads->For(end - begin, [&](uint32_t i, uint32_t) { PackPanel(job, begin + i, panels); });
      done += (end - begin) * w.panel_bytes;
      if (progress) progress(static_cast<double>(done) / static_cast<double>(arena_bytes_));
      // A release is cheap beside a piece, and bounds how much of the file is resident at a time.
      for (const StoredTensor* source : job.sources) file_.ReleasePages(*source);
    }
  }
  return Status();
}

void WeightLoader::PackPanel(const Job& job, uint32_t panel, uint8_t* panels) const {
  const PackedMatrix& w = job.linear->parts[job.part].matrix;
  size_t source = 0;
  uint64_t first_row = static_cast<uint64_t>(panel) * w.panel_rows;
  if (job.linear->gated) {
    source = panel % 2;
    first_row = static_cast<uint64_t>(panel / 2) * w.panel_rows;
  } else {
    while (first_row >= job.sources[source]->rows) first_row -= job.sources[source++]->rows;
  }
  const StoredTensor& tensor = *job.sources[source];
  const uint64_t row_bytes = RowBytes(tensor.type, tensor.cols);
  const uint8_t* rows[kPanelRowsMax];
  for (uint32_t r = 0; r < w.panel_rows; ++r) {
    rows[r] = first_row + r < tensor.rows ? tensor.data + (first_row + r) * row_bytes : nullptr;
  }
  kernels_->pack_panel(&w, rows, panels + panel * w.panel_bytes);
}

}  // namespace tinyserve
