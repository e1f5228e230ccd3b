// Quantiles of a stream of numbers in bounded memory.
#ifndef TINYSERVE_ATTEND_LOG_HISTOGRAM_H_
#define TINYSERVE_ATTEND_LOG_HISTOGRAM_H_

#include <cstdint>
#include <vector>

namespace tinyserve {

// Counts in bins of equal width on a logarithmic scale, from 1e-9 to 1e3; what lies outside is in
// the outermost ones. A quantile is the upper end of its bin: at most 3.7 % too large.
class LogHistogram {
 public:
  LogHistogram();

  // REQUIRES: finite, not negative.
  void Add(double value);

  uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double max() const { return max_; }
  // At least `share` of the numbers are no larger; 0 of nothing.
  double Quantile(double share) const;

 private:
  std::vector<uint64_t> bins_;
  uint64_t count_ = 0;
  double sum_ = 0, max_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_LOG_HISTOGRAM_H_
