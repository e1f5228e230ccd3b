#include "tests/golden/golden_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

namespace tinyserve::golden {
namespace {

template <class T>
T OrDie(Result<T> result, const std::string& what) {
  if (!result.ok()) {
    fmt::print(stderr, "{}: {}\n", what, result.status().message());
    std::abort();
  }
  return std::move(result).value();
}

template <class T>
const T& ValueOf(const GgufFile& file, const std::string& key) {
  const MetaValue* value = file.Find(key);
  if (value == nullptr || !std::holds_alternative<T>(*value)) {
    fmt::print(stderr, "the golden file has no '{}' of the expected type\n", key);
    std::abort();
  }
  return std::get<T>(*value);
}

// The end of the prompt chunk that starts at `begin`.
uint32_t ChunkEnd(uint32_t begin, uint32_t prompt_tokens, std::span<const int32_t> positions,
                  uint32_t chunk_tokens) {
  uint32_t end = std::min(prompt_tokens, begin + chunk_tokens);
  for (const int32_t p : positions) {
    if (static_cast<uint32_t>(p) >= begin) return std::min(end, static_cast<uint32_t>(p) + 1);
  }
  return end;
}

}  // namespace

GoldenFile::GoldenFile(const std::string& path) : file_(OrDie(GgufFile::Open(path), path)) {}

std::vector<int32_t> GoldenFile::Ints(const std::string& key) const {
  const auto& values = ValueOf<std::vector<int64_t>>(*file_, key);
  return {values.begin(), values.end()};
}

std::vector<double> GoldenFile::Floats(const std::string& key) const {
  return ValueOf<std::vector<double>>(*file_, key);
}

std::vector<std::string> GoldenFile::Strings(const std::string& key) const {
  return ValueOf<std::vector<std::string>>(*file_, key);
}

std::span<const float> GoldenFile::Row(const std::string& tensor, uint64_t row) const {
  const StoredTensor* t = file_->FindTensor(tensor);
  if (t == nullptr || t->type != DType::kF32 || row >= t->rows) {
    fmt::print(stderr, "the golden file has no f32 tensor '{}' with a row {}\n", tensor, row);
    std::abort();
  }
  return {reinterpret_cast<const float*>(t->data) + row * t->cols, t->cols};
}

TestBench::TestBench(const std::string& model_path, const TestBenchOptions& options)
    : threads(std::make_unique<ThreadPool>(options.threads)) {
  const std::unique_ptr<GgufFile> file = OrDie(GgufFile::Open(model_path), model_path);
  model = OrDie(LoadModel(*file, {.kernels = options.kernels,
                                  .compute = options.compute,
                                  .threads = threads.get(),
                                  .progress = {}}),
                model_path);
  const ModelConfig& c = model->config();
  const uint64_t token_bytes = uint64_t{8} * c.layers * c.kv_heads * c.head_dim;
  const ExecutorOptions executor_options{
      .kv = options.kv,
      // f32 rows, and room for what pages and extents round up.
      .kv_memory_bytes = token_bytes * (options.sequence_tokens_max + 1024) + (16 << 20),
      .sequences_max = 1,
      .sequence_tokens_max = options.sequence_tokens_max,
      .step_tokens_max = options.step_tokens_max};
  executor = OrDie(CpuExecutor::Create(model.get(), options.kernels, options.compute, threads.get(),
                                       executor_options),
                   model_path);
}

RunResult RunSequence(TestBench* bench, std::span<const int32_t> tokens, uint32_t prompt_tokens,
                      std::span<const int32_t> positions, std::span<const int32_t> hidden_layers,
                      uint32_t chunk_tokens) {
  CpuExecutor* executor = bench->executor.get();
  const SequenceSlot slot = OrDie(executor->cache()->AddSequence(), "AddSequence");
  RunResult result;
  StepBatch batch;
  for (uint32_t begin = 0, end; begin < tokens.size(); begin = end) {
    const bool prompt = begin < prompt_tokens;
    end = prompt ? ChunkEnd(begin, prompt_tokens, positions, chunk_tokens) : begin + 1;
    const bool wanted =
        std::ranges::find(positions, static_cast<int32_t>(end) - 1) != positions.end();
    batch.Clear();
    batch.inputs.assign(tokens.begin() + begin, tokens.begin() + end);
    batch.rows.push_back({.slot = slot,
                          .first_position = begin,
                          .length = end - begin,
                          .first_input = 0,
                          .token_class = prompt ? TokenClass::kPrompt : TokenClass::kGenerated,
                          .want = wanted ? Want::kLogits : Want::kNothing});
    const Status reserved = executor->cache()->Reserve(slot, end);
    if (!reserved.ok()) OrDie(Result<int>(reserved), "Reserve");
    executor->Run(batch, [&](uint32_t layer, const float* hidden, uint32_t rows, uint32_t dim) {
      if (!wanted ||
          std::ranges::find(hidden_layers, static_cast<int32_t>(layer)) == hidden_layers.end()) {
        return;
      }
      const float* last = hidden + uint64_t{rows - 1} * dim;
      result.hidden[layer].emplace_back(last, last + dim);
    });
    executor->cache()->Commit(slot, end);
    if (wanted) {
      const std::span<const float> logits = executor->logits(0);
      result.logits.emplace_back(logits.begin(), logits.end());
    }
  }
  executor->cache()->RemoveSequence(slot);
  return result;
}

Distance DistanceOf(std::span<const float> actual, std::span<const float> expected) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (actual.size() != expected.size() || expected.empty()) return {kInfinity, kInfinity};
  double largest = 0, worst = 0, squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
    if (!std::isfinite(difference)) return {kInfinity, kInfinity};
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    worst = std::max(worst, difference);
    squares += difference * difference;
  }
  if (largest == 0) return {kInfinity, kInfinity};
  return {worst / largest, std::sqrt(squares / static_cast<double>(expected.size())) / largest};
}

}  // namespace tinyserve::golden
