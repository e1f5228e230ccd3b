#include "engine/latency_tuner.h"

#include <algorithm>

#include "base/check.h"

namespace tinyserve {
namespace {

// A rung down leaves so much of what it makes smaller.
constexpr double kRungShare = 0.75;
// A rung up that lasts so many windows was right.
constexpr uint32_t kProven = 4;

}  // namespace

LatencyTuner::LatencyTuner(const TunerBounds& bounds) : target_(bounds.target_seconds) {
  TS_CHECK(target_ > 0 && bounds.chunk_tokens >= kChunkLeast && bounds.sequences >= 1 &&
           bounds.ratio_min <= bounds.ratio);
  Setting setting{
      .chunk_tokens = bounds.chunk_tokens, .ratio = bounds.ratio, .sequences = bounds.sequences};
  ladder_.push_back(setting);
  while (setting.chunk_tokens > kChunkLeast) {
    const auto less = static_cast<uint32_t>(kRungShare * setting.chunk_tokens);
    setting.chunk_tokens = std::max(kChunkLeast, less / kChunkLeast * kChunkLeast);
    ladder_.push_back(setting);
  }
  while (setting.ratio > bounds.ratio_min) {
    setting.ratio = std::max(bounds.ratio_min, kRungShare * setting.ratio);
    ladder_.push_back(setting);
  }
  while (setting.sequences > 1) {
    setting.sequences = std::max(1u, static_cast<uint32_t>(kRungShare * setting.sequences));
    ladder_.push_back(setting);
  }
}

bool LatencyTuner::MoveTo(uint32_t rung) {
  went_up_ = rung < rung_;
  rung_ = rung;
  quiet_ = 0;
  ++moves_;
  return true;
}

bool LatencyTuner::Observe(double seconds) {
  sum_ += seconds;
  if (++steps_ < kWindowSteps) return false;
  window_seconds_ = sum_ / steps_;
  sum_ = 0;
  steps_ = 0;
  ++quiet_;
  if (went_up_ && quiet_ >= kProven) hold_ = 1;
  if (window_seconds_ > target_ && rung_ + 1 < ladder_.size()) {
    if (went_up_ && quiet_ < kProven) hold_ = std::min(kHoldMost, 2 * hold_);
    return MoveTo(rung_ + 1);
  }
  const bool may_rise = rung_ > 0 && quiet_ >= hold_ && window_seconds_ < kFar * target_;
  return may_rise && MoveTo(rung_ - 1);
}

TuningStats StatsOf(const LatencyTuner& tuner) {
  return {.rung = tuner.rung(),
          .rungs = tuner.rungs(),
          .moves = tuner.moves(),
          .step_seconds = tuner.window_seconds(),
          .chunk_tokens = tuner.setting().chunk_tokens,
          .ratio = tuner.setting().ratio,
          .sequences = tuner.setting().sequences};
}

}  // namespace tinyserve
