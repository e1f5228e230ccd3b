#include "step/step_plugin.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <string_view>
#include <tuple>

#include "select/option_schema.h"
#include "step/step_registry.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

Status Bad(std::string_view spec, std::string_view what) {
  return Status(Code::kInvalidArgument, fmt::format("step_plugins '{}': {}", spec, what));
}

// Tokens between two whose attention is measured: what a step holds of each is bounded by that.
constexpr uint32_t kMeasureEveryLeast = 8;

// Where a plugin's state lies in an answer's: aligned for any of its types.
uint32_t Aligned(uint32_t bytes) { return (bytes + 15u) / 16u * 16u; }

const tinyserve_step_v2* FindTable(std::string_view name, std::string* known) {
  for (const tinyserve_step_v2* table : AllStepPlugins()) {
    if (name == table->name) return table;
    *known += fmt::format("{}{}", known->empty() ? "" : ", ", table->name);
  }
  return nullptr;
}

Status SetOption(std::string_view key, std::string_view text, const json::object& schema,
                 json::object* own) {
  const json::value* option = schema.if_contains(key);
  if (option == nullptr) {
    std::string known;
    for (const auto& [name, unused] : schema)
      known += fmt::format("{}{}", known.empty() ? "" : ", ", std::string_view(name));
    return Status(Code::kInvalidArgument, fmt::format("'{}' is no option of it: it has {}", key,
                                                      known.empty() ? "none" : known));
  }
  TS_ASSIGN_OR_RETURN((*own)[key], OptionValue(key, text, option->as_object()));
  return Status();
}

Result<StepSpec> ParseStepPlugin(const std::string& text) {
  const Result<SpecParts> parts = SplitSpec(text);
  if (!parts.ok()) return Bad(text, parts.status().message());
  StepSpec spec;
  spec.typed = text;
  std::string known;
  spec.table = FindTable(parts->name, &known);
  if (spec.table == nullptr) {
    return Bad(text, fmt::format("there is no step plugin '{}': {} are known", parts->name, known));
  }
  const json::object schema = PropertiesOf(spec.table->config_schema);
  json::object own;
  for (const auto& [key, option] : schema) own[key] = DefaultOf(option.as_object());
  for (const auto& [key, value] : parts->options) {
    const Status set = SetOption(key, value, schema, &own);
    if (!set.ok()) return Bad(text, set.message());
  }
  spec.config_json = json::serialize(own);
  spec.resolved = spec.table->name;
  char separator = ':';
  for (const auto& [key, value] : own) {
    spec.resolved += fmt::format("{}{}={}", separator, std::string_view(key), ShownOption(value));
    separator = ',';
  }
  return spec;
}

}  // namespace

Result<std::vector<StepSpec>> ParseStepPlugins(std::span<const std::string> texts) {
  if (texts.size() > kStepPluginsMax) {
    return Status(Code::kInvalidArgument,
                  fmt::format("step_plugins holds {} specifications: at most {} are allowed",
                              texts.size(), kStepPluginsMax));
  }
  std::vector<StepSpec> specs;
  for (const std::string& text : texts) {
    TS_ASSIGN_OR_RETURN(StepSpec spec, ParseStepPlugin(text));
    for (const StepSpec& other : specs) {
      if (other.table == spec.table) {
        return Bad(text, fmt::format("'{}' is the same plugin: give it once", other.typed));
      }
    }
    specs.push_back(std::move(spec));
  }
  std::sort(specs.begin(), specs.end(), [](const StepSpec& a, const StepSpec& b) {
    const std::string_view a_name = a.table->name, b_name = b.table->name;
    return std::tie(a.table->priority, a_name) < std::tie(b.table->priority, b_name);
  });
  return specs;
}

std::string ResolvedSteps(std::span<const StepSpec> specs) {
  std::string text;
  for (const StepSpec& spec : specs) text += (text.empty() ? "" : "+") + spec.resolved;
  return text;
}

std::string DescribeStepPlugins() {
  std::string text;
  for (const tinyserve_step_v2* table : AllStepPlugins()) {
    text += fmt::format("{}:", table->name);
    for (const auto& [name, option] : PropertiesOf(table->config_schema)) {
      text += fmt::format(" {}={}", std::string_view(name),
                          ShownOption(option.as_object().at("default")));
    }
    text += "\n";
  }
  return text;
}

