#include "tools/eval_figures.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace tinyserve {
namespace {

double LogSumExpDouble(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  return top + std::log(sum);
}

size_t Top(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

std::vector<uint64_t> SpreadWindows(uint64_t tokens, uint64_t window_tokens, uint64_t windows_max) {
  TS_CHECK(window_tokens > 0);
  const uint64_t held = tokens == 0 ? 0 : (tokens - 1) / window_tokens;
  const uint64_t windows = std::min(held, windows_max);
  std::vector<uint64_t> first;
  for (uint64_t w = 0; w < windows; ++w) first.push_back(w * held / windows * window_tokens);
  return first;
}

TokenComparison Compare(std::span<const float> dense, std::span<const float> method, int32_t next) {
  TS_CHECK(dense.size() == method.size() && next >= 0 && static_cast<size_t>(next) < dense.size());
  const double dense_log = LogSumExpDouble(dense), method_log = LogSumExpDouble(method);
  // sum p (log p - log q), where log p - log q = (x - y) - (dense_log - method_log) and p sums to
  // 1. Equal logits give exactly 0.
  double sum = 0;
  for (size_t i = 0; i < dense.size(); ++i) {
    const double x = dense[i], y = method[i];
    sum += std::exp(x - dense_log) * (x - y);
  }
  const auto n = static_cast<size_t>(next);
  const size_t dense_top = Top(dense), method_top = Top(method);
  return {.kl = sum - (dense_log - method_log),
          .same_top = dense_top == method_top,
          .dense_nll = dense_log - dense[n],
          .nll = method_log - method[n],
          .dense_hit = dense_top == n,
          .hit = method_top == n};
}

double Median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void MethodFigures::Add(uint32_t position, const TokenComparison& comparison) {
  position_.push_back(position);
  kl_.push_back(comparison.kl);
  difference_.push_back(comparison.nll - comparison.dense_nll);
  same_top_ += comparison.same_top ? 1 : 0;
  dense_nll_ += comparison.dense_nll;
}

double MethodFigures::kl() const {
  double sum = 0;
  for (double kl : kl_) sum += kl;
  return sum / static_cast<double>(tokens());
}

double MethodFigures::kl_se() const {
  const double n = static_cast<double>(tokens()), mean = kl();
  double squares = 0;
  for (double kl : kl_) squares += (kl - mean) * (kl - mean);
  return std::sqrt(squares / (n - 1) / n);
}

double MethodFigures::kl_quantile(double share) const {
  TS_CHECK(!kl_.empty());
  std::vector<double> sorted = kl_;
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double MethodFigures::top1() const {
  return static_cast<double>(same_top_) / static_cast<double>(tokens());
}

double MethodFigures::dense_perplexity() const {
  return std::exp(dense_nll_ / static_cast<double>(tokens()));
}

double MethodFigures::MeanDifference() const {
  double sum = 0;
  for (double d : difference_) sum += d;
  return sum / static_cast<double>(tokens());
}

double MethodFigures::dppl() const { return std::expm1(MeanDifference()); }

double MethodFigures::dppl_se() const {
  const double n = static_cast<double>(tokens()), mean = MeanDifference();
  double squares = 0;
  for (double d : difference_) squares += (d - mean) * (d - mean);
  // exp() scales the error of the mean by its own value there.
  return std::exp(mean) * std::sqrt(squares / (n - 1) / n);
}

std::vector<double> MethodFigures::KlByPosition(uint32_t period) const {
  TS_CHECK(period > 0);
  std::vector<double> sums;
  std::vector<uint64_t> counts;
  for (size_t i = 0; i < kl_.size(); ++i) {
    const size_t part = position_[i] / period;
    if (part >= sums.size()) {
      sums.resize(part + 1);
      counts.resize(part + 1);
    }
    sums[part] += kl_[i];
    ++counts[part];
  }
  for (size_t part = 0; part < sums.size(); ++part) sums[part] /= static_cast<double>(counts[part]);
  return sums;
}

}  // namespace tinyserve
