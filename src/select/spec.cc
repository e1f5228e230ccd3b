// Reads a selector's specification: NAME[:key=value,...].
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <iterator>
#include <span>

#include "select/option_schema.h"
#include "select/registry.h"
#include "select/selector.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

// An option of SelectorBudget, which every selector has.
struct BudgetOption {
  const char* name;
  double low, high;
  double (*get)(const SelectorBudget&);
  void (*set)(SelectorBudget*, double);
  bool whole = true;
  std::span<const std::string_view> words = {};  // that stand for 0, 1, ..., where there are any
};

// Options that not every table has.
constexpr std::string_view kMass = "mass", kRest = "rest";
constexpr std::string_view kRestWords[] = {"none", "mean"};

template <auto kField>
constexpr BudgetOption IntegerOption(const char* name, double low, double high) {
  return {.name = name,
          .low = low,
          .high = high,
          .get = [](const SelectorBudget& b) { return static_cast<double>(b.*kField); },
          .set = [](SelectorBudget* b, double v) { b->*kField = static_cast<uint32_t>(v); }};
}

constexpr BudgetOption kBudgetOptions[] = {
    {.name = "ratio",
     .low = 0.001,
     .high = 1,
     .get = [](const SelectorBudget& b) { return b.ratio; },
     .set = [](SelectorBudget* b, double v) { b->ratio = v; },
     .whole = false},
    IntegerOption<&SelectorBudget::tokens>("tokens", 0, 1 << 24),
    IntegerOption<&SelectorBudget::min_tokens>("min_tokens", 0, 1 << 24),
    IntegerOption<&SelectorBudget::dense_layers>("dense_layers", 0, 1024),
    IntegerOption<&SelectorBudget::sink>("sink", 0, 1 << 20),
    IntegerOption<&SelectorBudget::recent>("recent", 1, 1 << 20),
    IntegerOption<&SelectorBudget::min_context>("min_context", 0, 1 << 24),
    {.name = kMass.data(),
     .low = 0,
     .high = 0.9999,
     .get = [](const SelectorBudget& b) { return b.mass; },
     .set = [](SelectorBudget* b, double v) { b->mass = v; },
     .whole = false},
    {.name = kRest.data(),
     .low = 0,
     .high = std::size(kRestWords) - 1.0,
     .get = [](const SelectorBudget& b) { return b.rest_means ? 1.0 : 0.0; },
     .set = [](SelectorBudget* b, double v) { b->rest_means = v != 0; },
     .words = kRestWords},
};

bool IsOfAll(const BudgetOption& option) { return option.name != kMass && option.name != kRest; }

// Whether a table has an option of the budget.
bool HasOption(const tinyserve_selector_v2& table, const BudgetOption& option) {
  if (option.name == kRest) return table.fused_id == 0;
  return option.name != kMass || table.heeds_mass != 0;
}

std::string Shown(const BudgetOption& option, const SelectorBudget& budget) {
  const double value = option.get(budget);
  return option.words.empty() ? fmt::format("{}", value)
                              : std::string(option.words[static_cast<size_t>(value)]);
}

// Errors: kInvalidArgument, naming what is allowed.
Result<double> ValueOf(const BudgetOption& option, std::string_view text) {
  if (option.words.empty()) {
    return NumberIn(option.name, text, option.low, option.high, option.whole);
  }
  const auto found = std::find(option.words.begin(), option.words.end(), text);
  if (found != option.words.end()) return static_cast<double>(found - option.words.begin());
  std::string words;
  for (const std::string_view word : option.words)
    words += fmt::format("{}{}", words.empty() ? "" : ", ", word);
  return Status(Code::kInvalidArgument,
                fmt::format("{} is '{}': allowed are {}", option.name, text, words));
}

const BudgetOption* FindBudgetOption(const tinyserve_selector_v2& table, std::string_view name) {
  const auto* end = std::end(kBudgetOptions);
  const auto* found = std::find_if(std::begin(kBudgetOptions), end, [&](const BudgetOption& o) {
    return name == o.name && HasOption(table, o);
  });
  return found == end ? nullptr : found;
}

Status Bad(const std::string& spec, const std::string& what) {
  return Status(Code::kInvalidArgument, fmt::format("selector '{}': {}", spec, what));
}

// Names that stand for another selector, with the options of that one.
struct Preset {
  std::string_view name, selector;
};
constexpr std::string_view kFull = "full";
constexpr Preset kPresets[] = {{"default", "cascade"}};

const tinyserve_selector_v2* FindTable(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) name = preset.selector;
  }
  for (const tinyserve_selector_v2* table : AllSelectors()) {
    if (name == table->name) return table;
  }
  return nullptr;
}

std::string Names() {
  std::string names(kFull);
  for (const Preset& preset : kPresets) names += fmt::format(", {}", preset.name);
  for (const tinyserve_selector_v2* table : AllSelectors()) {
    names += fmt::format(", {}", table->name);
  }
  return names;
}

