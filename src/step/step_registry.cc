#include "step/step_registry.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <mutex>
#include <string_view>

#include "select/option_schema.h"
#include "select/registry.h"
#include "step/builtin_steps.h"

namespace tinyserve {
namespace {

std::mutex g_mutex;
// Of shared objects, under g_mutex.
std::vector<const tinyserve_step_v2*>& Loaded() {
  static std::vector<const tinyserve_step_v2*> loaded;
  return loaded;
}

Status Bad(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

Status Register(const tinyserve_step_v2* table) {
  TS_RETURN_IF_ERROR(CheckStepTable(table));
  for (const tinyserve_step_v2* other : AllStepPlugins()) {
    if (other == table) return Status();
    if (std::string_view(other->name) == table->name)
      return Bad(fmt::format("the name '{}' is taken", table->name));
  }
  const std::lock_guard lock(g_mutex);
  Loaded().push_back(table);
  return Status();
}

}  // namespace

std::vector<const tinyserve_step_v2*> AllStepPlugins() {
  const auto builtin = BuiltinSteps();
  std::vector<const tinyserve_step_v2*> all(builtin.begin(), builtin.end());
  const std::lock_guard lock(g_mutex);
  all.insert(all.end(), Loaded().begin(), Loaded().end());
  return all;
}

Status CheckStepTable(const tinyserve_step_v2* table) {
  if (table == nullptr) return Bad("the table is null");
  TS_RETURN_IF_ERROR(CheckPluginVersion(table->abi_version, table->struct_size,
                                        TINYSERVE_STEP_ABI_VERSION, sizeof(tinyserve_step_v2)));
  TS_RETURN_IF_ERROR(CheckPluginName(table->name));
  if (table->open == nullptr || table->close == nullptr) {
    return Bad("open and close must both be there");
  }
  if ((table->leave == nullptr) != (table->asks_after == nullptr)) {
    return Bad("leave and asks_after go together");
  }
  if ((table->prune == nullptr) != (table->measures_every == nullptr)) {
    return Bad("prune and measures_every go together");
  }
  if (table->leave == nullptr && table->end == nullptr && table->prune == nullptr) {
    return Bad("leave, end or prune must be there");
  }
  if (table->answer_bytes > TINYSERVE_OWN_MAX || (table->answer_bytes > 0 && !table->end)) {
    return Bad(fmt::format("answer_bytes is {}: at most {} are allowed, and none without end",
                           table->answer_bytes, TINYSERVE_OWN_MAX));
  }
  return CheckOptionSchema(table->config_schema);
}

Status LoadPlugin(const std::string& path) {
  // Never closed: its table and code stay in use.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return Status(Code::kNotFound, fmt::format("plugin {}: {}", path, ::dlerror()));
  }
  using Entry = const tinyserve_step_v2* (*)();
  if (const auto entry = reinterpret_cast<Entry>(::dlsym(handle, "tinyserve_step"))) {
    const Status status = Register(entry());
    if (!status.ok()) return Bad(fmt::format("plugin {}: {}", path, status.message()));
    if (::dlsym(handle, "tinyserve_selector") == nullptr) return Status();
  }
  return LoadSelectorPlugin(path);
}

}  // namespace tinyserve
