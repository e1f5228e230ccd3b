#include "attend/log_histogram.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace tinyserve {
namespace {

constexpr int kLowPower = -9, kHighPower = 3, kBinsPerPower = 64;
constexpr size_t kBins = (kHighPower - kLowPower) * kBinsPerPower;

}  // namespace

LogHistogram::LogHistogram() : bins_(kBins) {}

void LogHistogram::Add(double value) {
  TS_CHECK(std::isfinite(value) && value >= 0);
  const double place = value > 0 ? (std::log10(value) - kLowPower) * kBinsPerPower : 0;
  ++bins_[static_cast<size_t>(std::clamp(place, 0.0, static_cast<double>(kBins - 1)))];
  ++count_;
  sum_ += value;
  max_ = std::max(max_, value);
}

double LogHistogram::Quantile(double share) const {
  const auto wanted = static_cast<uint64_t>(std::ceil(share * static_cast<double>(count_)));
  uint64_t seen = 0;
  for (size_t i = 0; i < kBins; ++i) {
    seen += bins_[i];
    if (seen == 0 || seen < wanted) continue;
    if (i + 1 == kBins) return max_;
    const double end = kLowPower + static_cast<double>(i + 1) / kBinsPerPower;
    return std::min(max_, std::pow(10.0, end));
  }
  return max_;
}

}  // namespace tinyserve
