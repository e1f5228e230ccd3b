// Every step plugin by name: the built-in ones, and those that shared objects brought.
#ifndef TINYSERVE_STEP_STEP_REGISTRY_H_
#define TINYSERVE_STEP_STEP_REGISTRY_H_

#include <string>
#include <vector>

#include "tinyserve/plugin.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Built-in ones first, then in the order of loading. Tables live as long as the process.
std::vector<const tinyserve_step_v2*> AllStepPlugins();

// Whether a table can be used. Errors: kInvalidArgument, naming the field and what is allowed.
Status CheckStepTable(const tinyserve_step_v2* table);

// Loads a shared object that exports tinyserve_step(), tinyserve_selector(), or both. Loading one
// again changes nothing. Errors: as LoadSelectorPlugin's. Thread-safe.
Status LoadPlugin(const std::string& path);

}  // namespace tinyserve

#endif  // TINYSERVE_STEP_STEP_REGISTRY_H_
