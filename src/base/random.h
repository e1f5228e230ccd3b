// Numbers that look random and follow from a seed alone, the same with every library: SplitMix64
// (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#ifndef TINYSERVE_BASE_RANDOM_H_
#define TINYSERVE_BASE_RANDOM_H_

#include <cstdint>

namespace tinyserve {

constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15u;

// Its finaliser: every bit of the result hangs on every bit of z.
constexpr uint64_t MixBits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return MixBits(state_ += kGoldenGamma); }

 private:
  uint64_t state_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_RANDOM_H_
