// The emulator itself: what kernels compute by it, and that each of its checks finds its fault.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

template <class T>
Array<T> ArrayOf(std::vector<T>& values) {
  return {values.data(), values.size()};
}

// Runs a kernel under several orders of blocks and threads; the first message, or "".
template <class... Parameters, class... Arguments>
std::string Faults(const LaunchConfig& config, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    simt::SetSeed(seed);
    if (const Status status = Launch(config, kernel, arguments...); !status.ok()) {
      return status.message();
    }
  }
  return "";
}

void ExpectWords(const std::string& message, const std::vector<std::string>& words) {
  EXPECT_NE(message, "") << "nothing was found";
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << "no '" << word << "' in: " << message;
  }
}

// ---- right kernels ------------------------------------------------------------------------------

// Sums by shuffles within warps, by shared memory over them, by an atomic over blocks.
TS_KERNEL SumKernel(Array<const float> numbers_in, Array<float> sum_out) {
  const Global<const float> numbers(numbers_in, "numbers");
  const Global<float> sum(sum_out, "sum");
  TS_SHARED(float, parts, 32);
  const uint64_t i = uint64_t{BlockX()} * BlockThreads() + ThreadIndex();
  const float part = WarpSum(i < numbers_in.count ? numbers.Get(i) : 0.0f);
  if (LaneIndex() == 0) parts.Set(WarpIndex(), part);
  SyncBlock();
  if (ThreadIndex() != 0) return;
  float total = 0;
  for (uint32_t w = 0; w < BlockThreads() / kWarpLanes; ++w) total += parts.Get(w);
  AtomicAdd(sum, 0, total);
}

TEST(Emulator, SumsOfBlocksAndWarps) {
  std::vector<float> numbers(1000);
  std::iota(numbers.begin(), numbers.end(), 1.0f);
  const Array<const float> in{numbers.data(), numbers.size()};
  for (uint64_t seed = 1; seed < 5; ++seed) {
    simt::SetSeed(seed);
    std::vector<float> sum(1);
    const Status status =
        Launch({.kernel = "SumKernel", .grid = {4}, .threads = 256}, SumKernel, in, ArrayOf(sum));
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(sum[0], 500500.0f);
  }
}

// Votes, shuffles of parts of a warp, dynamic shared memory, several blocks.
TS_KERNEL WarpKernel(Array<uint32_t> out_array) {
  const Global<uint32_t> out(out_array, "out");
  SharedArena arena;
  const Shared<uint32_t> rows = arena.Take<uint32_t>(64, "rows");
  const uint32_t lane = LaneIndex();
  const uint32_t odd = Ballot(kAllLanes, lane % 2 == 1);
  const uint32_t mask = lane < 16 ? 0xffffu : 0xffff0000u;
  uint32_t value = ShuffleXor(lane, 15, mask);
  value += 100 * ShuffleDown(lane, 4, kAllLanes);
  rows.Set(ThreadIndex(), value);
  SyncWarp(mask);
  const uint32_t neighbour = rows.Get(ThreadIndex() ^ 1);
  out.Set(BlockX() * 64 + ThreadIndex(), neighbour + (odd == 0xaaaaaaaau ? 0 : 1000000));
}

TEST(Emulator, ShufflesVotesAndPartsOfWarps) {
  std::vector<uint32_t> out(128);
  const LaunchConfig config{
      .kernel = "WarpKernel", .grid = {2}, .threads = 64, .shared_bytes = 256};
  ASSERT_EQ(Faults(config, WarpKernel, ArrayOf(out)), "");
  for (uint32_t i = 0; i < 128; ++i) {
    const uint32_t lane = i % 32 ^ 1;
    EXPECT_EQ(out[i], (lane ^ 15) + 100 * (lane + 4 < 32 ? lane + 4 : lane)) << i;
  }
}

// Two stages of copies in flight, as attention has them.
TS_KERNEL CopyKernel(Array<const float> in_array, Array<float> out_array) {
  const Global<const float> in(in_array, "in");
  const Global<float> out(out_array, "out");
  SharedArena arena;
  const Shared<float> stages = arena.Take<float>(2 * 128, "stages");
  const uint32_t steps = static_cast<uint32_t>(in_array.count / 128), t = ThreadIndex();
  CopyAsync16(stages, 4 * t, in, 4 * t);
  CopyAsyncCommit();
  float sum = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      CopyAsync16(stages, (step + 1) % 2 * 128 + 4 * t, in, (step + 1) * 128 + 4 * t);
    }
    CopyAsyncCommit();
    CopyAsyncWait<1>();
    SyncBlock();
    sum += stages.Get(step % 2 * 128 + 127 - t);
    SyncBlock();
  }
  out.Set(t, sum);
}

