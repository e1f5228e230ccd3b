// Overflow-checked unsigned arithmetic for every size that comes from a file or a request.
//   auto bytes = Checked(count) * Checked(sizeof(float)) + 16;
//   if (!bytes.valid()) return Status(...);   use(bytes.value());
// Once an operation has wrapped the result stays invalid, so one test at the end suffices.
#ifndef TINYSERVE_BASE_CHECKED_H_
#define TINYSERVE_BASE_CHECKED_H_

#include <cstdint>

#include "base/check.h"

namespace tinyserve {

class Checked {
 public:
  constexpr Checked(uint64_t value) : value_(value) {}  // NOLINT: implicit by design

  constexpr bool valid() const { return valid_; }
  // REQUIRES: valid().
  uint64_t value() const {
    TS_CHECK(valid_);
    return value_;
  }
  // True when the result is valid and at most `limit`.
  constexpr bool AtMost(uint64_t limit) const { return valid_ && value_ <= limit; }

  friend constexpr Checked operator+(Checked a, Checked b) {
    Checked r(0);
    r.valid_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  friend constexpr Checked operator-(Checked a, Checked b) {
    Checked r(0);
    r.valid_ = !__builtin_sub_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    Checked r(0);
    r.valid_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  // Rounds up to a multiple of `unit`; a unit of 0 is invalid.
  constexpr Checked RoundUp(uint64_t unit) const {
    if (unit == 0) {
      Checked r(0);
      r.valid_ = false;
      return r;
    }
    const uint64_t over = value_ % unit;
    return over == 0 ? *this : *this + Checked(unit - over);
  }

 private:
  uint64_t value_;
  bool valid_ = true;
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_CHECKED_H_
