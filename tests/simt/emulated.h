// kernels/cuda/simt.h for the host: the same names, every access checked (tests/simt/emulator.h).
#ifndef TINYSERVE_TESTS_SIMT_EMULATED_H_
#define TINYSERVE_TESTS_SIMT_EMULATED_H_

#include <bit>
#include <cmath>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "tensor/convert.h"
#include "tests/simt/emulated_runtime.h"
#include "tests/simt/emulator.h"
#include "tinyserve/status.h"

#define TS_KERNEL static void
#define TS_BOUNDED_KERNEL(threads) static void
#define TS_RESIDENT_KERNEL(threads, blocks) static void
#define TS_DEVICE inline
#define TS_UNROLL

namespace tinyserve::simt {

// What a thread loads or stores at once.
template <class V>
constexpr bool kOneAccess = std::is_trivially_copyable_v<V>&& std::has_single_bit(sizeof(V)) &&
                            sizeof(V) <= 16;

}  // namespace tinyserve::simt

namespace tinyserve::cuda {

using Site = std::source_location;

// ---- launches -----------------------------------------------------------------------------------

template <class... Parameters, class... Arguments>
Status Launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments... arguments) {
  return simt::LaunchInStream(config, [=] { kernel(arguments...); });
}

// ---- threads ------------------------------------------------------------------------------------

inline uint32_t ThreadIndex() { return simt::Where().thread; }
inline uint32_t LaneIndex() { return simt::Where().thread % simt::kWarpLanes; }
inline uint32_t WarpIndex() { return simt::Where().thread / simt::kWarpLanes; }
inline uint32_t BlockThreads() { return simt::Where().threads; }
inline uint32_t BlockX() { return simt::Where().block.x; }
inline uint32_t BlockY() { return simt::Where().block.y; }
inline uint32_t BlockZ() { return simt::Where().block.z; }
inline uint32_t GridX() { return simt::Where().grid.x; }
inline uint32_t GridY() { return simt::Where().grid.y; }
inline uint32_t GridZ() { return simt::Where().grid.z; }

inline void SyncBlock(const Site& site = Site::current()) { simt::SyncBlock(site); }
inline void SyncWarp(uint32_t mask, const Site& site = Site::current()) {
  uint8_t none = 0;
  simt::Collect({.name = "SyncWarp", .mask = mask, .finish = nullptr, .orders_memory = true}, &none,
                1, site);
}
// The host's memory has one order: a missing fence is not found.
inline void Fence() {}

// A value that goes, the lane it is wanted from, and what comes back.
template <class T>
struct ShufflePayload {
  T value;
  uint32_t source;
  bool active;
};

template <class T>
void FinishShuffle(void* const (&payloads)[simt::kWarpLanes], uint32_t mask) {
  T values[simt::kWarpLanes] = {};
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    if ((mask >> lane & 1) != 0)
      values[lane] = static_cast<ShufflePayload<T>*>(payloads[lane])->value;
  }
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto* payload = static_cast<ShufflePayload<T>*>(payloads[lane]);
    payload->active = (mask >> payload->source & 1) != 0;
    payload->value = values[payload->source];
  }
}

template <class T>
T ShuffleFrom(const char* name, T value, uint32_t source, uint32_t mask, const Site& site) {
  ShufflePayload<T> payload{value, source % simt::kWarpLanes, true};
  simt::Collect({.name = name, .mask = mask, .finish = FinishShuffle<T>}, &payload, sizeof payload,
                site);
  if (!payload.active) {
    simt::Fail(std::string(name) + " reads lane " + std::to_string(payload.source) +
                   ", which is not in its mask",
               site);
  }
  return payload.value;
}

template <class T>
T Shuffle(T value, uint32_t lane, uint32_t mask, const Site& site = Site::current()) {
  return ShuffleFrom("Shuffle", value, lane, mask, site);
}
template <class T>
T ShuffleXor(T value, uint32_t lanes, uint32_t mask, const Site& site = Site::current()) {
  return ShuffleFrom("ShuffleXor", value, LaneIndex() ^ lanes, mask, site);
}
// Lanes whose source would lie past the warp keep their value.
template <class T>
T ShuffleDown(T value, uint32_t lanes, uint32_t mask, const Site& site = Site::current()) {
  const uint32_t from = LaneIndex() + lanes;
  return ShuffleFrom("ShuffleDown", value, from < simt::kWarpLanes ? from : LaneIndex(), mask,
                     site);
}

