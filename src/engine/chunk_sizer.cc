#include "engine/chunk_sizer.h"

#include <algorithm>

namespace tinyserve {
namespace {

// Of a new time. Depth makes prompt tokens dearer while a prompt is computed, which is to be
// followed, and single steps are disturbed, which is not.
constexpr double kNew = 0.3;
// Until both times are known.
constexpr uint32_t kFirst = 64;

void Follow(double seconds, double* mean) {
  *mean = *mean == 0 ? seconds : (1 - kNew) * *mean + kNew * seconds;
}

}  // namespace

void ChunkSizer::Observe(uint32_t generated, uint32_t prompt, double seconds) {
  if (prompt == 0) {
    if (generated > 0) Follow(seconds, &generated_seconds_);
    return;
  }
  if (generated > 0 && generated_seconds_ == 0) return;
  const double of_prompt = seconds - (generated > 0 ? generated_seconds_ : 0);
  // A few tokens, or less time than generation alone took, say nothing of one token's time.
  if (prompt < kLeast || of_prompt <= 0) return;
  Follow(of_prompt / prompt, &prompt_seconds_);
}

uint32_t ChunkSizer::tokens() const {
  if (generated_seconds_ == 0 || prompt_seconds_ == 0) return std::min(kFirst, most_);
  const double fit = kPromptShare * generated_seconds_ / prompt_seconds_;
  const double whole = std::min(fit, static_cast<double>(most_));
  return std::max(kLeast, static_cast<uint32_t>(whole) / kLeast * kLeast);
}

}  // namespace tinyserve
