// Holding a model against its golden file (README.md says what is in one).
#ifndef TINYSERVE_TESTS_GOLDEN_GOLDEN_RUN_H_
#define TINYSERVE_TESTS_GOLDEN_GOLDEN_RUN_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "engine/cpu_executor.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "tensor/gguf.h"

namespace tinyserve::golden {

// Reference values. Everything aborts the test program where a key or tensor is missing.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path);

  std::vector<int32_t> Ints(const std::string& key) const;
  std::vector<double> Floats(const std::string& key) const;
  std::vector<std::string> Strings(const std::string& key) const;
  // Row `row` of an f32 tensor.
  std::span<const float> Row(const std::string& tensor, uint64_t row) const;

 private:
  std::unique_ptr<GgufFile> file_;
};

struct TestBenchOptions {
  const Kernels* kernels;
  Compute compute = Compute::kF32;
  std::string kv = "f32";
  uint32_t threads = 2;
  uint32_t sequence_tokens_max = 512;
  uint32_t step_tokens_max = 64;
};

// A loaded model and an executor for one sequence.
struct TestBench {
  TestBench(const std::string& model_path, const TestBenchOptions& options);

  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<CpuExecutor> executor;
};

// What a run leaves at the wanted positions, in their order.
struct RunResult {
  std::vector<std::vector<float>> logits;                      // [wanted][vocab]
  std::map<uint32_t, std::vector<std::vector<float>>> hidden;  // layer -> [wanted][dim]
};

// Runs `tokens` as one new sequence: the first `prompt_tokens` as prompt chunks that end at each
// wanted position and hold at most `chunk_tokens` tokens, the others one by one as generated
// tokens. `positions` ascend.
RunResult RunSequence(TestBench* bench, std::span<const int32_t> tokens, uint32_t prompt_tokens,
                      std::span<const int32_t> positions, std::span<const int32_t> hidden_layers,
                      uint32_t chunk_tokens);

// How far `actual` is from `expected`, in units of expected's largest magnitude. Infinite where a
// value is not finite or the sizes differ, so that no broken result is near.
struct Distance {
  double max;  // largest difference
  double rms;  // root of the mean squared difference
};
Distance DistanceOf(std::span<const float> actual, std::span<const float> expected);

}  // namespace tinyserve::golden

#endif  // TINYSERVE_TESTS_GOLDEN_GOLDEN_RUN_H_