inline void FinishBallot(void* const (&payloads)[simt::kWarpLanes], uint32_t mask) {
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    if ((mask >> lane & 1) != 0 && *static_cast<uint32_t*>(payloads[lane]) != 0)
      votes |= 1u << lane;
  }
  for (void* payload : payloads) {
    if (payload != nullptr) *static_cast<uint32_t*>(payload) = votes;
  }
}
inline uint32_t Ballot(uint32_t mask, bool p, const Site& site = Site::current()) {
  uint32_t vote = p ? 1 : 0;
  simt::Collect({.name = "Ballot", .mask = mask, .finish = FinishBallot}, &vote, sizeof vote, site);
  return vote;
}
inline bool Any(uint32_t mask, bool p, const Site& site = Site::current()) {
  return Ballot(mask, p, site) != 0;
}

// ---- memory -------------------------------------------------------------------------------------

// See Get<V> in kernels/cuda/simt.h.
template <class T>
class Global {
 public:
  using Element = std::remove_const_t<T>;

  Global(Array<T> array, const char* name) : array_(array), name_(name) {}

  template <class V = Element>
  V Get(uint64_t i, const Site& site = Site::current()) const {
    static_assert(simt::kOneAccess<V>);
    V value;
    std::memcpy(&value, Touch(i, sizeof(V), simt::Access::kRead, site), sizeof value);
    return value;
  }
  template <class V = Element>
  void Set(uint64_t i, std::type_identity_t<V> value, const Site& site = Site::current()) const {
    static_assert(!std::is_const_v<T> && simt::kOneAccess<V>);
    std::memcpy(Touch(i, sizeof(V), simt::Access::kWrite, site), &value, sizeof value);
  }
  template <class V = Element>
  V GetFresh(uint64_t i, const Site& site = Site::current()) const {
    return Get<V>(i, site);
  }
  Global Part(uint64_t first, uint64_t count, const Site& site = Site::current()) const {
    if (first > array_.count || array_.count - first < count) {
      simt::Fail(std::string(name_) + ": the part from " + std::to_string(first) + " of " +
                     std::to_string(count) + " elements is outside of its " +
                     std::to_string(array_.count),
                 site);
    }
    return Global({array_.data + first, count}, name_);
  }
  T* Touch(uint64_t i, uint32_t bytes, simt::Access access, const Site& site) const {
    const simt::Element element{name_, i, array_.count, bytes};
    simt::CheckBounds(element, sizeof(T), array_.data + i, site);
    simt::TouchGlobal(array_.data + i, !std::is_const_v<T>, access, element, site);
    return array_.data + i;
  }

 private:
  Array<T> array_;
  const char* name_;
};

template <class T>
class Shared {
 public:
  using Element = T;

  Shared(uint32_t offset, uint32_t count, const char* name)
      : offset_(offset), count_(count), name_(name) {}

  template <class V = T>
  V Get(uint64_t i, const Site& site = Site::current()) const {
    static_assert(simt::kOneAccess<V>);
    V value;
    std::memcpy(&value, Touch(i, sizeof(V), simt::Access::kRead, site), sizeof value);
    return value;
  }
  template <class V = T>
  void Set(uint64_t i, std::type_identity_t<V> value, const Site& site = Site::current()) const {
    static_assert(simt::kOneAccess<V>);
    std::memcpy(Touch(i, sizeof(V), simt::Access::kWrite, site), &value, sizeof value);
  }
  template <class V>
  Shared<V> As() const {
    return Shared<V>(offset_, static_cast<uint32_t>(count_ * sizeof(T) / sizeof(V)), name_);
  }
  Shared Part(uint64_t first, uint64_t count, const Site& site = Site::current()) const {
    if (first > count_ || count_ - first < count) {
      simt::Fail(std::string(name_) + ": a part outside of it", site);
    }
    return Shared(OffsetOf(first), static_cast<uint32_t>(count), name_);
  }
  T* Touch(uint64_t i, uint32_t bytes, simt::Access access, const Site& site) const {
    T* at = Check(i, bytes, site);
    simt::TouchShared(OffsetOf(i), access, {name_, i, count_, bytes}, site);
    return at;
  }
  // Bounds alone.
  T* Check(uint64_t i, uint32_t bytes, const Site& site) const {
    const uint64_t within = i < count_ ? i : 0;  // no address is made of what is outside
    T* at = reinterpret_cast<T*>(simt::SharedAt(OffsetOf(within)));
    simt::CheckBounds({name_, i, count_, bytes}, sizeof(T), at, site);
    return at;
  }
  uint32_t OffsetOf(uint64_t i) const { return offset_ + static_cast<uint32_t>(i * sizeof(T)); }
  const char* name() const { return name_; }
  uint32_t count() const { return count_; }

