// Images with kernels on an emulated device (kernels/cuda/library.h): what one holds is compiled
// for the host, and found by the image's text.
#ifndef TINYSERVE_TESTS_SIMT_EMULATED_LIBRARY_H_
#define TINYSERVE_TESTS_SIMT_EMULATED_LIBRARY_H_

#include <cstring>
#include <functional>
#include <string>

namespace tinyserve::simt {

// A kernel with the address of its one parameter.
using LoadedKernel = std::function<void(const void* parameter)>;

// Adds a kernel to the image whose text, a string, is this.
void AddLoadedKernel(const std::string& image, const std::string& name, LoadedKernel kernel);
template <class Parameter>
void AddImage(const std::string& image, const std::string& name, void (*kernel)(Parameter)) {
  AddLoadedKernel(image, name, [kernel](const void* at) {
    Parameter parameter;
    std::memcpy(&parameter, at, sizeof parameter);
    kernel(parameter);
  });
}

}  // namespace tinyserve::simt

#endif  // TINYSERVE_TESTS_SIMT_EMULATED_LIBRARY_H_
