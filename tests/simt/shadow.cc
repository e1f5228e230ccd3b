#include "tests/simt/shadow.h"

namespace tinyserve::simt {

void ByteShadow::Renew(const Moment& at) {
  if (block_ == at.block) return;
  block_ = at.block;
  written_ = pending_ = false;
  warps_ = lanes_ = 0;
}

bool ByteShadow::OrderedAfter(const Moment& at, uint32_t thread, uint32_t clock) const {
  if (thread == at.thread) return true;
  return thread / kWarpLanes == at.warp() && (*at.clock)[thread % kWarpLanes] >= clock;
}

FaultFound ByteShadow::CheckWriter(const Moment& at, Access access) const {
  if (pending_) return {.fault = Fault::kPendingCopy, .other = writer_};
  if (!written_ || write_epoch_ != at.epoch) return {};
  if (access == Access::kAtomic && write_atomic_) return {};
  if (OrderedAfter(at, writer_, write_clock_)) return {};
  return {.fault = Fault::kRace, .other = writer_, .other_wrote = true};
}

FaultFound ByteShadow::CheckReaders(const Moment& at) const {
  if (read_epoch_ != at.epoch) return {};
  const uint32_t others = warps_ & ~(1u << at.warp());
  if (others != 0) {
    return {.fault = Fault::kRace,
            .other = static_cast<uint32_t>(__builtin_ctz(others)) * kWarpLanes,
            .other_is_warp = true};
  }
  if (warps_ == 0 || reader_warp_ != at.warp()) return {};
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    const uint32_t thread = at.warp() * kWarpLanes + lane;
    if ((lanes_ >> lane & 1) != 0 && !OrderedAfter(at, thread, read_clocks_[lane])) {
      return {.fault = Fault::kRace, .other = thread};
    }
  }
  return {};
}

void ByteShadow::AddReader(const Moment& at) {
  if (read_epoch_ != at.epoch || warps_ == 0) {
    read_epoch_ = at.epoch;
    warps_ = lanes_ = 0;
    reader_warp_ = static_cast<uint16_t>(at.warp());
  }
  warps_ |= 1u << at.warp();
  // A write after reads by two warps is a race whoever writes: lanes of the first are enough.
  if (reader_warp_ != at.warp()) return;
  lanes_ |= 1u << at.lane();
  read_clocks_[at.lane()] = at.now();
}

void ByteShadow::SetWriter(const Moment& at, bool atomic) {
  written_ = true;
  write_atomic_ = atomic;
  writer_ = static_cast<uint16_t>(at.thread);
  write_epoch_ = at.epoch;
  write_clock_ = at.now();
  warps_ = lanes_ = 0;
}

FaultFound ByteShadow::Touch(const Moment& at, Access access, bool must_be_written) {
  Renew(at);
  FaultFound found = CheckWriter(at, access);
  if (found.fault != Fault::kNone) return found;
  if (access != Access::kWrite && must_be_written && !written_) return {Fault::kUnwritten};
  if (access == Access::kRead) {
    AddReader(at);
    return {};
  }
  found = CheckReaders(at);
  if (found.fault == Fault::kNone) SetWriter(at, access == Access::kAtomic);
  return found;
}

FaultFound ByteShadow::BeginCopy(const Moment& at) {
  Renew(at);
  FaultFound found = CheckWriter(at, Access::kWrite);
  if (found.fault == Fault::kNone) found = CheckReaders(at);
  if (found.fault != Fault::kNone) return found;
  SetWriter(at, false);
  pending_ = true;
  return {};
}

void ByteShadow::EndCopy(const Moment& at) {
  pending_ = false;
  SetWriter(at, false);
}

ByteShadow* GlobalShadow::At(const void* byte, bool make) {
  const auto address = reinterpret_cast<uintptr_t>(byte);
  const uintptr_t line = address / kLineBytes;
  auto found = lines_.find(line);
  if (found == lines_.end()) {
    if (!make) return nullptr;
    found = lines_.emplace(line, std::make_unique<std::array<ByteShadow, kLineBytes>>()).first;
  }
  return &(*found->second)[address % kLineBytes];
}

}  // namespace tinyserve::simt
