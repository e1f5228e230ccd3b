#include "tests/simt/emulator.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/random.h"

namespace tinyserve::simt {
namespace {

namespace context = boost::context;

uint64_t g_seed = 1;

// ---- stacks -------------------------------------------------------------------------------------

// Stacks of fibers, kept for the next block: a kernel's own variables, with a guard page below.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10, kGuardBytes = 4096;

  context::stack_context allocate() {
    context::stack_context stack;
    if (free_.empty()) {
      void* at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      TS_CHECK(at != MAP_FAILED);
      TS_CHECK(mprotect(at, kGuardBytes, PROT_NONE) == 0);
      free_.push_back(static_cast<uint8_t*>(at));
    }
    stack.size = kBytes;
    stack.sp = free_.back() + kBytes;
    free_.pop_back();
    return stack;
  }
  void deallocate(context::stack_context& stack) {
    free_.push_back(static_cast<uint8_t*>(stack.sp) - kBytes);
  }

 private:
  std::vector<uint8_t*> free_;
};

// What a fiber holds of them.
struct StackSource {
  Stacks* stacks;
  context::stack_context allocate() { return stacks->allocate(); }
  void deallocate(context::stack_context& stack) { stacks->deallocate(stack); }
};

Stacks g_stacks;

// ---- threads and blocks -------------------------------------------------------------------------

enum class State : uint8_t { kReady, kAtBlock, kAtWarp, kReturned };

struct Copy {
  uint32_t offset, bytes;
  const void* from;
};

struct Thread {
  Here here;
  State state = State::kReady;
  Site site;        // where it waits
  WarpStep step{};  // that it waits for
  alignas(16) uint8_t payload[kPayloadBytes];
  std::array<uint32_t, kWarpLanes> clock{};
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  context::fiber scheduler, fiber;  // goes first, for it may hold references to the others

  uint32_t lane() const { return here.thread % kWarpLanes; }
};

std::string Place(const Site& site) {
  const std::string path = site.file_name();
  return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), site.line());
}

class Launch {
 public:
  Launch(const cuda::LaunchConfig& config, const std::function<void()>& body)
      : config_(config), body_(body), random_(g_seed) {}

  Status RunAll();

  Thread& current() { return *current_; }
  Moment Now() const {
    return {.thread = current_->here.thread,
            .block = block_serial_,
            .epoch = epoch_,
            .clock = &current_->clock};
  }
  [[noreturn]] void Fail(const std::string& what, const Site& site);
  void SyncBlock(const Site& site);
  void Collect(const WarpStep& step, void* payload, uint32_t bytes, const Site& site);
  void Report(const FaultFound& found, Access access, const char* space, const Element& element,
              const Site& site);

  const cuda::LaunchConfig& config() const { return config_; }
  std::vector<uint8_t>& shared() { return shared_; }
  std::vector<ByteShadow>& shared_shadow() { return shared_shadow_; }
  GlobalShadow& global_shadow() { return global_shadow_; }
  uint32_t StaticAt(const void* key, uint32_t bytes);

 private:
  void RunBlock(const cuda::Grid& block);
  void Start(uint32_t index, const cuda::Grid& block);
  void Suspend();
  void Wake(Thread* thread);
  void ReleaseBlock();
  std::string Stall() const;
  void CheckLanes(const WarpStep& step, const Site& site);
  void JoinClocks(uint32_t warp, uint32_t mask);

  const cuda::LaunchConfig& config_;
  const std::function<void()>& body_;
  SplitMix64 random_;
  std::vector<std::unique_ptr<Thread>> threads_;  // of the block
  std::vector<Thread*> ready_;
  Thread* current_ = nullptr;
  uint32_t block_serial_ = 0, epoch_ = 0, at_barrier_ = 0, returned_ = 0;
  std::vector<uint8_t> shared_;  // dynamic, then static
  std::vector<ByteShadow> shared_shadow_;
  std::map<const void*, uint32_t> statics_;
  GlobalShadow global_shadow_;
  std::string fault_;
};

Launch* g_launch = nullptr;

void Launch::Suspend() {
  Thread* self = current_;
  self->scheduler = std::move(self->scheduler).resume();
}

void Launch::Wake(Thread* thread) {
  thread->state = State::kReady;
  ready_.push_back(thread);
}

