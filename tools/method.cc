#include "tools/method.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/selector_storage.h"
#include "step/step_plugin.h"
#include "tools/format.h"

namespace tinyserve {
namespace {

constexpr char kRaw[] = "f16";

// Parts that a '+' divides; one of a number (1e+3) divides nothing.
std::vector<std::string> SplitSteps(const std::string& typed) {
  std::vector<std::string> parts = {""};
  for (size_t i = 0; i < typed.size(); ++i) {
    const bool divides =
        typed[i] == '+' && i + 1 < typed.size() && typed[i + 1] >= 'a' && typed[i + 1] <= 'z';
    if (divides) {
      parts.emplace_back();
    } else {
      parts.back() += typed[i];
    }
  }
  return parts;
}

Result<Method> ParseMethod(const std::string& typed, const std::string& kv) {
  std::vector<std::string> steps = SplitSteps(typed);
  const std::string read = steps.front();
  steps.erase(steps.begin());
  TS_ASSIGN_OR_RETURN(const std::vector<StepSpec> step_specs, ParseStepPlugins(steps));
  const size_t at = read.rfind('@');
  TS_ASSIGN_OR_RETURN(SelectorSpec spec, ParseSelector(read.substr(0, at)));
  std::string stored = KvFor(spec);
  if (at != std::string::npos) {
    stored = read.substr(at + 1);
  } else if (stored == kRaw) {
    stored = BaseKv(kv);
  }
  const Result<const Codec*> codec = FindCodec(stored);
  if (!codec.ok()) {
    return Status(codec.status().code(), fmt::format("{}: {}", typed, codec.status().message()));
  }
  TS_RETURN_IF_ERROR(CheckStored(spec, **codec));
  std::string resolved = spec.resolved;
  if (!step_specs.empty()) resolved += "+" + ResolvedSteps(step_specs);
  return Method{.typed = typed,
                .spec = std::move(spec),
                .kv = std::move(stored),
                .steps = std::move(steps),
                .resolved = std::move(resolved),
                .prunes = std::any_of(step_specs.begin(), step_specs.end(),
                                      [](const StepSpec& s) { return s.table->prune != nullptr; })};
}

}  // namespace

Result<std::vector<Method>> ParseMethods(const std::vector<std::string>& typed,
                                         const std::string& kv) {
  std::vector<Method> methods;
  for (const std::string& text : typed) {
    TS_ASSIGN_OR_RETURN(Method method, ParseMethod(text, kv));
    methods.push_back(std::move(method));
  }
  return methods;
}

std::string BaseKv(const std::string& kv) { return kv.empty() ? kRaw : kv; }

std::vector<std::string> StoragesOf(const std::vector<Method>& methods) {
  std::vector<std::string> storages;
  for (const Method& method : methods) {
    if (std::find(storages.begin(), storages.end(), method.kv) == storages.end())
      storages.push_back(method.kv);
  }
  return storages;
}

std::vector<SelectorSpec> SelectorsOf(const std::vector<Method>& methods, const std::string& kv) {
  std::vector<SelectorSpec> selectors;
  for (const Method& method : methods) {
    if (method.kv == kv) selectors.push_back(method.spec);
  }
  return selectors;
}

std::string ListStorages(const std::vector<std::string>& storages) {
  std::string text;
  for (size_t i = 0; i < storages.size(); ++i) {
    if (i > 0) text += i + 1 < storages.size() ? ", " : " and ";
    text += storages[i];
  }
  return text;
}

std::string ResolvedLines(const std::vector<Method>& methods) {
  std::string text;
  for (const Method& method : methods) {
    if (method.spec.table == nullptr && method.steps.empty()) continue;
    text += fmt::format("{} is {} over {}\n", PrintableLine(method.typed, 200),
                        PrintableLine(method.resolved, 400), method.kv);
  }
  return text;
}

}  // namespace tinyserve
