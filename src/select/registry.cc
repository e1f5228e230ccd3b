#include "select/registry.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>

#include "select/builtin.h"
#include "select/device_entry.h"
#include "select/option_schema.h"
#include "select/selector.h"

namespace tinyserve {
namespace {

constexpr size_t kNameMax = 64;

std::mutex g_mutex;
struct Plugin {
  const tinyserve_selector_v2* table;
  const tinyserve_selector_device_v1* device;  // null: none
};
// Under g_mutex.
std::vector<Plugin>& Loaded() {
  static std::vector<Plugin> loaded;
  return loaded;
}

Status Bad(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

bool IsName(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= kNameMax && std::all_of(name.begin(), name.end(), allowed);
}

}  // namespace

std::vector<const tinyserve_selector_v2*> AllSelectors() {
  const auto builtin = BuiltinSelectors();
  std::vector<const tinyserve_selector_v2*> all(builtin.begin(), builtin.end());
  const std::lock_guard lock(g_mutex);
  for (const Plugin& plugin : Loaded()) all.push_back(plugin.table);
  return all;
}

const tinyserve_selector_device_v1* DeviceEntryOf(const tinyserve_selector_v2* table) {
  const std::lock_guard lock(g_mutex);
  for (const Plugin& plugin : Loaded()) {
    if (plugin.table == table) return plugin.device;
  }
  return nullptr;
}

// The two come first in every version: nothing else is read before they are right.
Status CheckPluginVersion(uint32_t abi_version, uint32_t struct_size, uint32_t version,
                          size_t version_bytes) {
  if (abi_version != version)
    return Bad(fmt::format("abi_version is {}: {} is needed", abi_version, version));
  if (struct_size < version_bytes) {
    return Bad(fmt::format("struct_size is {}: version {} has {} bytes", struct_size, version,
                           version_bytes));
  }
  return Status();
}

Status CheckPluginName(const char* name) {
  if (name != nullptr && IsName({name, ::strnlen(name, kNameMax + 1)})) return Status();
  return Bad(fmt::format("name must be 1 to {} characters of a-z, 0-9, _ and -", kNameMax));
}

Status CheckSelectorTable(const tinyserve_selector_v2* table) {
  if (table == nullptr) return Bad("the table is null");
  TS_RETURN_IF_ERROR(CheckPluginVersion(table->abi_version, table->struct_size,
                                        TINYSERVE_SELECTOR_ABI_VERSION,
                                        sizeof(tinyserve_selector_v2)));
  TS_RETURN_IF_ERROR(CheckPluginName(table->name));
  constexpr uint64_t kKnown =
      TINYSERVE_NEEDS_BOX | TINYSERVE_NEEDS_MOMENTS | TINYSERVE_NEEDS_PLANES;
  if ((table->needs & ~kKnown) != 0) {
    return Bad(fmt::format("needs is {:#x}: known are the bits {:#x}", table->needs, kKnown));
  }
  if (table->fused_id > TINYSERVE_FUSED_CASCADE) {
    return Bad(fmt::format("fused_id is {}: known are 0 and {}", table->fused_id,
                           TINYSERVE_FUSED_CASCADE));
  }
  const bool fused = table->fused_id != 0;
  if (table->open == nullptr || table->close == nullptr ||
      (fused ? table->fused == nullptr : table->select == nullptr)) {
    return Bad("open, select (fused, where fused_id is not 0) and close must all be there");
  }
  if (table->heeds_mass > 1) {
    return Bad(fmt::format("heeds_mass is {}: allowed are 0 and 1", table->heeds_mass));
  }
  if (fused && (table->heeds_mass != 0 || table->sizes != nullptr || table->observe != nullptr)) {
    return Bad("heeds_mass, sizes and observe are not for tables with a fused_id");
  }
  if (table->summarise != nullptr && table->sizes == nullptr) {
    return Bad("summarise is there without sizes");
  }
  const bool planes = (table->needs & TINYSERVE_NEEDS_PLANES) != 0;
  if (fused != planes || (planes && table->needs != TINYSERVE_NEEDS_PLANES)) {
    return Bad("fused_id and the need of planes, alone, go together");
  }
  return CheckOptionSchema(table->config_schema);
}

Status LoadSelectorPlugin(const std::string& path) {
  const auto bad = [&](Code code, const std::string& what) {
    return Status(code, fmt::format("plugin {}: {}", path, what));
  };
  // Never closed: its table and code stay in use.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return bad(Code::kNotFound, ::dlerror());
  using Entry = const tinyserve_selector_v2* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(handle, "tinyserve_selector"));
  if (entry == nullptr) return bad(Code::kInvalidArgument, "it exports no tinyserve_selector");
  const tinyserve_selector_v2* table = entry();
  if (const Status status = CheckSelectorTable(table); !status.ok()) {
    return bad(Code::kInvalidArgument, status.message());
  }
  const tinyserve_selector_device_v1* device = nullptr;
  using DeviceEntry = const tinyserve_selector_device_v1* (*)();
  if (const auto device_entry =
          reinterpret_cast<DeviceEntry>(::dlsym(handle, "tinyserve_selector_device"))) {
    device = device_entry();
    if (const Status status = CheckDeviceEntry(device, *table); !status.ok())
      return bad(Code::kInvalidArgument, fmt::format("device entry: {}", status.message()));
  }
  for (const tinyserve_selector_v2* other : AllSelectors()) {
    if (other == table) return Status();
    if (std::string_view(other->name) == table->name || IsReservedName(table->name)) {
      return bad(Code::kInvalidArgument, fmt::format("the name '{}' is taken", table->name));
    }
  }
  const std::lock_guard lock(g_mutex);
  Loaded().push_back({table, device});
  return Status();
}

}  // namespace tinyserve
