#include "device/device_scorers.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "select/device_entry.h"
#include "select/registry.h"

namespace tinyserve::cuda {

void DeviceScorers::LoadAll() {
  for (const tinyserve_selector_v2* table : AllSelectors()) {
    if (const tinyserve_selector_device_v1* entry = DeviceEntryOf(table)) (void)KernelOf(*entry);
  }
}

Result<KernelHandle> DeviceScorers::KernelOf(const tinyserve_selector_device_v1& entry) {
  for (const Loaded& loaded : loaded_) {
    if (loaded.entry == &entry) return KernelHandle{loaded.kernel};
  }
  TS_ASSIGN_OR_RETURN(LibraryHandle handle, runtime::LoadLibrary(entry.image));
  DeviceLibrary library(handle);
  TS_ASSIGN_OR_RETURN(KernelHandle kernel,
                      runtime::FindKernel(handle, entry.kernel, entry.block_threads));
  loaded_.push_back({&entry, std::move(library), kernel});
  return KernelHandle{kernel};
}

Result<PageScorer> DeviceScorers::Open(const SelectorSpec& spec, const tinyserve_shape& shape) {
  const auto failed = [&](Code code, const std::string& what) {
    return Status(code, fmt::format("selector '{}': {}", spec.typed, what));
  };
  const tinyserve_selector_device_v1* entry = DeviceEntryOf(spec.table);
  TS_CHECK(entry != nullptr);
  Result<KernelHandle> kernel = KernelOf(*entry);
  if (!kernel.ok()) {
    const Code code = kernel.status().code();
    return failed(code == Code::kNotFound ? Code::kInvalidArgument : code,
                  "its device entry does not load: " + kernel.status().message());
  }
  PageScorer scorer{.entry = entry, .kernel = *kernel, .parameters = {}};
  tinyserve_error error{};
  void* self = nullptr;
  int wrong = spec.table->open(&shape, spec.config_json.c_str(), &self, &error);
  if (wrong == 0) {
    if (entry->parameters != nullptr)
      wrong = entry->parameters(self, scorer.parameters.data(), &error);
    if (self != nullptr) spec.table->close(self);
  }
  if (wrong == 0) return scorer;
  error.message[sizeof error.message - 1] = '\0';
  return failed(Code::kInvalidArgument, error.message);
}

Status LaunchScorer(const PageScorer& scorer, const ScoreLaunch& launch, Stream stream) {
  const DecodeStep& step = launch.step;
  const Slabs<const uint8_t>& records = launch.records.slabs;
  const uint64_t scores = uint64_t{step.rows} * launch.shape.kv_heads * launch.pages_max;
  TS_CHECK(scores <= launch.scores.count);
  // Bytes of ones are no number: what the kernel leaves out is found.
  TS_RETURN_IF_ERROR(runtime::Fill(launch.scores.data, 0xff, scores * sizeof(float), stream));
  tinyserve_score_in in{.struct_size = sizeof in,
                        .layer = launch.layer,
                        .rows = step.rows,
                        .kv_heads = launch.shape.kv_heads,
                        .group = launch.shape.group,
                        .head_dim = launch.shape.head_dim,
                        .record_kinds = launch.record_kinds,
                        .record_channels = launch.records.channels,
                        .pages_max = launch.pages_max,
                        .table_pages = step.table_pages,
                        .first_page = launch.first_page,
                        .scale = step.scale,
                        .q = step.q.data,
                        .tokens = step.tokens.data,
                        .candidates = launch.candidates.data,
                        .tables = step.tables.data,
                        .table_of = step.table_of.data,
                        .records = records.bytes.data,
                        .record_head_stride = records.head_stride,
                        .record_extent_stride = records.extent_stride,
                        .record_extent_shift = records.extent_shift,
                        .record_bytes = records.item_bytes,
                        .scores = launch.scores.data,
                        .parameters = {}};
  std::copy(scorer.parameters.begin(), scorer.parameters.end(), in.parameters);
  const uint32_t parts =
      (launch.pages_max + scorer.entry->block_pages - 1) / scorer.entry->block_pages;
  return runtime::LaunchLoaded({.kernel = scorer.entry->kernel,
                                .grid = {parts, launch.shape.kv_heads, step.rows},
                                .threads = scorer.entry->block_threads,
                                .shared_bytes = scorer.entry->shared_bytes,
                                .stream = stream},
                               scorer.kernel, &in, sizeof in);
}

}  // namespace tinyserve::cuda
