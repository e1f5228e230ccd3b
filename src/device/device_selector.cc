#include "device/device_selector.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "select/builtin.h"
#include "select/builtin_parts.h"
#include "select/device_entry.h"

namespace tinyserve::cuda {
namespace {

// A plugin's own, but for its kernel.
template <class Refused>
Result<DeviceSelector> PluginSelector(const SelectorSpec& spec, const Refused& refused) {
  if (DeviceEntryOf(spec.table) == nullptr) {
    return refused(
        "its code runs on the host, where the pages of a device are not, and it brings "
        "no device entry");
  }
  if (spec.budget.mass > 0) return refused("a budget by mass is not known there");
  if (spec.budget.rest_means) return refused("means of what is not read are not kept there");
  return DeviceSelector{.spec = spec,
                        .kind = ScoreKind::kBox,
                        .pool = ScorePool::kMax,
                        .alpha = 0,
                        .cascade = std::nullopt,
                        .scorer = std::nullopt};
}

}  // namespace

Result<DeviceSelector> DeviceSelectorOf(const SelectorSpec& spec, KvType stored) {
  const auto refused = [&](const char* why) {
    return Status(
        Code::kUnsupported,
        fmt::format("selector '{}': {}; a device computes full, box, moments, hierarchical and, "
                    "over planes, cascade, the CPU (--device cpu) all",
                    spec.typed, why));
  };
  const auto builtins = BuiltinSelectors();
  if (std::find(builtins.begin(), builtins.end(), spec.table) == builtins.end())
    return PluginSelector(spec, refused);
  const std::string_view name = spec.table->name;
  const bool moments = name == "moments", hierarchical = name == "hierarchical";
  const bool cascade = spec.table->fused_id == TINYSERVE_FUSED_CASCADE;
  if (!moments && !hierarchical && !cascade && name != "box")
    return refused("there is no kernel of it");
  if (cascade && stored != KvType::kPlanes) return refused("it reads pages in planes");
  if (spec.budget.mass > 0) return refused("a budget by mass is not known there");
  if (spec.budget.rest_means) return refused("means of what is not read are not kept there");
  DeviceSelector selector{.spec = spec,
                          .kind = moments ? ScoreKind::kMoments : ScoreKind::kBox,
                          .pool = ScorePool::kMax,
                          .alpha = 0,
                          .cascade = std::nullopt,
                          .scorer = std::nullopt};
  if (cascade) {
    TS_ASSIGN_OR_RETURN(const std::unique_ptr<Selector> opened, Selector::Open(spec, {}));
    selector.cascade = *opened->cascade();
    return selector;
  }
  const boost::json::object options = Options(spec.config_json.c_str());
  if (!ReadPool(options, &selector.pool)) return refused("pool is not max, sum or softmax");
  if (moments) selector.alpha = options.at("alpha").to_number<float>();
  if (hierarchical) {
    selector.sub_tokens = options.at("sub").to_number<uint32_t>();
    selector.reuse = options.at("reuse").to_number<uint32_t>();
  }
  return selector;
}

Status CheckDeviceSelectors(std::span<const SelectorSpec> specs, const Codec& codec) {
  for (const SelectorSpec& spec : specs) {
    if (spec.table == nullptr) continue;
    TS_RETURN_IF_ERROR(DeviceSelectorOf(spec, codec.sealed_type).status());
  }
  return Status();
}

}  // namespace tinyserve::cuda