TEST(Emulator, CopiesInStages) {
  std::vector<float> in(128 * 5), out(32);
  std::iota(in.begin(), in.end(), 0.0f);
  const LaunchConfig config{.kernel = "CopyKernel", .threads = 32, .shared_bytes = 1024};
  ASSERT_EQ(Faults(config, CopyKernel, Array<const float>{in.data(), in.size()}, ArrayOf(out)), "");
  for (uint32_t t = 0; t < 32; ++t) EXPECT_EQ(out[t], 5 * (127.0f - t) + 128 * 10) << t;
}

template <class Half>
TS_KERNEL MmaKernel(Array<const Half> a_array, Array<const Half> b_array, Array<float> d_array) {
  const Global<const Half> a(a_array, "a"), b(b_array, "b");  // [16][16], [8][16]: b by columns
  const Global<float> d(d_array, "d");                        // [16][8]
  const uint32_t g = LaneIndex() / 4, t = LaneIndex() % 4;
  uint32_t fa[4], fb[2];
  float fd[4] = {1, 1, 1, 1};
  for (uint32_t r = 0; r < 4; ++r) {
    fa[r] = a.template Get<uint32_t>((g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8);
  }
  for (uint32_t r = 0; r < 2; ++r) fb[r] = b.template Get<uint32_t>(g * 16 + 2 * t + r * 8);
  if constexpr (std::is_same_v<Half, F16>) {
    MmaF16(fd, fa, fb);
  } else {
    MmaBF16(fd, fa, fb);
  }
  for (uint32_t i = 0; i < 4; ++i) d.Set((g + i / 2 * 8) * 8 + 2 * t + i % 2, fd[i]);
}

template <class Half>
void CheckMma(Half (*to_half)(float)) {
  SplitMix64 random(7);
  std::vector<Half> a(256), b(128);
  for (auto* halves : {&a, &b}) {
    for (Half& half : *halves) half = to_half(static_cast<float>(random.Next() % 17) - 8);
  }
  std::vector<float> d(128);
  ASSERT_EQ(Faults({.kernel = "MmaKernel", .threads = 32}, MmaKernel<Half>,
                   Array<const Half>{a.data(), a.size()}, Array<const Half>{b.data(), b.size()},
                   ArrayOf(d)),
            "");
  for (uint32_t row = 0; row < 16; ++row) {
    for (uint32_t column = 0; column < 8; ++column) {
      float want = 1;
      for (uint32_t k = 0; k < 16; ++k) want += Float(a[row * 16 + k]) * Float(b[column * 16 + k]);
      EXPECT_EQ(d[row * 8 + column], want) << row << " " << column;
    }
  }
}

TEST(Emulator, MmaMultipliesMatrices) {
  CheckMma<F16>(ToF16);
  CheckMma<BF16>(ToBF16);
}

TS_KERNEL OrderKernel(Array<uint32_t> order_array, Array<uint32_t> next_array) {
  const Global<uint32_t> order(order_array, "order"), next(next_array, "next");
  order.Set(AtomicAdd(next, 0, 1u), BlockX() * BlockThreads() + ThreadIndex());
}

TEST(Emulator, OrderFollowsFromTheSeed) {
  const auto order_of = [](uint64_t seed) {
    simt::SetSeed(seed);
    std::vector<uint32_t> order(128), next(1);
    const Status status = Launch({.kernel = "OrderKernel", .grid = {2}, .threads = 64}, OrderKernel,
                                 ArrayOf(order), ArrayOf(next));
    EXPECT_TRUE(status.ok()) << status.message();
    return order;
  };
  EXPECT_EQ(order_of(3), order_of(3));
  EXPECT_NE(order_of(3), order_of(4));
  std::vector<uint32_t> sorted = order_of(5), all(128);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0u);
  EXPECT_EQ(sorted, all);
}

TEST(Emulator, Dp4aIsSigned) {
  EXPECT_EQ(Dp4a(0x7f80ff01, 0x02030405, 10), 10 + 127 * 2 - 128 * 3 - 4 + 5);
}