// Sets key=value in the budget or the table's own options.
Status SetOption(std::string_view key, std::string_view value, const json::object& schema,
                 SelectorSpec* spec, json::object* own) {
  if (const BudgetOption* option = FindBudgetOption(*spec->table, key)) {
    TS_ASSIGN_OR_RETURN(const double number, ValueOf(*option, value));
    option->set(&spec->budget, number);
    return Status();
  }
  if (key == kRest && spec->table->fused_id != 0) {
    return Status(Code::kInvalidArgument,
                  fmt::format("rest is not for {}: its kernel has a rest of its own, the tokens of "
                              "candidates that give the mean value of their page",
                              spec->table->name));
  }
  if (const json::value* option = schema.if_contains(key)) {
    TS_ASSIGN_OR_RETURN((*own)[key], OptionValue(key, value, option->as_object()));
    return Status();
  }
  std::string known;
  for (const BudgetOption& option : kBudgetOptions) {
    if (HasOption(*spec->table, option)) known += fmt::format("{}, ", option.name);
  }
  for (const auto& [name, unused] : schema) {
    if (FindBudgetOption(*spec->table, name) == nullptr)
      known += fmt::format("{}, ", std::string_view(name));
  }
  known.resize(known.size() - 2);
  return Status(Code::kInvalidArgument,
                fmt::format("'{}' is no option of it: it has {}", key, known));
}

// Every option, as it was set or left.
std::string Resolved(const SelectorSpec& spec, const json::object& schema,
                     const json::object& own) {
  std::string text = spec.table->name;
  char separator = ':';
  const auto add = [&](std::string_view name, const std::string& value) {
    text += fmt::format("{}{}={}", separator, name, value);
    separator = ',';
  };
  for (const BudgetOption& option : kBudgetOptions) {
    // The ratio is not used where a number of tokens is given, nor the other way round.
    // What is 0 stands there only where it would be something else otherwise.
    const bool by_tokens = spec.budget.tokens != 0, has_default = schema.contains(option.name);
    const std::string_view name = option.name;
    if (name == "ratio" && by_tokens) continue;
    if (name == "tokens" && !by_tokens && !has_default) continue;
    if (!IsOfAll(option) && option.get(spec.budget) == 0 &&
        (!has_default || !HasOption(*spec.table, option))) {
      continue;
    }
    add(option.name, Shown(option, spec.budget));
  }
  for (const auto& [name, value] : own) add(name, ShownOption(value));
  return text;
}

}  // namespace

bool IsReservedName(std::string_view name) {
  const auto is_name = [name](const Preset& preset) { return name == preset.name; };
  return name == kFull || std::any_of(std::begin(kPresets), std::end(kPresets), is_name);
}

Result<SelectorSpec> ParseSelector(const std::string& text) {
  SelectorSpec spec;
  spec.typed = text;
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  if (name == kFull) {
    if (colon != std::string::npos) return Bad(text, "full has no options");
    spec.resolved = name;
    return spec;
  }
  const tinyserve_selector_v2* table = FindTable(name);
  if (table == nullptr) {
    return Bad(text, fmt::format("there is no selector '{}': {} are known", name, Names()));
  }
  return ParseSelectorFor(*table, text);
}

Result<std::vector<SelectorSpec>> ParseSelectors(std::span<const std::string> texts) {
  std::vector<SelectorSpec> specs;
  for (const std::string& text : texts) {
    TS_ASSIGN_OR_RETURN(specs.emplace_back(), ParseSelector(text));
  }
  return specs;
}

Result<SelectorSpec> ParseSelectorFor(const tinyserve_selector_v2& table, const std::string& text) {
  SelectorSpec spec;
  spec.typed = text;
  spec.table = &table;
  const json::object schema = PropertiesOf(spec.table->config_schema);
  json::object own;
  for (const auto& [key, option] : schema) {
    const json::value& value = option.as_object().at("default");
    if (const BudgetOption* budget = FindBudgetOption(*spec.table, key)) {
      const Result<double> number = ValueOf(*budget, ShownOption(value));
      if (!number.ok()) {
        return Bad(text, fmt::format("its own default: {}", number.status().message()));
      }
      budget->set(&spec.budget, *number);
    } else {
      own[key] = DefaultOf(option.as_object());
    }
  }
  const Result<SpecParts> parts = SplitSpec(text);
  if (!parts.ok()) return Bad(text, parts.status().message());
  for (const auto& [key, value] : parts->options) {
    const Status set = SetOption(key, value, schema, &spec, &own);
    if (!set.ok()) return Bad(text, set.message());
  }
  spec.config_json = json::serialize(own);
  spec.resolved = Resolved(spec, schema, own);
  return spec;
}

std::string DescribeSelectors() {
  std::string text = "full: every page\n";
  for (const Preset& preset : kPresets)
    text += fmt::format("{}: {}\n", preset.name, preset.selector);
  const SelectorBudget defaults;
  for (const tinyserve_selector_v2* table : AllSelectors()) {
    text += fmt::format("{}:", table->name);
    for (const auto& [name, option] : PropertiesOf(table->config_schema)) {
      text += fmt::format(" {}={}", std::string_view(name),
                          ShownOption(option.as_object().at("default")));
    }
    for (const BudgetOption& option : kBudgetOptions) {
      if (!IsOfAll(option) && HasOption(*table, option))
        text += fmt::format(" {}={}", option.name, Shown(option, defaults));
    }
    text += "\n";
  }
  text += "all but full:";
  for (const BudgetOption& option : kBudgetOptions)
    if (IsOfAll(option)) text += fmt::format(" {}={}", option.name, Shown(option, defaults));
  return text + "\n";
}

}  // namespace tinyserve