 private:
  uint32_t offset_, count_;
  const char* name_;
};

class SharedArena {
 public:
  template <class T>
  Shared<T> Take(uint32_t count, const char* name, const Site& site = Site::current()) {
    const uint32_t bytes = count * static_cast<uint32_t>(sizeof(T));
    return Shared<T>(simt::TakeDynamic(&used_, bytes, name, site), count, name);
  }

 private:
  uint32_t used_ = 0;
};

#define TS_SHARED(T, name, count)                                                                  \
  static const char name##_key = 0;                                                                \
  const ::tinyserve::cuda::Shared<T> name(                                                         \
      ::tinyserve::simt::StaticAt(&name##_key, (count) * static_cast<uint32_t>(sizeof(T))), count, \
      #name)

template <class Memory, class T>
T AtomicAdd(const Memory& view, uint64_t i, T value, const Site& site = Site::current()) {
  T* at = view.Touch(i, sizeof(T), simt::Access::kAtomic, site);
  const T before = *at;
  *at = before + value;
  return before;
}
template <class Memory, class T>
T AtomicMax(const Memory& view, uint64_t i, T value, const Site& site = Site::current()) {
  T* at = view.Touch(i, sizeof(T), simt::Access::kAtomic, site);
  const T before = *at;
  *at = before > value ? before : value;
  return before;
}

template <uint32_t kBytes, class T, class U>
void CopyAsyncOf(const Shared<T>& to, uint64_t i, const Global<U>& from, uint64_t j,
                 const Site& site) {
  to.Check(i, kBytes, site);
  const U* source = from.Touch(j, kBytes, simt::Access::kRead, site);
  simt::CopyAsync(to.OffsetOf(i), source, {to.name(), i, to.count(), kBytes}, site);
}
template <class T, class U>
void CopyAsync16(const Shared<T>& to, uint64_t i, const Global<U>& from, uint64_t j,
                 const Site& site = Site::current()) {
  CopyAsyncOf<16>(to, i, from, j, site);
}
template <class T, class U>
void CopyAsync8(const Shared<T>& to, uint64_t i, const Global<U>& from, uint64_t j,
                const Site& site = Site::current()) {
  CopyAsyncOf<8>(to, i, from, j, site);
}
inline void CopyAsyncCommit() { simt::CopyAsyncCommit(); }
template <int kLeft>
void CopyAsyncWait() {
  simt::CopyAsyncWait(kLeft);
}

// ---- arithmetic ---------------------------------------------------------------------------------

inline float Float(F16 x) { return F16ToF32(x.bits); }
inline F16 ToF16(float x) { return {F32ToF16(x)}; }
inline float Float(BF16 x) { return BF16ToF32(x.bits); }
inline BF16 ToBF16(float x) { return {F32ToBF16(x)}; }
inline float Float(float x) { return x; }
inline uint32_t Bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float SquareRoot(float x) { return std::sqrt(x); }
inline float RoundEven(float x) { return std::nearbyint(x); }
inline float RoundUp(float x) { return std::ceil(x); }
inline float Exp2(float x) { return std::exp2(x); }
inline float Exp(float x) { return std::exp(x); }
inline int Dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<int8_t>(static_cast<uint32_t>(a) >> 8 * i) *
         static_cast<int8_t>(static_cast<uint32_t>(b) >> 8 * i);
  }
  return c;
}
inline uint32_t PopCount(uint32_t x) { return static_cast<uint32_t>(std::popcount(x)); }

