#include "tests/simt/emulated_library.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/library.h"
#include "tests/simt/emulated_runtime.h"

namespace tinyserve::simt {
namespace {

using Image = std::map<std::string, LoadedKernel>;

std::map<std::string, Image>& Images() {
  static std::map<std::string, Image> images;
  return images;
}

}  // namespace

void AddLoadedKernel(const std::string& image, const std::string& name, LoadedKernel kernel) {
  Images()[image][name] = std::move(kernel);
}

}  // namespace tinyserve::simt

namespace tinyserve::cuda::runtime {

using namespace simt;  // NOLINT: the device is there

Result<LibraryHandle> LoadLibrary(const void* image) {
  const auto found = Images().find(static_cast<const char*>(image));
  if (found == Images().end())
    return Status(Code::kUnsupported, "LoadLibrary failed: the image has no code for this device");
  return LibraryHandle{&found->second};
}
void UnloadLibrary(LibraryHandle) {}

Result<KernelHandle> FindKernel(LibraryHandle library, const char* name, uint32_t) {
  Image& image = *static_cast<Image*>(library);
  const auto found = image.find(name);
  if (found == image.end())
    return Status(Code::kNotFound, fmt::format("the image has no kernel '{}'", name));
  return KernelHandle{&found->second};
}

Status LaunchLoaded(const LaunchConfig& config, KernelHandle kernel, const void* parameter,
                    uint64_t parameter_bytes) {
  const auto* first = static_cast<const uint8_t*>(parameter);
  const auto bytes = std::make_shared<std::vector<uint8_t>>(first, first + parameter_bytes);
  const LoadedKernel& body = *static_cast<const LoadedKernel*>(kernel);
  return LaunchInStream(config, [bytes, body] { body(bytes->data()); });
}

}  // namespace tinyserve::cuda::runtime