// ---- planted faults -----------------------------------------------------------------------------

enum class Plant : uint8_t {
  kGlobalRead,
  kGlobalWrite,
  kGlobalPart,
  kUnaligned,
  kSharedRead,
  kSharedWrite,
  kTooMuchShared,
  kReturnBeforeBarrier,
  kOtherBarrier,
  kBarrierInOneWarp,
  kInactiveLane,
  kReturnedLane,
  kMaskWithoutSelf,
  kOtherWarpStep,
  kUnwritten,
  kUnwrittenDynamic,
  kWriteWrite,
  kReadThenWrite,
  kWriteThenRead,
  kWarpsOrderedByWarpSync,
  kShuffleIsNoBarrier,
  kHalfWarpSync,
  kAtomicThenRead,
  kCopyBeforeWait,
  kCopyWithoutBarrier,
  kCopyOverRead,
  kCopyGroupTooFew,
  kGlobalRace,
  kGlobalReadWrite,
};

// What planted faults work with.
struct Views {
  Global<float> out;
  Global<const float> in;
  SharedArena arena;
  Shared<float> row, fixed;  // dynamic and static
  uint32_t t, lane;
};

template <Plant kPlant>
void PlantBounds(Views& v) {
  if constexpr (kPlant == Plant::kGlobalRead) v.fixed.Set(v.t, v.in.Get(v.t + 1));
  if constexpr (kPlant == Plant::kGlobalWrite) v.out.Set(v.t == 5 ? 64 : v.t, 1);
  if constexpr (kPlant == Plant::kGlobalPart) v.out.Part(60, 5);
  if constexpr (kPlant == Plant::kUnaligned) v.out.Set(v.t, v.in.Get<Line<float>>(2).at[0]);
  if constexpr (kPlant == Plant::kSharedRead) v.out.Set(v.t, v.row.Get(64 + v.t));
  if constexpr (kPlant == Plant::kSharedWrite) v.fixed.Set(64 + v.t, 1);
  if constexpr (kPlant == Plant::kTooMuchShared) v.arena.Take<float>(1, "more");
}

template <Plant kPlant>
void PlantSteps(Views& v) {
  if constexpr (kPlant == Plant::kReturnBeforeBarrier) {
    if (v.t == 40) return;
    SyncBlock();
  }
  if constexpr (kPlant == Plant::kOtherBarrier) {
    if (v.t < 32) {
      SyncBlock();
    } else {
      SyncBlock();
    }
  }
  if constexpr (kPlant == Plant::kBarrierInOneWarp) {
    if (v.t == 3 || v.t >= 32) SyncBlock();
    if (v.t < 32) SyncWarp(kAllLanes);
  }
  if constexpr (kPlant == Plant::kInactiveLane) {
    if (v.lane < 16) v.out.Set(v.t, Shuffle(1.0f, v.lane + 1, 0xffff));
  }
  if constexpr (kPlant == Plant::kReturnedLane) {
    if (v.lane == 7) return;
    v.out.Set(v.t, WarpSum(1.0f));
  }
  if constexpr (kPlant == Plant::kMaskWithoutSelf) SyncWarp(0xffff);
  if constexpr (kPlant == Plant::kOtherWarpStep) {
    if (v.lane < 8) {
      SyncWarp(kAllLanes);
    } else {
      v.out.Set(v.t, ShuffleXor(1.0f, 1, kAllLanes));
    }
  }
}

