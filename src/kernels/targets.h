// Which tables this build has, and which this machine can run.
#ifndef TINYSERVE_KERNELS_TARGETS_H_
#define TINYSERVE_KERNELS_TARGETS_H_

#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Tables this machine can run, best first, `ref` last.
std::vector<const Kernels*> AvailableTargets();
// Names of all tables that were compiled in, whether or not this machine can run them.
std::vector<std::string> CompiledTargets();

// The table called `name`; an empty name means the environment variable TINYSERVE_TARGET, and where
// that is unset the best one. Errors: kInvalidArgument (unknown name, with the list), kUnsupported
// (this CPU lacks it, with what is missing).
Result<const Kernels*> TargetFor(const std::string& name);

}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_TARGETS_H_