void Launch::Fail(const std::string& what, const Site& site) {
  const Here& here = current_->here;
  if (fault_.empty()) {
    fault_ = fmt::format("kernel {}, block ({}, {}, {}), thread {}, {}: {}", config_.kernel,
                         here.block.x, here.block.y, here.block.z, here.thread, Place(site), what);
  }
  current_->state = State::kAtWarp;  // never to be woken: the block is taken down
  while (true) Suspend();
}

void Launch::Start(uint32_t index, const cuda::Grid& block) {
  auto& thread = threads_.emplace_back(std::make_unique<Thread>());
  thread->here = {
      .thread = index, .threads = config_.threads, .block = block, .grid = config_.grid};
  thread->clock[index % kWarpLanes] = 1;
  Thread* self = thread.get();
  self->fiber = context::fiber(std::allocator_arg, StackSource{&g_stacks},
                               [this, self](context::fiber&& scheduler) {
                                 self->scheduler = std::move(scheduler);
                                 body_();
                                 self->state = State::kReturned;
                                 return std::move(self->scheduler);
                               });
  ready_.push_back(self);
}

// What the threads wait for that none of them can bring about.
std::string Launch::Stall() const {
  std::string text;
  uint32_t listed = 0;
  for (const auto& thread : threads_) {
    if (thread->state == State::kReady || listed == 6) continue;
    ++listed;
    text += fmt::format(
        "{}thread {} {}", listed > 1 ? ", " : "", thread->here.thread,
        thread->state == State::kReturned
            ? std::string("has returned")
            : fmt::format("waits in {} at {}",
                          thread->state == State::kAtBlock ? "SyncBlock" : thread->step.name,
                          Place(thread->site)));
  }
  return text;
}

void Launch::RunBlock(const cuda::Grid& block) {
  ++block_serial_;
  epoch_ = at_barrier_ = returned_ = 0;
  statics_.clear();
  shared_.assign(config_.shared_bytes, 0xcd);
  shared_shadow_.resize(std::max<size_t>(shared_shadow_.size(), config_.shared_bytes));
  ready_.clear();
  for (uint32_t i = 0; i < config_.threads; ++i) Start(i, block);
  while (fault_.empty() && !ready_.empty()) {
    std::swap(ready_[random_.Next() % ready_.size()], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    current_->fiber = std::move(current_->fiber).resume();
    if (current_->state != State::kReturned) continue;
    ++returned_;
    if (at_barrier_ == 0 || at_barrier_ + returned_ < config_.threads || !fault_.empty()) continue;
    fault_ = fmt::format("kernel {}, block ({}, {}, {}): not all threads reach a barrier: {}",
                         config_.kernel, block.x, block.y, block.z, Stall());
  }
  if (fault_.empty() && returned_ < config_.threads) {
    fault_ = fmt::format("kernel {}, block ({}, {}, {}): no thread can go on: {}", config_.kernel,
                         block.x, block.y, block.z, Stall());
  }
  threads_.clear();  // unwinds those that were stopped
}

Status Launch::RunAll() {
  const cuda::Grid& grid = config_.grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (blocks == 0 || blocks > 1u << 24 || config_.threads == 0 || config_.threads > 1024 ||
      config_.threads % kWarpLanes != 0 || config_.shared_bytes > 227 << 10) {
    return Status(Code::kInvalidArgument,
                  fmt::format("launching {}: {} blocks of {} threads with {} bytes of shared "
                              "memory: blocks must be 1 to 2^24, threads a multiple of 32 up to "
                              "1024, shared memory at most 227 KiB",
                              config_.kernel, blocks, config_.threads, config_.shared_bytes));
  }
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) order[i] = i;
  for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_.Next() % i]);
  for (const uint32_t i : order) {
    RunBlock({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y});
    if (!fault_.empty()) return Status(Code::kInternal, fault_);
  }
  return Status();
}

void Launch::ReleaseBlock() {
  at_barrier_ = 0;
  ++epoch_;
  for (const auto& thread : threads_) Wake(thread.get());
}

void Launch::SyncBlock(const Site& site) {
  Thread& self = *current_;
  for (const auto& thread : threads_) {
    if (thread->state == State::kAtBlock && thread->site.line() != site.line()) {
      Fail(fmt::format("SyncBlock, but thread {} waits in another one, at {}", thread->here.thread,
                       Place(thread->site)),
           site);
    }
    if (thread->state == State::kAtBlock) break;  // the others were compared with it
  }
  if (returned_ > 0) Fail("SyncBlock, but not all threads reach it: some have returned", site);
  self.state = State::kAtBlock;
  self.site = site;
  if (++at_barrier_ == config_.threads) ReleaseBlock();
  Suspend();
}

