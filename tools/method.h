// What `bench --selector` and `eval --method` name: a selector, and the storage that it reads.
#ifndef TINYSERVE_TOOLS_METHOD_H_
#define TINYSERVE_TOOLS_METHOD_H_

#include <string>
#include <vector>

#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct Method {
  std::string typed;  // SELECTOR, SELECTOR@KV, each also with +STEP_PLUGIN, several too
  SelectorSpec spec;
  std::string kv;                  // how its keys and values are stored
  std::vector<std::string> steps;  // step plugins
  std::string resolved;            // selector and step plugins with every option

  // Whether a step plugin drops tokens from the cache.
  bool prunes = false;

  // Dense attention over `kv`: what comparisons are made with.
  bool IsBase(const std::string& base_kv) const {
    return spec.table == nullptr && kv == base_kv && steps.empty();
  }
};

// `kv`: how they are stored for every selector that can read it; empty: f16. One that cannot has
// the storage that it reads. Errors: kInvalidArgument (a specification, a storage that does not
// exist, or one named for a selector that does not read it).
Result<std::vector<Method>> ParseMethods(const std::vector<std::string>& typed,
                                         const std::string& kv);

// Storage of dense attention, the base of comparisons.
std::string BaseKv(const std::string& kv);

// Every storage of the methods once, in their order.
std::vector<std::string> StoragesOf(const std::vector<Method>& methods);

// The selectors of the methods that read a storage.
std::vector<SelectorSpec> SelectorsOf(const std::vector<Method>& methods, const std::string& kv);

// "f16 and planes".
std::string ListStorages(const std::vector<std::string>& storages);

// What typed methods mean, a line each: the selector with every option, and its storage. Nothing
// for `full`.
std::string ResolvedLines(const std::vector<Method>& methods);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_METHOD_H_
