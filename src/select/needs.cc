// What selectors keep for themselves, and whether a cache keeps it.
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "select/builtin.h"
#include "select/selector.h"

namespace tinyserve {
namespace {

// Of all selectors together, of a page: far more than the pages themselves take.
constexpr uint32_t kSummaryBytesMax = 4 * TINYSERVE_OWN_MAX;

Status Bad(const SelectorSpec& spec, const std::string& what) {
  return Status(Code::kInvalidArgument, fmt::format("selector '{}': {}", spec.typed, what));
}

uint32_t WholeLines(uint32_t bytes) { return (bytes + 63) / 64 * 64; }

const SummaryPlace* FindPlace(const tinyserve_selector_v2* table, const std::string& config_json,
                              std::span<const SummaryPlace> places) {
  const auto found = std::find_if(places.begin(), places.end(), [&](const SummaryPlace& place) {
    return place.table == table && place.config_json == config_json;
  });
  return found == places.end() ? nullptr : &*found;
}

}  // namespace

uint32_t SelectorSpec::needs(uint32_t coding) const {
  if (table == nullptr) return 0;
  const auto kinds = static_cast<uint32_t>(table->needs);
  if ((coding & kMetaRange) == 0 || !ScoresByRanges(table)) return kinds;
  return (kinds & ~uint32_t{kMetaBox}) | kMetaRange;
}

Result<tinyserve_sizes> SizesOf(const SelectorSpec& spec, const tinyserve_shape& shape) {
  tinyserve_sizes sizes{.struct_size = sizeof sizes, .summary_bytes = 0, .state_bytes = 0};
  if (spec.table == nullptr || spec.table->sizes == nullptr) return sizes;
  tinyserve_error error{};
  if (spec.table->sizes(&shape, spec.config_json.c_str(), &sizes, &error) != 0) {
    error.message[sizeof error.message - 1] = '\0';
    return Bad(spec, error.message);
  }
  if (std::max(sizes.summary_bytes, sizes.state_bytes) > TINYSERVE_OWN_MAX) {
    return Bad(spec, fmt::format("it wants a summary of {} bytes and a state of {}: allowed are {}",
                                 sizes.summary_bytes, sizes.state_bytes, TINYSERVE_OWN_MAX));
  }
  if (sizes.summary_bytes > 0 && spec.table->summarise == nullptr) {
    return Bad(spec, "it wants summaries, but cannot make them: summarise is missing");
  }
  return sizes;
}

Result<SelectorNeeds> NeedsOf(std::span<const SelectorSpec> specs, const tinyserve_shape& shape,
                              std::vector<SummaryPlace>* places) {
  SelectorNeeds needs{};
  std::vector<SummaryPlace> found;
  for (const SelectorSpec& spec : specs) {
    TS_ASSIGN_OR_RETURN(const tinyserve_sizes sizes, SizesOf(spec, shape));
    needs.metadata |= spec.needs(shape.record_kinds);
    needs.state_bytes = std::max(needs.state_bytes, WholeLines(sizes.state_bytes));
    const auto keep = [&](const tinyserve_selector_v2* table, const std::string& config_json,
                          uint32_t bytes) {
      if (FindPlace(table, config_json, found) != nullptr) return;
      found.push_back({table, config_json, needs.summary_bytes});
      needs.summary_bytes += WholeLines(bytes);
    };
    if (sizes.summary_bytes > 0) keep(spec.table, spec.config_json, sizes.summary_bytes);
    if (spec.budget.rest_means) keep(nullptr, "", PageMeansBytes(shape.head_dim));
    if (needs.summary_bytes > kSummaryBytesMax) {
      return Bad(spec, fmt::format("with the selectors before it, it wants summaries of {} bytes a "
                                   "page: allowed are {}",
                                   needs.summary_bytes, kSummaryBytesMax));
    }
  }
  if (places != nullptr) *places = std::move(found);
  return needs;
}

Result<SummaryOffsets> PlaceOf(const SelectorSpec& spec, const tinyserve_shape& shape,
                               const SelectorNeeds& kept, std::span<const SummaryPlace> places) {
  const auto missing = [&](std::string_view what) {
    return Bad(
        spec,
        fmt::format(
            "{} is not kept: choose it when the engine starts, as its selector or its metadata",
            what));
  };
  TS_ASSIGN_OR_RETURN(const tinyserve_sizes sizes, SizesOf(spec, shape));
  if ((spec.needs(shape.record_kinds) & ~kept.metadata) != 0) {
    return missing(fmt::format("what {} needs to know of the pages", spec.table->name));
  }
  const SummaryPlace* place = FindPlace(spec.table, spec.config_json, places);
  const SummaryPlace* means = FindPlace(nullptr, "", places);
  if (sizes.summary_bytes > 0 && place == nullptr) {
    return missing(
        fmt::format("the summary of pages that {} makes with these options", spec.table->name));
  }
  if (sizes.state_bytes > kept.state_bytes) {
    return missing(fmt::format("the state that {} needs of a sequence", spec.table->name));
  }
  if (spec.budget.rest_means && means == nullptr) {
    return missing("the mean of the keys and values of pages, which rest=mean reads,");
  }
  SummaryOffsets at;
  if (sizes.summary_bytes > 0) at.own = place->at;
  if (spec.budget.rest_means) at.means = means->at;
  return at;
}

}  // namespace tinyserve