Result<std::unique_ptr<StepPlugin>> StepPlugin::Open(const StepSpec& spec,
                                                     const tinyserve_step_shape& shape) {
  std::unique_ptr<StepPlugin> plugin(new StepPlugin);
  plugin->spec_ = spec;
  tinyserve_error error{};
  if (spec.table->open(&shape, spec.config_json.c_str(), &plugin->self_, &error) != 0) {
    plugin->self_ = nullptr;
    error.message[sizeof error.message - 1] = '\0';
    return Bad(spec.typed, error.message);
  }
  plugin->asks_after_.resize(shape.layers);
  for (uint32_t done = 1; done < shape.layers && spec.table->leave != nullptr; ++done)
    plugin->asks_after_[done] = spec.table->asks_after(plugin->self_, done) != 0;
  if (spec.table->prune != nullptr)
    plugin->measure_every_ =
        std::max(kMeasureEveryLeast, spec.table->measures_every(plugin->self_));
  return plugin;
}

StepPlugin::~StepPlugin() {
  if (self_ != nullptr) spec_.table->close(self_);
}

bool StepPlugin::Count(int failed, uint32_t answer) const {
  ++counts_.calls;
  if (failed != 0 || answer > 1) {
    ++counts_.errors;
    return false;
  }
  counts_.effects += answer;
  return answer == 1;
}

bool StepPlugin::Leaves(const tinyserve_layer_in& in) const {
  uint32_t leave = 0;
  const int failed = spec_.table->leave(self_, &in, &leave);
  return Count(failed, leave);
}

bool StepPlugin::Ends(const tinyserve_answer_in& in) const {
  uint32_t end = 0;
  const int failed = spec_.table->end(self_, &in, &end);
  return Count(failed, end);
}

bool StepPlugin::Prune(const tinyserve_prune_in& in, std::span<uint8_t> drop) const {
  const int failed = spec_.table->prune(self_, &in, drop.data());
  const auto most = std::max_element(drop.begin(), drop.end());
  if (Count(failed, most == drop.end() ? 0 : *most)) return true;
  std::fill(drop.begin(), drop.end(), uint8_t{0});
  return false;
}

Result<std::unique_ptr<StepPlugins>> StepPlugins::Open(std::span<const StepSpec> specs,
                                                       const tinyserve_step_shape& shape) {
  auto plugins = std::make_unique<StepPlugins>();
  plugins->resolved_ = ResolvedSteps(specs);
  for (const StepSpec& spec : specs) {
    TS_ASSIGN_OR_RETURN(plugins->plugins_.emplace_back(), StepPlugin::Open(spec, shape));
    plugins->answer_bytes_ += Aligned(spec.table->answer_bytes);
    const uint32_t every = plugins->plugins_.back()->measure_every();
    if (every != 0 && (plugins->measure_every_ == 0 || every < plugins->measure_every_))
      plugins->measure_every_ = every;
  }
  return plugins;
}

bool StepPlugins::AsksAfter(uint32_t layers_done) const {
  return std::any_of(plugins_.begin(), plugins_.end(),
                     [layers_done](const auto& p) { return p->AsksAfter(layers_done); });
}

bool StepPlugins::Leaves(tinyserve_layer_in in) const {
  in.struct_size = sizeof in;
  return std::any_of(plugins_.begin(), plugins_.end(), [&in](const auto& p) {
    return p->AsksAfter(in.layers_done) && p->Leaves(in);
  });
}

bool StepPlugins::Prune(tinyserve_prune_in in, std::span<uint8_t> drop) const {
  in.struct_size = sizeof in;
  return std::any_of(plugins_.begin(), plugins_.end(),
                     [&](const auto& p) { return p->prunes() && p->Prune(in, drop); });
}

bool StepPlugins::Ends(tinyserve_answer_in in, uint8_t* state) const {
  in.struct_size = sizeof in;
  bool ends = false;
  for (const std::unique_ptr<StepPlugin>& plugin : plugins_) {
    in.state = plugin->answer_bytes() > 0 ? state : nullptr;
    state += Aligned(plugin->answer_bytes());
    ends = ends || (plugin->ends() && plugin->Ends(in));
  }
  return ends;
}

}  // namespace tinyserve
