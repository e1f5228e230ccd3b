// Kernels of plugins that score pages on a device (include/tinyserve/plugin_device.h).
#ifndef TINYSERVE_DEVICE_DEVICE_SCORERS_H_
#define TINYSERVE_DEVICE_DEVICE_SCORERS_H_

#include <array>
#include <vector>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/library.h"
#include "select/selector.h"
#include "tinyserve/plugin_device.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

struct PageScorer {
  const tinyserve_selector_device_v1* entry;
  KernelHandle kernel;  // of the DeviceScorers that opened it
  std::array<uint64_t, TINYSERVE_SCORE_PARAMETERS_MAX / 8> parameters;
};

class DeviceScorers {
 public:
  // Loads the images of all plugins onto the device in use, so that no request waits for that. One
  // that cannot be loaded is told when it is opened.
  void LoadAll();
  // REQUIRES: the selector's table has a device entry. Errors: kInvalidArgument (what its open or
  // parameters says; its kernel is not in the image), those of the device, all with its name.
  Result<PageScorer> Open(const SelectorSpec& spec, const tinyserve_shape& shape);

 private:
  struct Loaded {
    const tinyserve_selector_device_v1* entry;
    DeviceLibrary library;
    KernelHandle kernel;
  };

  Result<KernelHandle> KernelOf(const tinyserve_selector_device_v1& entry);

  std::vector<Loaded> loaded_;
};

// What a scorer is asked: rows of a step in a layer. `scores`: [rows][kv_heads][pages_max].
struct ScoreLaunch {
  DecodeShape shape;
  uint32_t layer, record_kinds;
  DeviceRecords records;
  DecodeStep step;
  uint32_t first_page, pages_max;
  Array<const uint32_t> candidates;  // [rows]
  Array<float> scores;
};
// Fills the scores with NaN, and launches the kernel.
Status LaunchScorer(const PageScorer& scorer, const ScoreLaunch& launch, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_SCORERS_H_
