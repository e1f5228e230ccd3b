#include "attend/selection_counts.h"

namespace tinyserve {

void SelectionCounts::Add(const SelectionCounts& other) {
  queries += other.queries;
  pages_held += other.pages_held;
  pages_scored += other.pages_scored;
  pages_read += other.pages_read;
  pages_followed += other.pages_followed;
  pages_reused += other.pages_reused;
  tokens_read += other.tokens_read;
  bytes_read += other.bytes_read;
  bytes_held += other.bytes_held;
  multiply_adds += other.multiply_adds;
  failures += other.failures;
  score_ns += other.score_ns;
  select_ns += other.select_ns;
  attend_ns += other.attend_ns;
}

}  // namespace tinyserve