// Lanes of the mask that wait elsewhere, or never will.
void Launch::CheckLanes(const WarpStep& step, const Site& site) {
  const uint32_t first = current_->here.thread / kWarpLanes * kWarpLanes;
  if ((step.mask >> current_->lane() & 1) == 0) {
    Fail(fmt::format("{} with the mask {:#010x}, in which the lane {} itself is not", step.name,
                     step.mask, current_->lane()),
         site);
  }
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    const Thread& other = *threads_[first + lane];
    if (&other == current_) continue;
    const bool wanted = (step.mask >> lane & 1) != 0;
    if (wanted && other.state == State::kReturned) {
      Fail(fmt::format("{} with lane {}, which has returned", step.name, lane), site);
    }
    // Where only one waits for the other, in steps of parts of the warp, it may still come.
    const bool wants_this =
        other.state == State::kAtWarp && (other.step.mask >> current_->lane() & 1) != 0;
    if (!wanted || !wants_this) continue;
    if (other.step.mask != step.mask || other.step.finish != step.finish ||
        other.site.line() != site.line()) {
      Fail(fmt::format("{} with the mask {:#010x}, but lane {} waits in {} with {:#010x} at {}",
                       step.name, step.mask, lane, other.step.name, other.step.mask,
                       Place(other.site)),
           site);
    }
  }
}

void Launch::JoinClocks(uint32_t warp, uint32_t mask) {
  std::array<uint32_t, kWarpLanes> joined{};
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const auto& clock = threads_[warp * kWarpLanes + lane]->clock;
    for (uint32_t i = 0; i < kWarpLanes; ++i) joined[i] = std::max(joined[i], clock[i]);
  }
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& clock = threads_[warp * kWarpLanes + lane]->clock;
    clock = joined;
    ++clock[lane];
  }
}

void Launch::Collect(const WarpStep& step, void* payload, uint32_t bytes, const Site& site) {
  Thread& self = *current_;
  TS_CHECK(bytes <= kPayloadBytes);
  CheckLanes(step, site);
  std::memcpy(self.payload, payload, bytes);
  self.step = step;
  self.site = site;
  self.state = State::kAtWarp;
  const uint32_t warp = self.here.thread / kWarpLanes;
  void* payloads[kWarpLanes] = {};
  bool all = true;
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    if ((step.mask >> lane & 1) == 0) continue;
    Thread& other = *threads_[warp * kWarpLanes + lane];
    all &= other.state == State::kAtWarp && other.step.mask == step.mask;
    payloads[lane] = other.payload;
  }
  if (all) {
    if (step.finish != nullptr) step.finish(payloads, step.mask);
    if (step.orders_memory) JoinClocks(warp, step.mask);
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      if (payloads[lane] != nullptr) Wake(threads_[warp * kWarpLanes + lane].get());
    }
  }
  Suspend();
  std::memcpy(payload, self.payload, bytes);
}

void Launch::Report(const FaultFound& found, Access access, const char* space,
                    const Element& element, const Site& site) {
  if (found.fault == Fault::kNone) return;
  const char* verb = access == Access::kRead    ? "reads"
                     : access == Access::kWrite ? "writes"
                                                : "updates";
  const std::string what =
      fmt::format("{} {}[{}] in {} memory", verb, element.view, element.index, space);
  switch (found.fault) {
    case Fault::kNone:
      return;
    case Fault::kUnwritten:
      Fail(what + ", which no thread of the block has written", site);
    case Fault::kPendingCopy:
      Fail(fmt::format("{}, into which a copy of thread {} is still on its way", what, found.other),
           site);
    case Fault::kRace:
      Fail(fmt::format("{}, which {} {} {} since the last barrier between them: a race", what,
                       found.other_is_warp ? "the warp of thread" : "thread", found.other,
                       found.other_wrote ? "has written" : "has read"),
           site);
  }
}

