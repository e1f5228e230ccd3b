// Vectors of the host as arrays of an emulated device.
#ifndef TINYSERVE_TESTS_SIMT_ARRAYS_H_
#define TINYSERVE_TESTS_SIMT_ARRAYS_H_

#include <vector>

#include "kernels/cuda/launch.h"

namespace tinyserve::cuda {

template <class T>
Array<T> ArrayOf(std::vector<T>& values) {
  return {values.data(), values.size()};
}
template <class T>
Array<const T> ArrayOf(const std::vector<T>& values) {
  return {values.data(), values.size()};
}
template <class T>
Array<const T> ConstArrayOf(const std::vector<T>& values) {
  return ArrayOf(values);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_ARRAYS_H_
