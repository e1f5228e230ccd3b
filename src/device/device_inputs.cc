#include "device/device_inputs.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "base/check.h"

namespace tinyserve::cuda {
namespace {

// Each array begins at a line of the device's caches.
constexpr uint64_t kAlign = 128;
uint64_t Aligned(uint64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Result<HostMemory> HostMemory::Allocate(uint64_t bytes) {
  HostMemory memory;
  memory.bytes_ = std::make_unique<uint8_t[]>(bytes);
  return Result<HostMemory>(std::move(memory));
}

Status StepInputs::Allocate(const InputSizes& sizes, Arena<DeviceMemory>* arena) {
  sizes_ = sizes;
  Checked bytes = 0;
  const auto add = [&](auto& upload, Checked count) {
    host_.Add(&upload.host, count);
    bytes = bytes + (count * Checked(sizeof(*upload.host.data))).RoundUp(kAlign);
  };
  const Checked rows = sizes.rows, sequences = sizes.sequences, draws = sizes.draws;
  for (auto* upload : {&positions, &table_of, &budgets, &newer, &candidates, &full_tokens,
                       &value_tokens, &full_pages})
    add(*upload, rows);
  add(ids, rows);
  add(learned, sizes.learns_positions ? rows : Checked(0));
  add(choices, sizes.keeps_choices ? rows : Checked(0));
  add(choice_places, sizes.keeps_choices ? rows : Checked(0));
  add(cos_sin, rows * Checked(2 * sizes.pairs));
  add(tables, sequences * Checked(sizes.table_pages));
  add(open_tables, sequences * Checked(sizes.open_pages));
  add(raw_tables, rows * Checked(sizes.raw_pages));
  for (auto& upload : tokens) add(upload, rows);
  for (auto& upload : raw_tokens) add(upload, sizes.raw_pages > 0 ? rows : Checked(0));
  add(runs, sequences);
  add(blocks, rows * Checked(sizes.group) + sequences);
  // A row fills a page and a window at most, where it is the only one of its sequence.
  for (auto* upload : {&seal_from, &seal_to}) add(*upload, rows * Checked(sizes.raw_pages));
  add(wanted, sizes.logits);
  add(scales, draws);
  add(penalties, draws);
  add(lists, draws);
  add(seeds, draws);
  const uint64_t mask_words = (uint64_t{sizes.mask_words} + 3) / 4 * 4;
  add(words, sequences * (Checked(kEditsMax * sizeof(LogitEdit) / 4) + Checked(mask_words)));
  TS_RETURN_IF_ERROR(host_.Allocate());
  for (Array<uint8_t>& packed : packed_) pinned_.Add(&packed, bytes);
  arena->Add(&device_, bytes);
  return pinned_.Allocate();
}

template <class Visit>
void StepInputs::Each(const StepForm& form, const Visit& visit) {
  const uint64_t rows = form.rows();
  visit(ids, rows);
  if (sizes_.learns_positions) visit(learned, rows);
  visit(positions, rows);
  visit(table_of, rows);
  visit(cos_sin, rows * sizes_.pairs * 2);
  visit(tables, uint64_t{form.tables} * sizes_.table_pages);
  visit(open_tables, uint64_t{form.tables} * sizes_.open_pages);
  visit(raw_tables, rows * sizes_.raw_pages);
  for (uint32_t g = 0; g < kReadGroups; ++g) {
    if ((form.groups >> g & 1) == 0) continue;
    visit(tokens[g], rows);
    if (sizes_.raw_pages > 0) visit(raw_tokens[g], rows);
  }
  if (form.groups > 1) {
    for (auto* upload : {&budgets, &newer, &candidates, &full_tokens, &value_tokens})
      visit(*upload, form.generated);
    if (sizes_.keeps_choices) visit(choices, form.generated);
    if (sizes_.keeps_choices) visit(choice_places, form.generated);
  }
  visit(runs, form.runs);
  visit(blocks, form.blocks);
  visit(full_pages, form.full_pages);
  visit(seal_from, form.seal_pages);
  visit(seal_to, form.seal_pages);
  visit(wanted, form.wanted);
  visit(scales, form.drawn);
  visit(penalties, form.drawn);
  visit(lists, form.drawn);
  visit(seeds, form.drawn);
}

Status StepInputs::Copy(const StepForm& form, const DeviceStream& stream) {
  const Array<uint8_t>& packed = packed_[copies_++ % 2];
  uint64_t end = 0;
  Each(form, [&](auto& upload, uint64_t count) {
    TS_CHECK(count <= upload.host.count);
    using T = std::remove_reference_t<decltype(*upload.host.data)>;
    upload.device = {reinterpret_cast<T*>(device_.data + end), count};
    if (count > 0) std::memcpy(packed.data + end, upload.host.data, count * sizeof(T));
    end += Aligned(count * sizeof(T));
  });
  words.device = {reinterpret_cast<uint32_t*>(device_.data + end), words.host.count};
  if (words_used > 0)
    std::memcpy(packed.data + end, words.host.data, words_used * sizeof(uint32_t));
  end += words_used * sizeof(uint32_t);
  TS_CHECK(words_used <= words.host.count && end <= packed.count);
  return runtime::Copy(device_.data, packed.data, end, stream.handle());
}

}  // namespace tinyserve::cuda
