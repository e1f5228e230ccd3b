// Many arrays in one allocation.
#ifndef TINYSERVE_DEVICE_DEVICE_ARENA_H_
#define TINYSERVE_DEVICE_DEVICE_ARENA_H_

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "kernels/cuda/device.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Memory: DeviceMemory or PinnedMemory. Arrays are named first, then allocated together.
template <class Memory>
class Arena {
 public:
  // The pointee must stay where it is until Allocate.
  template <class T>
  void Add(Array<T>* out, Checked count) {
    const Checked bytes = count * Checked(sizeof(T));
    places_.push_back(
        [out, at = end_](uint8_t* base) { out->data = reinterpret_cast<T*>(base + at.value()); });
    *out = {nullptr, count.valid() ? count.value() : 0};
    end_ = (end_ + bytes).RoundUp(kAlign);
  }
  // Errors: kOutOfMemory, those of the device.
  Status Allocate() {
    if (!end_.valid()) {
      return Status(Code::kOutOfMemory,
                    "the buffers of a step are larger than the address space: lower "
                    "step_tokens_max, sequences_max or the context");
    }
    TS_ASSIGN_OR_RETURN(memory_, Memory::Allocate(end_.value() == 0 ? kAlign : end_.value()));
    for (const auto& place : places_) place(memory_.template as<uint8_t>());
    places_.clear();
    return Status();
  }
  const Memory& memory() const { return memory_; }

 private:
  static constexpr uint64_t kAlign = 256;

  std::vector<std::function<void(uint8_t*)>> places_;
  Checked end_ = 0;
  Memory memory_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_ARENA_H_
