#include "device/device_loader.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"
#include "kernels/cuda/products.h"
#include "tensor/convert.h"

namespace tinyserve::cuda {
namespace {

constexpr uint64_t kAlign = 256;
// Rows are packed and copied in pieces of about this size.
constexpr uint64_t kPieceBytes = 16 << 20;

}  // namespace

// Pinned memory that rows are packed into on their way.
class DeviceLoader::Staging {
 public:
  static Result<Staging> Create(uint64_t bytes) {
    Staging s;
    TS_ASSIGN_OR_RETURN(s.memory_, PinnedMemory::Allocate(bytes));
    TS_ASSIGN_OR_RETURN(s.stream_, DeviceStream::Create());
    return Result<Staging>(std::move(s));
  }
  uint8_t* data() const { return memory_.as<uint8_t>(); }
  uint64_t size() const { return memory_.size(); }
  const DeviceStream& stream() const { return stream_; }

 private:
  Staging() = default;
  PinnedMemory memory_;
  DeviceStream stream_;
};

const StoredTensor* DeviceLoader::Require(const std::string& name, uint64_t rows, uint64_t cols) {
  const Result<const StoredTensor*> tensor = file_.RequireTensor(name, rows, cols);
  if (tensor.ok()) return *tensor;
  Fail(tensor.status());
  return nullptr;
}

uint64_t DeviceLoader::Place(uint64_t bytes) {
  const uint64_t at = arena_bytes_;
  const Checked end = (Checked(at) + Checked(bytes)).RoundUp(kAlign);
  if (!end.valid()) {
    Fail(Status(Code::kOutOfMemory, "the weights are larger than the address space"));
    return 0;
  }
  arena_bytes_ = end.value();
  return at;
}

void DeviceLoader::AddPart(DeviceLinear* linear, const std::vector<const StoredTensor*>& sources,
                           uint32_t rows) {
  const WeightPlan plan = PlanWeights(sources[0]->type, rows, linear->cols);
  linear->parts.push_back({.weights = {}, .out_offset = linear->rows});
  linear->rows += rows;
  (TakesCodedActs(plan.form) ? linear->takes_codes : linear->takes_floats) = true;
  matrices_.push_back({.linear = linear,
                       .part = linear->parts.size() - 1,
                       .sources = sources,
                       .plan = plan,
                       .codes_at = Place(plan.code_bytes),
                       .scales_at = Place(plan.scale_bytes)});
}

void DeviceLoader::AddLinear(const std::vector<std::string>& names,
                             const std::vector<uint32_t>& rows_of, uint32_t cols,
                             DeviceLinear* out) {
  out->cols = cols;
  std::vector<const StoredTensor*> tensors;
  uint32_t rows = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor* tensor = Require(names[i], rows_of[i], cols);
    if (tensor == nullptr) return;
    if (!tensors.empty() && tensor->type != tensors[0]->type) {
      AddPart(out, tensors, rows);
      tensors.clear();
      rows = 0;
    }
    tensors.push_back(tensor);
    rows += rows_of[i];
  }
  AddPart(out, tensors, rows);
}

void DeviceLoader::AddGated(const std::string& gate, const std::string& up, uint32_t rows,
                            uint32_t cols, DeviceLinear* out) {
  const StoredTensor *a = Require(gate, rows, cols), *b = Require(up, rows, cols);
  if (a == nullptr || b == nullptr) return;
  if (a->type != b->type) return AddLinear({gate, up}, {rows, rows}, cols, out);
  out->cols = cols;
  out->gated = true;
  AddPart(out, {a, b}, 2 * rows);
}

void DeviceLoader::AddBias(const std::vector<std::string>& names,
                           const std::vector<uint32_t>& rows_of, bool optional, DeviceLinear* out) {
  if (optional && !Has(names[0])) return;
  std::vector<float> values;
  for (size_t i = 0; i < names.size(); ++i) {
    const StoredTensor* tensor = Require(names[i], 1, rows_of[i]);
    if (tensor == nullptr) return;
    values.resize(values.size() + rows_of[i]);
    DequantizeRow(tensor->type, tensor->data, tensor->cols,
                  values.data() + values.size() - rows_of[i]);
  }
  AddValues(std::move(values), &out->bias);
}

void DeviceLoader::AddVector(const std::string& name, uint32_t size, Array<const float>* out,
                             std::vector<float>* of_host) {
  const StoredTensor* tensor = Require(name, 1, size);
  if (tensor == nullptr) return;
  std::vector<float> values(size);
  DequantizeRow(tensor->type, tensor->data, tensor->cols, values.data());
  if (of_host != nullptr) *of_host = values;
  AddValues(std::move(values), out);
}