uint32_t Launch::StaticAt(const void* key, uint32_t bytes) {
  const auto found = statics_.find(key);
  if (found != statics_.end()) return found->second;
  const auto at = static_cast<uint32_t>((shared_.size() + 15) / 16 * 16);
  shared_.resize(at + bytes, 0xcd);
  shared_shadow_.resize(std::max(shared_shadow_.size(), shared_.size()));
  statics_.emplace(key, at);
  return at;
}

Launch& Running() {
  TS_CHECK(g_launch != nullptr);
  return *g_launch;
}

}  // namespace

void SetSeed(uint64_t seed) { g_seed = seed; }

Status Run(const cuda::LaunchConfig& config, const std::function<void()>& thread) {
  TS_CHECK(g_launch == nullptr);
  Launch launch(config, thread);
  g_launch = &launch;
  Status status = launch.RunAll();
  g_launch = nullptr;
  return status;
}

const Here& Where() { return Running().current().here; }

void SyncBlock(const Site& site) { Running().SyncBlock(site); }

void Collect(const WarpStep& step, void* payload, uint32_t bytes, const Site& site) {
  Running().Collect(step, payload, bytes, site);
}

void Fail(const std::string& what, const Site& site) { Running().Fail(what, site); }

void CheckBounds(const Element& element, uint32_t element_bytes, const void* address,
                 const Site& site) {
  const uint64_t elements = (element.bytes + element_bytes - 1) / element_bytes;
  if (element.index >= element.count || element.count - element.index < elements) {
    Fail(fmt::format("{}[{}], {} bytes, is outside of its {} elements of {} bytes", element.view,
                     element.index, element.bytes, element.count, element_bytes),
         site);
  }
  if (reinterpret_cast<uintptr_t>(address) % element.bytes != 0) {
    Fail(fmt::format("{}[{}], {} bytes, is not aligned to them", element.view, element.index,
                     element.bytes),
         site);
  }
}

uint32_t TakeDynamic(uint32_t* used, uint32_t bytes, const char* view, const Site& site) {
  const uint32_t at = *used, all = Running().config().shared_bytes;
  if (at > all || all - at < bytes) {
    Fail(fmt::format("{}: {} bytes at {} are outside of the {} bytes of dynamic shared memory",
                     view, bytes, at, all),
         site);
  }
  *used = at + (bytes + 15) / 16 * 16;
  return at;
}

uint32_t StaticAt(const void* key, uint32_t bytes) { return Running().StaticAt(key, bytes); }

uint8_t* SharedAt(uint32_t offset) { return Running().shared().data() + offset; }

void TouchShared(uint32_t offset, Access access, const Element& element, const Site& site) {
  Launch& launch = Running();
  const Moment now = launch.Now();
  for (uint32_t i = 0; i < element.bytes; ++i) {
    launch.Report(launch.shared_shadow()[offset + i].Touch(now, access, true), access, "shared",
                  element, site);
  }
}

void TouchGlobal(const void* address, bool writable, Access access, const Element& element,
                 const Site& site) {
  Launch& launch = Running();
  const Moment now = launch.Now();
  ByteShadow* shadow = launch.global_shadow().At(address, writable);
  if (shadow == nullptr) return;
  // An access is aligned to its size, so it lies within a line.
  for (uint32_t i = 0; i < element.bytes; ++i) {
    launch.Report(shadow[i].Touch(now, access, false), access, "global", element, site);
  }
}

void CopyAsync(uint32_t offset, const void* from, const Element& to, const Site& site) {
  Launch& launch = Running();
  const Moment now = launch.Now();
  for (uint32_t i = 0; i < to.bytes; ++i) {
    launch.Report(launch.shared_shadow()[offset + i].BeginCopy(now), Access::kWrite, "shared", to,
                  site);
  }
  launch.current().open_copies.push_back({offset, to.bytes, from});
}

void CopyAsyncCommit() {
  Thread& self = Running().current();
  self.copy_groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

// Copies arrive as late as they may.
void CopyAsyncWait(uint32_t left) {
  Launch& launch = Running();
  Thread& self = launch.current();
  const Moment now = launch.Now();
  for (; self.copy_groups.size() > left; self.copy_groups.pop_front()) {
    for (const Copy& copy : self.copy_groups.front()) {
      std::memcpy(SharedAt(copy.offset), copy.from, copy.bytes);
      for (uint32_t i = 0; i < copy.bytes; ++i)
        launch.shared_shadow()[copy.offset + i].EndCopy(now);
    }
  }
}

}  // namespace tinyserve::simt
