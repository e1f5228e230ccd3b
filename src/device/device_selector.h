// Selectors that a device has kernels for.
#ifndef TINYSERVE_DEVICE_DEVICE_SELECTOR_H_
#define TINYSERVE_DEVICE_DEVICE_SELECTOR_H_

#include <optional>
#include <span>

#include "kernels/kernels.h"
#include "kv/codec.h"
#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

struct DeviceSelector {
  SelectorSpec spec;
  ScoreKind kind;
  ScorePool pool;
  float alpha;
  std::optional<tinyserve_cascade> cascade;  // then the three before mean nothing

  // Whether a query with this many tokens before and at it reads everything.
  bool ReadsAll(uint32_t tokens) const { return tokens <= spec.budget.min_context; }
  // How many times a layer has the budgets of the cascade.
  uint32_t Widen(uint32_t layer) const { return cascade && layer < cascade->wide_layers ? 2 : 1; }
};

// REQUIRES: spec.table is not null ("full" is no selector). `stored`: of full pages. Errors:
// kUnsupported, naming what a device does not know and what it does.
Result<DeviceSelector> DeviceSelectorOf(const SelectorSpec& spec, KvType stored);
// Whether a device serves all of them, "full" too, over pages of this form. Errors: the same.
Status CheckDeviceSelectors(std::span<const SelectorSpec> specs, const Codec& codec);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_SELECTOR_H_