void DeviceLoader::AddValues(std::vector<float> values, Array<const float>* out) {
  const uint64_t at = Place(values.size() * sizeof(float));
  vectors_.push_back({.out = out, .values = std::move(values), .at = at});
}

void DeviceLoader::PackRow(const Matrix& m, uint64_t row, uint8_t* codes, uint8_t* scales) const {
  size_t source = 0;
  uint64_t of_source = row;
  if (m.linear->gated) {
    source = row % 2;
    of_source = row / 2;
  } else {
    while (of_source >= m.sources[source]->rows) of_source -= m.sources[source++]->rows;
  }
  const StoredTensor& t = *m.sources[source];
  PackWeightRow(m.plan, t.type, m.linear->cols, t.data + of_source * RowBytes(t.type, t.cols),
                codes, scales);
}

Status DeviceLoader::LoadMatrix(const Matrix& m, ThreadPool* threads, const Staging& staging,
                                const std::function<void(uint64_t)>& done,
                                const DeviceMemory& arena) const {
  const uint64_t code_bytes = uint64_t{m.plan.row_lines} * kLineBytes;
  const uint64_t scale_bytes = m.plan.row_scales * sizeof(F16),
                 row_bytes = code_bytes + scale_bytes;
  const uint64_t piece = std::max<uint64_t>(1, staging.size() / row_bytes);
  for (uint64_t begin = 0; begin < m.plan.rows; begin += piece) {
    const auto rows = static_cast<uint32_t>(std::min<uint64_t>(piece, m.plan.rows - begin));
    uint8_t *codes = staging.data(), *scales = codes + rows * code_bytes;
    threads->For(rows, [&](uint32_t r, uint32_t) {
      PackRow(m, begin + r, codes + r * code_bytes, scales + r * scale_bytes);
    });
    const DeviceStream& stream = staging.stream();
    TS_RETURN_IF_ERROR(
        stream.CopyIn(arena, m.codes_at + begin * code_bytes, codes, rows * code_bytes));
    if (scale_bytes > 0) {
      TS_RETURN_IF_ERROR(
          stream.CopyIn(arena, m.scales_at + begin * scale_bytes, scales, rows * scale_bytes));
    }
    TS_RETURN_IF_ERROR(stream.Synchronize());
    for (const StoredTensor* source : m.sources) file_.ReleasePages(*source);
    done(rows * row_bytes);
  }
  return Status();
}

Status DeviceLoader::Load(ThreadPool* threads, const std::function<void(double)>& progress,
                          DeviceMemory* arena) {
  TS_RETURN_IF_ERROR(status_);
  uint64_t longest = 0;
  for (const Matrix& m : matrices_)
    longest = std::max(longest,
                       m.plan.row_lines * uint64_t{kLineBytes} + m.plan.row_scales * sizeof(F16));
  TS_ASSIGN_OR_RETURN(*arena, DeviceMemory::Allocate(arena_bytes_));
  TS_ASSIGN_OR_RETURN(const Staging staging, Staging::Create(std::max(kPieceBytes, longest)));
  for (const Vector& v : vectors_) {
    TS_RETURN_IF_ERROR(
        staging.stream().CopyIn(*arena, v.at, v.values.data(), v.values.size() * sizeof(float)));
    *v.out = {reinterpret_cast<const float*>(arena->as<uint8_t>() + v.at), v.values.size()};
  }
  uint64_t loaded = 0;
  const auto done = [&](uint64_t bytes) {
    loaded += bytes;
    if (progress) progress(static_cast<double>(loaded) / static_cast<double>(arena_bytes_));
  };
  for (const Matrix& m : matrices_) {
    TS_RETURN_IF_ERROR(LoadMatrix(m, threads, staging, done, *arena));
    const uint8_t* base = arena->as<uint8_t>();
    m.linear->parts[m.part].weights = {
        .form = m.plan.form,
        .rows = m.plan.rows,
        .cols = m.plan.cols,
        .codes = {reinterpret_cast<const uint32_t*>(base + m.codes_at),
                  m.plan.code_bytes / sizeof(uint32_t)},
        .scales = {reinterpret_cast<const F16*>(base + m.scales_at),
                   m.plan.scale_bytes / sizeof(F16)}};
  }
  return staging.stream().Synchronize();
}

}  // namespace tinyserve::cuda
