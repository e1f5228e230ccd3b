// Selectors that a device has kernels for.
#ifndef TINYSERVE_DEVICE_DEVICE_SELECTOR_H_
#define TINYSERVE_DEVICE_DEVICE_SELECTOR_H_

#include <optional>
#include <span>

#include "device/device_scorers.h"
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
  // Of `hierarchical`: tokens of a sub-page, else 0, and positions that a choice is in force.
  uint32_t sub_tokens = 0, reuse = 1;
  uint32_t summary_at = 0;  // where in what is kept of a page its boxes begin, bytes
  // Of a plugin, which alone has one: then kind, pool and alpha mean nothing. Set by
  // DeviceExecutor, which loads its kernel.
  std::optional<PageScorer> scorer;

  // Whether a query with this many tokens before and at it reads everything.
  bool ReadsAll(uint32_t tokens) const { return tokens <= spec.budget.min_context; }
  bool keeps_choices() const { return reuse > 1; }
  // Of a page, that it scores beside records: boxes of its sub-pages.
  uint32_t SummaryBytes(const KvShape& shape) const {
    return sub_tokens == 0 ? 0
                           : shape.page_tokens / sub_tokens *
                                 MetaLayoutOf(kMetaBox, shape.head_dim).record_bytes;
  }
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
