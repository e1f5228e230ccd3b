#include "engine/pooled_state.h"

#include <cmath>

#include "base/check.h"

namespace tinyserve {

void PooledState::Add(std::span<const float> state) {
  if (sum_.empty()) sum_.resize(state.size());
  TS_CHECK(sum_.size() == state.size());
  for (size_t i = 0; i < state.size(); ++i) sum_[i] += state[i];
}

std::vector<float> PooledState::Unit() const {
  double squares = 0;
  for (const double x : sum_) squares += x * x;
  const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
  std::vector<float> unit;
  unit.reserve(sum_.size());
  for (const double x : sum_) unit.push_back(static_cast<float>(x * scale));
  return unit;
}

}  // namespace tinyserve