template <Plant kPlant>
void PlantRaces(Views& v) {
  if constexpr (kPlant == Plant::kUnwritten) {
    if (v.t != 9) v.fixed.Set(v.t, 1);
    SyncBlock();
    v.out.Set(v.t, v.fixed.Get(v.t));
  }
  if constexpr (kPlant == Plant::kUnwrittenDynamic) v.out.Set(v.t, v.row.Get(v.t));
  if constexpr (kPlant == Plant::kWriteWrite) v.row.Set(v.t / 2, 1);
  if constexpr (kPlant == Plant::kReadThenWrite) {
    v.row.Set(v.t, 1);
    SyncBlock();
    v.out.Set(v.t, v.row.Get((v.t + 32) % 64));
    v.row.Set(v.t, 2);
  }
  if constexpr (kPlant == Plant::kWriteThenRead) {
    v.row.Set(v.t, 1);
    SyncBlock();
    v.row.Set(v.t, 2);
    v.out.Set(v.t, v.row.Get(63 - v.t));
  }
  if constexpr (kPlant == Plant::kWarpsOrderedByWarpSync) {
    v.row.Set(v.t, 1);
    SyncWarp(kAllLanes);
    SyncBlock();
    v.row.Set(v.t, 2);
    SyncWarp(kAllLanes);
    v.out.Set(v.t, v.row.Get(v.t ^ 32));
  }
  if constexpr (kPlant == Plant::kShuffleIsNoBarrier) {
    v.row.Set(v.t, 1);
    const float sum = WarpSum(1.0f);
    v.out.Set(v.t, sum + v.row.Get(v.t ^ 1));
  }
  if constexpr (kPlant == Plant::kHalfWarpSync) {
    v.row.Set(v.t, 1);
    SyncWarp(v.lane < 16 ? 0xffffu : 0xffff0000u);
    v.out.Set(v.t, v.row.Get(v.t ^ 16));
  }
  if constexpr (kPlant == Plant::kAtomicThenRead) {
    v.fixed.Set(v.t, 0);
    SyncBlock();
    AtomicAdd(v.fixed, 0, 1.0f);
    v.out.Set(v.t, v.fixed.Get(0));
  }
  if constexpr (kPlant == Plant::kGlobalRace) v.out.Set(v.t / 2, 1);
  if constexpr (kPlant == Plant::kGlobalReadWrite) {
    const float value = v.out.Get((v.t + 1) % 64);
    v.out.Set(v.t, value);
  }
}

template <Plant kPlant>
void PlantCopies(Views& v) {
  if constexpr (kPlant == Plant::kCopyBeforeWait) {
    if (v.t < 16) CopyAsync16(v.row, 4 * v.t, v.in, 4 * v.t);
    CopyAsyncCommit();
    SyncBlock();
    v.out.Set(v.t, v.row.Get(v.t));
  }
  if constexpr (kPlant == Plant::kCopyWithoutBarrier) {
    if (v.t < 16) CopyAsync16(v.row, 4 * v.t, v.in, 4 * v.t);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    v.out.Set(v.t, v.row.Get(v.t));
  }
  if constexpr (kPlant == Plant::kCopyOverRead) {
    v.row.Set(v.t, 1);
    SyncBlock();
    v.out.Set(v.t, v.row.Get(v.t));
    if (v.t < 16) CopyAsync16(v.row, 4 * v.t, v.in, 4 * v.t);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
  }
  if constexpr (kPlant == Plant::kCopyGroupTooFew) {
    for (uint32_t i = 0; i < 2; ++i) {
      if (v.t < 8) CopyAsync16(v.row, 32 * i + 4 * v.t, v.in, 4 * v.t);
      CopyAsyncCommit();
    }
    CopyAsyncWait<1>();
    SyncBlock();
    v.out.Set(v.t, v.row.Get(v.t));
  }
}

template <Plant kPlant>
TS_KERNEL FaultyKernel(Array<float> out, Array<const float> in) {
  TS_SHARED(float, fixed, 64);
  SharedArena arena;
  const Shared<float> row = arena.Take<float>(64, "row");
  Views v{{out, "out"}, {in, "in"}, arena, row, fixed, ThreadIndex(), LaneIndex()};
  PlantBounds<kPlant>(v);
  PlantSteps<kPlant>(v);
  PlantRaces<kPlant>(v);
  PlantCopies<kPlant>(v);
}

template <Plant kPlant>
std::string Found() {
  std::vector<float> out(64);
  const std::vector<float> in(64);
  const LaunchConfig config{
      .kernel = "FaultyKernel", .grid = {1, 2}, .threads = 64, .shared_bytes = 256};
  return Faults(config, FaultyKernel<kPlant>, ArrayOf(out),
                Array<const float>{in.data(), in.size()});
}

TEST(Emulator, FindsAccessesOutsideOfViews) {
  ExpectWords(Found<Plant::kGlobalRead>(), {"FaultyKernel", "block (0, ", "thread 63", "in[64]",
                                            "outside", "emulator_test.cc:"});
  ExpectWords(Found<Plant::kGlobalWrite>(), {"thread 5", "out[64]", "outside"});
  ExpectWords(Found<Plant::kGlobalPart>(), {"out", "outside"});
  ExpectWords(Found<Plant::kUnaligned>(), {"in[2]", "not aligned"});
  ExpectWords(Found<Plant::kSharedRead>(), {"row[", "outside"});
  ExpectWords(Found<Plant::kSharedWrite>(), {"fixed[", "outside"});
  ExpectWords(Found<Plant::kTooMuchShared>(), {"more", "256 bytes of dynamic shared memory"});
}

