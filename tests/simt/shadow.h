// Who touched a byte last, and whether the next access is ordered after that.
//
// Two accesses of a byte by different threads of a block, one of them a write, are a race unless
// a barrier lies between them: SyncBlock for any two threads, SyncWarp for two lanes of its mask.
// Barriers of blocks are counted (epochs); those of warps are followed by vector clocks, so that
// masks of any kind are exact. Atomics do not race with atomics.
#ifndef TINYSERVE_TESTS_SIMT_SHADOW_H_
#define TINYSERVE_TESTS_SIMT_SHADOW_H_

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace tinyserve::simt {

constexpr uint32_t kWarpLanes = 32;

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// What ordering knows of a thread at the time of an access.
struct Moment {
  uint32_t thread;
  uint32_t block;                                 // serial number within the launch, from 1
  uint32_t epoch;                                 // barriers of the block so far
  const std::array<uint32_t, kWarpLanes>* clock;  // of the thread's warp, as the thread knows it

  uint32_t lane() const { return thread % kWarpLanes; }
  uint32_t warp() const { return thread / kWarpLanes; }
  uint32_t now() const { return (*clock)[lane()]; }
};

enum class Fault : uint8_t { kNone, kUnwritten, kPendingCopy, kRace };

struct FaultFound {
  Fault fault = Fault::kNone;
  uint32_t other = 0;          // thread, of kRace and kPendingCopy
  bool other_is_warp = false;  // then `other` is the warp's first thread
  bool other_wrote = false;
};

class ByteShadow {
 public:
  // An access now. `must_be_written`: reading what no thread of the block has written is a fault.
  FaultFound Touch(const Moment& at, Access access, bool must_be_written);
  // A copy into the byte is on its way: nobody may touch it before it has arrived.
  FaultFound BeginCopy(const Moment& at);
  void EndCopy(const Moment& at);

 private:
  void Renew(const Moment& at);
  bool OrderedAfter(const Moment& at, uint32_t thread, uint32_t clock) const;
  FaultFound CheckWriter(const Moment& at, Access access) const;
  FaultFound CheckReaders(const Moment& at) const;
  void AddReader(const Moment& at);
  void SetWriter(const Moment& at, bool atomic);

  uint32_t block_ = 0;  // whose accesses these are
  bool written_ = false, write_atomic_ = false, pending_ = false;
  uint16_t writer_ = 0;
  uint32_t write_epoch_ = 0, write_clock_ = 0;
  // Reads since the last write, in one epoch: by which warps, and by the lanes of the first one.
  uint16_t reader_warp_ = 0;
  uint32_t read_epoch_ = 0, warps_ = 0, lanes_ = 0;
  std::array<uint32_t, kWarpLanes> read_clocks_{};
};

// Shadows of global memory, of the bytes that a launch may write.
class GlobalShadow {
 public:
  static constexpr uint32_t kLineBytes = 64;
  // Of one byte; null where no such view has been used near it and `make` is false.
  ByteShadow* At(const void* byte, bool make);

 private:
  std::unordered_map<uintptr_t, std::unique_ptr<std::array<ByteShadow, kLineBytes>>> lines_;
};

}  // namespace tinyserve::simt

#endif  // TINYSERVE_TESTS_SIMT_SHADOW_H_
