// Every selector by name: the built-in ones, and those that plugins brought.
#ifndef TINYSERVE_SELECT_REGISTRY_H_
#define TINYSERVE_SELECT_REGISTRY_H_

#include <string>
#include <vector>

#include "tinyserve/plugin.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Built-in ones first, then in the order of loading. Tables live as long as the process.
std::vector<const tinyserve_selector_v2*> AllSelectors();

// Whether a table can be used. Errors: kInvalidArgument, naming the field and what is allowed.
Status CheckSelectorTable(const tinyserve_selector_v2* table);

// Whether a plugin's table is of the version that is wanted, and whole: to be asked before anything
// else of it is read. Errors: kInvalidArgument, naming the field and what is needed.
Status CheckPluginVersion(uint32_t abi_version, uint32_t struct_size, uint32_t version,
                          size_t version_bytes);
// Whether a table may have this name. Errors: kInvalidArgument, with what is allowed.
Status CheckPluginName(const char* name);

// Loads a shared object that exports tinyserve_selector(), and maybe tinyserve_selector_device()
// (select/device_entry.h). Loading one again changes nothing.
// Errors: kNotFound (what the dynamic linker says), kInvalidArgument (its table, or its name is
// taken), all with the path. Thread-safe.
Status LoadSelectorPlugin(const std::string& path);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_REGISTRY_H_
