// How much of a prompt a step may hold beside tokens of generation.
#ifndef TINYSERVE_ENGINE_CHUNK_SIZER_H_
#define TINYSERVE_ENGINE_CHUNK_SIZER_H_

#include <cstdint>

namespace tinyserve {

// A prompt that arrives makes the steps of running streams longer. Chunks are kept so small that a
// step with one takes a fixed multiple of the time of one without, by the times that steps took:
// streams stay readable, and prompts still get more than half of the machine. Times come in; pure.
class ChunkSizer {
 public:
  // Of a step without a prompt, what its prompt tokens may take.
  static constexpr double kPromptShare = 1.25;
  static constexpr uint32_t kLeast = 16;

  // most: tokens of a step, at least kLeast.
  explicit ChunkSizer(uint32_t most) : most_(most) {}

  // A step took so long: with `generated` tokens of generation and `prompt` tokens of prompts.
  void Observe(uint32_t generated, uint32_t prompt, double seconds);
  // Prompt tokens of the next step that generates.
  uint32_t tokens() const;

 private:
  const uint32_t most_;
  double generated_seconds_ = 0;  // of a step that only generates; 0: none was seen
  double prompt_seconds_ = 0;     // of a token; 0: none was seen
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_CHUNK_SIZER_H_