template <class Half>
uint32_t PackHalves(float low, float high) {
  Half first, second;
  if constexpr (std::is_same_v<Half, F16>) {
    first = ToF16(low), second = ToF16(high);
  } else {
    first = ToBF16(low), second = ToBF16(high);
  }
  return first.bits | uint32_t{second.bits} << 16;
}

// A lane's row of a matrix; then what it gets.
struct MatrixPayload {
  uint16_t row[8];
  uint32_t m[4];
};

template <bool kTransposed>
void FinishMatrices(void* const (&payloads)[simt::kWarpLanes], uint32_t) {
  uint16_t rows[simt::kWarpLanes][8];
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    std::memcpy(rows[lane], static_cast<const MatrixPayload*>(payloads[lane])->row, 16);
  }
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    auto* payload = static_cast<MatrixPayload*>(payloads[lane]);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t low = kTransposed ? rows[8 * i + 2 * t][g] : rows[8 * i + g][2 * t];
      const uint32_t high = kTransposed ? rows[8 * i + 2 * t + 1][g] : rows[8 * i + g][2 * t + 1];
      payload->m[i] = low | high << 16;
    }
  }
}

template <bool kTransposed, class T>
void Matrices(const char* name, const Shared<T>& view, uint64_t i, uint32_t (&m)[4],
              const Site& site) {
  static_assert(sizeof(T) == 2);
  MatrixPayload payload{};
  std::memcpy(payload.row, view.Touch(i, 16, simt::Access::kRead, site), 16);
  simt::Collect({.name = name, .mask = 0xffffffffu, .finish = FinishMatrices<kTransposed>},
                &payload, sizeof payload, site);
  std::memcpy(m, payload.m, sizeof m);
}
template <class T>
void LoadMatrices(const Shared<T>& view, uint64_t i, uint32_t (&m)[4],
                  const Site& site = Site::current()) {
  Matrices<false>("LoadMatrices", view, i, m, site);
}
template <class T>
void LoadTransposed(const Shared<T>& view, uint64_t i, uint32_t (&m)[4],
                    const Site& site = Site::current()) {
  Matrices<true>("LoadTransposed", view, i, m, site);
}

// Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane l has, with
// g = l / 4 and t = l % 4, of a rows g and g + 8 and columns 2t, 2t + 1, 2t + 8, 2t + 9; of b these
// rows and column g; of d rows g and g + 8 and columns 2t and 2t + 1.
struct MmaPayload {
  float d[4];
  uint32_t a[4], b[2];
};

template <class Half>
void FinishMma(void* const (&payloads)[simt::kWarpLanes], uint32_t) {
  float a[16][16], b[16][8];
  const auto half = [](uint32_t pair, uint32_t i) {
    return Float(Half{static_cast<uint16_t>(pair >> 16 * i)});
  };
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    const auto* p = static_cast<const MmaPayload*>(payloads[lane]);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 2; ++i) {
      for (uint32_t r = 0; r < 4; ++r) a[g + r % 2 * 8][2 * t + i + r / 2 * 8] = half(p->a[r], i);
      for (uint32_t r = 0; r < 2; ++r) b[2 * t + i + r * 8][g] = half(p->b[r], i);
    }
  }
  for (uint32_t lane = 0; lane < simt::kWarpLanes; ++lane) {
    auto* p = static_cast<MmaPayload*>(payloads[lane]);
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (uint32_t k = 0; k < 16; ++k) p->d[i] += a[row][k] * b[k][column];
    }
  }
}

template <class Half>
void Mma(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         const Site& site) {
  MmaPayload payload;
  std::memcpy(payload.d, d, sizeof d);
  std::memcpy(payload.a, a, sizeof a);
  std::memcpy(payload.b, b, sizeof b);
  simt::Collect({.name = name, .mask = 0xffffffffu, .finish = FinishMma<Half>}, &payload,
                sizeof payload, site);
  std::memcpy(d, payload.d, sizeof d);
}
inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                   const Site& site = Site::current()) {
  Mma<F16>("MmaF16", d, a, b, site);
}
inline void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const Site& site = Site::current()) {
  Mma<BF16>("MmaBF16", d, a, b, site);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_EMULATED_H_
