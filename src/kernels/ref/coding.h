// What the codings of pages share, as plain loops.
#ifndef TINYSERVE_KERNELS_REF_CODING_H_
#define TINYSERVE_KERNELS_REF_CODING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tinyserve::ref {

// A page's numbers by rows of tokens, finite, and zeros past the head size.
struct PageNumbers {
  uint32_t channels;
  std::vector<float> keys, values;  // [page tokens][channels]

  const float* Key(uint32_t t) const { return keys.data() + uint64_t{t} * channels; }
  const float* Value(uint32_t t) const { return values.data() + uint64_t{t} * channels; }
};

// Below this the largest of some numbers counts as 0, and so do they.
constexpr float kTiny = 1e-30f;

// To the nearest integer, ties to even, within [low, high].
inline int Code(float x, int low, int high) {
  return static_cast<int>(
      std::clamp(std::nearbyintf(x), static_cast<float>(low), static_cast<float>(high)));
}

// What turns numbers up to `top` into codes up to code_max; 0 where there is nothing to code.
inline float ToCodes(float top, float code_max) { return top < kTiny ? 0.0f : code_max / top; }

template <class T>
T Read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <class T>
void Write(T value, uint8_t* at) {
  std::memcpy(at, &value, sizeof value);
}

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_CODING_H_
