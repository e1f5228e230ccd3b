// Holds the time between two tokens at a target: what new requests read, how much of prompts a step
// takes, how many requests run.
#ifndef TINYSERVE_ENGINE_LATENCY_TUNER_H_
#define TINYSERVE_ENGINE_LATENCY_TUNER_H_

#include <cstdint>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

struct TunerBounds {
  double target_seconds;  // of a step that generates, in the mean of a window
  uint32_t chunk_tokens;  // of prompts beside generation, at most; at least kChunkLeast
  double ratio = 0;       // of pages that new requests read, at most; 0: nothing to move
  double ratio_min = 0;   // at least
  uint32_t sequences;     // that run at once, at most; at least 1
};

// Settings are rungs of one ladder, from everything allowed down: first the prompts' chunk gets
// smaller, which costs those who wait; then what new requests read, which costs quality; then how
// many run. A window of steps above the target goes a rung down; one far below it goes a rung up,
// but only after `hold` quiet windows, which double whenever a rung up was too much. So it settles
// below the target, tries the rung above ever more rarely, and comes up again when load goes. Pure:
// times come in.
class LatencyTuner {
 public:
  static constexpr uint32_t kChunkLeast = 16;
  static constexpr uint32_t kWindowSteps = 24;
  static constexpr double kFar = 0.75;       // of the target: below it there is room
  static constexpr uint32_t kHoldMost = 64;  // windows

  struct Setting {
    uint32_t chunk_tokens;
    double ratio;  // 0: as the selector says
    uint32_t sequences;
  };

  explicit LatencyTuner(const TunerBounds& bounds);

  // A step that generated took so long. True: the setting has changed.
  bool Observe(double seconds);
  const Setting& setting() const { return ladder_[rung_]; }
  const Setting& setting_of(uint32_t rung) const { return ladder_[rung]; }
  uint32_t rung() const { return rung_; }
  uint32_t rungs() const { return static_cast<uint32_t>(ladder_.size()); }
  uint64_t moves() const { return moves_; }
  double window_seconds() const { return window_seconds_; }  // the last window's mean step

 private:
  bool MoveTo(uint32_t rung);

  double target_;
  std::vector<Setting> ladder_;
  uint32_t rung_ = 0;
  uint64_t moves_ = 0;
  uint32_t steps_ = 0;
  double sum_ = 0, window_seconds_ = 0;
  uint32_t quiet_ = 0;    // windows since the last move
  uint32_t hold_ = 1;     // quiet windows before a rung up
  bool went_up_ = false;  // by the last move
};

TuningStats StatsOf(const LatencyTuner& tuner);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_LATENCY_TUNER_H_