TEST(Emulator, FindsBarriersThatNotAllThreadsReach) {
  ExpectWords(Found<Plant::kReturnBeforeBarrier>(), {"FaultyKernel", "not all threads reach"});
  ExpectWords(Found<Plant::kOtherBarrier>(), {"SyncBlock", "waits in another one"});
  ExpectWords(Found<Plant::kBarrierInOneWarp>(), {"no thread can go on", "SyncBlock", "SyncWarp"});
}

TEST(Emulator, FindsWarpStepsThatNotAllLanesReach) {
  ExpectWords(Found<Plant::kInactiveLane>(), {"Shuffle reads lane 16", "not in its mask"});
  ExpectWords(Found<Plant::kReturnedLane>(), {"ShuffleXor"});
  ExpectWords(Found<Plant::kMaskWithoutSelf>(), {"SyncWarp", "itself is not"});
  ExpectWords(Found<Plant::kOtherWarpStep>(), {"SyncWarp", "ShuffleXor"});
}

TEST(Emulator, FindsReadsOfSharedMemoryThatNobodyHasWritten) {
  ExpectWords(Found<Plant::kUnwritten>(), {"thread 9", "fixed[9]", "no thread", "written"});
  ExpectWords(Found<Plant::kUnwrittenDynamic>(), {"row[", "no thread", "written"});
}

TEST(Emulator, FindsRacesBetweenBarriers) {
  ExpectWords(Found<Plant::kWriteWrite>(), {"writes row[", "shared memory", "has written", "race"});
  ExpectWords(Found<Plant::kReadThenWrite>(), {"row[", "race"});
  ExpectWords(Found<Plant::kWriteThenRead>(), {"row[", "race"});
  ExpectWords(Found<Plant::kWarpsOrderedByWarpSync>(), {"row[", "race"});
  ExpectWords(Found<Plant::kShuffleIsNoBarrier>(), {"row[", "race"});
  ExpectWords(Found<Plant::kHalfWarpSync>(), {"row[", "race"});
  ExpectWords(Found<Plant::kAtomicThenRead>(), {"fixed[0]", "race"});
  ExpectWords(Found<Plant::kGlobalRace>(), {"writes out[", "global memory", "race"});
  ExpectWords(Found<Plant::kGlobalReadWrite>(), {"out[", "global memory", "race"});
}

TEST(Emulator, FindsCopiesUsedBeforeTheyArrive) {
  ExpectWords(Found<Plant::kCopyBeforeWait>(), {"row[", "still on its way"});
  ExpectWords(Found<Plant::kCopyWithoutBarrier>(), {"row["});
  ExpectWords(Found<Plant::kCopyOverRead>(), {"row[", "race"});
  ExpectWords(Found<Plant::kCopyGroupTooFew>(), {"row[", "still on its way"});
}

TEST(Emulator, RefusesLaunchesThatNoDeviceTakes) {
  std::vector<uint32_t> out(64);
  const auto message = [&](const LaunchConfig& config) {
    return Faults(config, WarpKernel, ArrayOf(out));
  };
  ExpectWords(message({.kernel = "WarpKernel", .threads = 33}), {"WarpKernel", "multiple of 32"});
  ExpectWords(message({.kernel = "WarpKernel", .grid = {0}, .threads = 32}), {"0 blocks"});
  ExpectWords(message({.kernel = "WarpKernel", .threads = 64, .shared_bytes = 300 << 10}),
              {"227 KiB"});
}

// A launch that has failed leaves nothing behind.
TEST(Emulator, GoesOnAfterAFault) {
  ASSERT_NE(Found<Plant::kOtherBarrier>(), "");
  std::vector<uint32_t> out(64);
  EXPECT_EQ(Faults({.kernel = "WarpKernel", .threads = 64, .shared_bytes = 256}, WarpKernel,
                   ArrayOf(out)),
            "");
}

}  // namespace
}  // namespace tinyserve::cuda
