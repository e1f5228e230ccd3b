// Specifications of selectors, and options that a plugin declares, both of which nobody has
// checked: the specification, then after a line "---" a plugin's schema of options.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "select/registry.h"
#include "select/selector.h"

namespace tinyserve {
namespace {

constexpr std::string_view kDivider = "\n---\n";
constexpr tinyserve_shape kShape = {.struct_size = sizeof(tinyserve_shape),
                                    .layers = 2,
                                    .kv_heads = 2,
                                    .group = 3,
                                    .head_dim = 64,
                                    .page_tokens = 16,
                                    .pages_max = 513,
                                    .record_kinds = 0,
                                    .record_channels = 64};

// What was parsed says it all: parsed again it is the same. A selector opens for it, or says why
// not.
template <class Parse>
void CheckSpec(const Result<SelectorSpec>& spec, const Parse& parse) {
  if (!spec.ok()) {
    TS_CHECK(spec.status().code() == Code::kInvalidArgument);
    return;
  }
  const Result<SelectorSpec> again = parse(spec->resolved);
  TS_CHECK(again.ok() && again->resolved == spec->resolved);
  TS_CHECK(again->config_json == spec->config_json);
  const SelectorBudget& b = spec->budget;
  for (const uint32_t pages : {1u, 7u, 513u}) {
    const uint32_t read = b.PagesOf(pages, 16);
    TS_CHECK(read <= pages && (read == pages || read >= b.sink + b.recent));
  }
  const auto opened = Selector::Open(*spec, kShape);
  TS_CHECK(opened.ok() || opened.status().code() == Code::kInvalidArgument);
}

// A plugin that takes any options.
tinyserve_selector_v2 TableWith(const char* schema) {
  return {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
          .struct_size = sizeof(tinyserve_selector_v2),
          .name = "fuzzed",
          .config_schema = schema,
          .needs = 0,
          .open = [](const tinyserve_shape*, const char*, void**, tinyserve_error*) { return 0; },
          .select = [](void*, const tinyserve_select_in*, uint32_t, uint32_t,
                       tinyserve_select_out*) { return 0; },
          .close = [](void*) {},
          .fused_id = 0,
          .fused = nullptr,
          .heeds_mass = 1,
          .sizes = nullptr,
          .summarise = nullptr,
          .observe = nullptr};
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t at = std::min(all.find(kDivider), all.size());
  const std::string spec(all.substr(0, at));
  CheckSpec(ParseSelector(spec), ParseSelector);
  if (at == all.size()) return 0;
  const std::string schema(all.substr(at + kDivider.size()));
  const tinyserve_selector_v2 table = TableWith(schema.c_str());
  if (!CheckSelectorTable(&table).ok()) return 0;
  const auto parse = [&](const std::string& text) { return ParseSelectorFor(table, text); };
  CheckSpec(parse(spec), parse);
  return 0;
}
