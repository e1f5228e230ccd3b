// A device's executor against the CPU's and against itself without graphs, on models made here.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "base/random.h"
#include "engine/backend.h"
#include "kernels/tables.h"
#include "tensor/convert.h"
#include "tests/golden/golden_run.h"
#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

constexpr uint32_t kDim = 128, kHeads = 2, kKvHeads = 1, kHeadDim = 64, kFfn = 96, kVocab = 70;

std::vector<uint8_t> Noise(uint64_t count, double middle, double reach, SplitMix64* random) {
  std::vector<float> values(count);
  for (float& value : values) {
    const double unit = static_cast<double>(random->Next() >> 11) * 0x1.0p-53;
    value = static_cast<float>(middle + (2 * unit - 1) * reach);
  }
  std::vector<uint8_t> bytes(count * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Two layers of qwen2: biases of queries, keys and values, rotated halves; a head of its own.
std::vector<uint8_t> QwenFile(double head_reach = 0.15) {
  SplitMix64 random(42);
  GgufBuilder b;
  b.String("general.architecture", "qwen2");
  b.Uint32("qwen2.block_count", 2).Uint32("qwen2.embedding_length", kDim);
  b.Uint32("qwen2.attention.head_count", kHeads).Uint32("qwen2.attention.head_count_kv", kKvHeads);
  b.Uint32("qwen2.feed_forward_length", kFfn).Uint32("qwen2.context_length", 256);
  b.Float32("qwen2.attention.layer_norm_rms_epsilon", 1e-5f);
  const auto matrix = [&](const std::string& name, uint64_t cols, uint64_t rows) {
    b.Tensor(name, DType::kF32, {cols, rows}, Noise(cols * rows, 0, 0.15, &random));
  };
  const auto vector = [&](const std::string& name, uint64_t count, double middle, double reach) {
    b.Tensor(name, DType::kF32, {count}, Noise(count, middle, reach, &random));
  };
  matrix("token_embd.weight", kDim, kVocab);
  b.Tensor("output.weight", DType::kF32, {kDim, kVocab},
           Noise(kDim * kVocab, 0, head_reach, &random));
  vector("output_norm.weight", kDim, 1, 0.2);
  for (uint32_t l = 0; l < 2; ++l) {
    const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
    vector(name("attn_norm.weight"), kDim, 1, 0.2);
    vector(name("ffn_norm.weight"), kDim, 1, 0.2);
    matrix(name("attn_q.weight"), kDim, kHeads * kHeadDim);
    matrix(name("attn_k.weight"), kDim, kKvHeads * kHeadDim);
    matrix(name("attn_v.weight"), kDim, kKvHeads * kHeadDim);
    vector(name("attn_q.bias"), kHeads * kHeadDim, 0, 0.5);
    vector(name("attn_k.bias"), kKvHeads * kHeadDim, 0, 0.5);
    vector(name("attn_v.bias"), kKvHeads * kHeadDim, 0, 0.5);
    matrix(name("attn_output.weight"), kHeads * kHeadDim, kDim);
    matrix(name("ffn_gate.weight"), kDim, kFfn);
    matrix(name("ffn_up.weight"), kDim, kFfn);
    matrix(name("ffn_down.weight"), kFfn, kDim);
  }
  return b.Build();
}

ExecutorOptions OptionsFor(const std::string& kv, const std::string& selector) {
  return {.kv = kv,
          .kv_memory_bytes = 4 << 20,
          .sequences_max = 3,
          .sequence_tokens_max = 128,
          .step_tokens_max = 64,
          .selectors = {selector}};
}

// Two layers of gpt2: learned positions, layer norms, biases of all products, a GELU; its head is
// the embedding where it is tied. `positions`: their type.
std::vector<uint8_t> Gpt2File(bool tied, DType positions) {
  constexpr uint32_t kContext = 128;
  SplitMix64 random(43);
  GgufBuilder b;
  b.String("general.architecture", "gpt2");
  b.Uint32("gpt2.block_count", 2).Uint32("gpt2.embedding_length", kDim);
  b.Uint32("gpt2.attention.head_count", kHeads);
  b.Uint32("gpt2.feed_forward_length", kFfn).Uint32("gpt2.context_length", kContext);
  b.Float32("gpt2.attention.layer_norm_epsilon", 1e-5f);
  const auto linear = [&](const std::string& name, uint64_t cols, uint64_t rows, double reach) {
    b.Tensor(name, DType::kF32, {cols, rows}, Noise(cols * rows, 0, reach, &random));
  };
  const auto biased = [&](const std::string& name, uint64_t cols, uint64_t rows) {
    linear(name + ".weight", cols, rows, 0.15);
    b.Tensor(name + ".bias", DType::kF32, {rows}, Noise(rows, 0, 0.5, &random));
  };
  const auto norm = [&](const std::string& name) {
    b.Tensor(name + ".weight", DType::kF32, {kDim}, Noise(kDim, 1, 0.2, &random));
    b.Tensor(name + ".bias", DType::kF32, {kDim}, Noise(kDim, 0, 0.3, &random));
  };
  linear("token_embd.weight", kDim, kVocab, 0.3);
  std::vector<uint8_t> learned = Noise(kContext * kDim, 0, 0.5, &random);
  if (positions == DType::kF16) {
    std::vector<float> values(kContext * kDim);
    std::memcpy(values.data(), learned.data(), learned.size());
    learned.resize(values.size() * 2);
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = F32ToF16(values[i]);
      std::memcpy(learned.data() + 2 * i, &half, 2);
    }
  }
  b.Tensor("position_embd.weight", positions, {kDim, kContext}, learned);
  if (!tied) linear("output.weight", kDim, kVocab, 0.3);
  norm("output_norm");
  for (uint32_t l = 0; l < 2; ++l) {
    const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
    norm(name("attn_norm"));
    norm(name("ffn_norm"));
    biased(name("attn_qkv"), kDim, 3 * kDim);
    biased(name("attn_output"), kDim, kDim);
    biased(name("ffn_up"), kDim, kFfn);
    biased(name("ffn_down"), kFfn, kDim);
  }
  return b.Build();
}

// A prompt after which a window of tokens is full, and coded, while tokens are generated.
constexpr uint32_t kCodedPrompt = 62;

// Of one window: half of its pages, a few of their tokens.
constexpr char kCascade[] =
    "cascade:ratio=0.5,min_tokens=0,min_context=16,recent=1,sink=0,full=0.1,min_full=0,values=0.2,"
    "min_values=0,wide_layers=1";

// The logits of every token of two sequences: a prompt, then generated tokens side by side. `work`
// gets the multiply-adds of each step, where it is not null.
std::vector<std::vector<float>> LogitsOf(Backend* backend, const std::string& kv,
                                         const std::string& selector, uint32_t prompt = 37,
                                         std::vector<uint64_t>* work = nullptr) {
  auto created = backend->CreateExecutor(OptionsFor(kv, selector));
  EXPECT_TRUE(created.ok()) << created.status().message();
  Executor* executor = created->get();
  const uint32_t selects = *executor->FindSelector(selector);
  std::vector<std::vector<float>> all;
  const auto run = [&](const StepBatch& batch) {
    const Status ran = executor->RunStep(batch);
    EXPECT_TRUE(ran.ok()) << ran.message();
    const StepCost cost = executor->cost();
    if (work != nullptr)
      work->push_back(std::accumulate(cost.multiply_adds, cost.multiply_adds + kDotKinds, 0ull));
    for (size_t r = 0; ran.ok() && r < batch.rows.size(); ++r) {
      EXPECT_TRUE(executor->finite(r));
      const std::span<float> logits = executor->logits(r);
      all.emplace_back(logits.begin(), logits.end());
      executor->cache()->Commit(batch.rows[r].slot,
                                batch.rows[r].first_position + batch.rows[r].length);
    }
  };
  const auto token = [](uint32_t sequence, uint32_t position) {
    return static_cast<int32_t>((position * 11 + sequence * 29 + position * position) % kVocab);
  };
  constexpr uint32_t kGenerated = 4;
  std::vector<SequenceSlot> slots;
  for (uint32_t s = 0; s < 2; ++s) {
    slots.push_back(*executor->cache()->AddSequence());
    StepBatch batch;
    batch.rows.push_back({.slot = slots[s],
                          .first_position = 0,
                          .length = prompt,
                          .first_input = 0,
                          .token_class = TokenClass::kPrompt,
                          .want = Want::kLogits});
    for (uint32_t i = 0; i < prompt; ++i) batch.inputs.push_back(token(s, i));
    EXPECT_TRUE(executor->cache()->Reserve(slots[s], prompt).ok());
    run(batch);
  }
  for (uint32_t i = 0; i < kGenerated; ++i) {
    StepBatch batch;
    for (uint32_t s = 0; s < 2; ++s) {
      batch.rows.push_back({.slot = slots[s],
                            .first_position = prompt + i,
                            .length = 1,
                            .first_input = s,
                            .token_class = TokenClass::kGenerated,
                            .want = Want::kLogits,
                            .selector = selects});
      batch.inputs.push_back(token(s, prompt + i));
      EXPECT_TRUE(executor->cache()->Reserve(slots[s], prompt + i + 1).ok());
    }
    run(batch);
  }
  return all;
}

class DeviceExecutors : public testing::Test {
 protected:
  DeviceExecutors() : threads_(1) { Use(QwenFile()); }
  void Use(std::vector<uint8_t> bytes) {
    bytes_ = std::move(bytes);
    file_ = *GgufFile::Parse(bytes_, "qwen2");
  }
  Result<std::unique_ptr<Backend>> TryDevice(bool graphs = true) {
    return OpenDeviceBackend(*file_, {.index = 0,
                                      .kv = "f16",
                                      .selectors = {"full"},
                                      .compute = Compute::kFast,
                                      .graphs = graphs,
                                      .threads = &threads_,
                                      .progress = {}});
  }
  std::unique_ptr<Backend> Device(bool graphs = true) {
    auto backend = TryDevice(graphs);
    EXPECT_TRUE(backend.ok()) << backend.status().message();
    return *std::move(backend);
  }
  std::unique_ptr<Backend> Cpu() {
    return *OpenCpuBackend(
        *file_,
        {.kernels = RefKernels(), .compute = Compute::kF32, .threads = &threads_, .progress = {}});
  }

  std::vector<uint8_t> bytes_;
  ThreadPool threads_;
  std::unique_ptr<GgufFile> file_;
};

// What rooflines are made of.
TEST_F(DeviceExecutors, CountsTheMultiplyAddsThatTheCpuCounts) {
  for (const std::vector<uint8_t>& file : {QwenFile(), Gpt2File(false, DType::kF32)}) {
    Use(file);
    std::vector<uint64_t> on_device, on_cpu;
    LogitsOf(Device().get(), "f16", "full", 37, &on_device);
    LogitsOf(Cpu().get(), "f16", "full", 37, &on_cpu);
    EXPECT_EQ(on_device, on_cpu);
  }
}

void ExpectNear(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b,
                double within) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t t = 0; t < a[i].size(); ++t) ASSERT_NEAR(a[i][t], b[i][t], within) << i << " " << t;
  }
}

// Logits after each of a prompt's first tokens. The distances are those that
// tests/golden/models_test.cc allows fast compute.
TEST_F(DeviceExecutors, AreNearTheReference) {
  const std::string path = TS_SOURCE_DIR "/tests/golden/tiny/llama-q4_k";
  const golden::GoldenFile golden(path + ".golden.gguf");
  const std::vector<int32_t> prompt = golden.Ints("golden.short.prompt");
  const std::vector<int32_t> positions = golden.Ints("golden.short.positions");
  file_ = *GgufFile::Open(path + ".gguf");
  const auto backend = Device();
  ExecutorOptions options = OptionsFor("bf16", "full");
  options.logits_max = options.step_tokens_max;
  auto executor = *backend->CreateExecutor(options);
  const auto length =
      static_cast<uint32_t>(std::min<size_t>(prompt.size(), options.step_tokens_max));
  StepBatch batch;
  batch.rows.push_back({.slot = *executor->cache()->AddSequence(),
                        .first_position = 0,
                        .length = length,
                        .first_input = 0,
                        .token_class = TokenClass::kPrompt,
                        .want = Want::kEveryLogits});
  batch.inputs.assign(prompt.begin(), prompt.begin() + length);
  ASSERT_TRUE(executor->cache()->Reserve(batch.rows[0].slot, length).ok());
  const Status ran = executor->RunStep(batch);
  ASSERT_TRUE(ran.ok()) << ran.message();
  const std::span<const float> logits = executor->logits(0);
  const size_t vocab = logits.size() / length;
  uint32_t compared = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] >= static_cast<int32_t>(length)) continue;
    const auto row = logits.subspan(static_cast<size_t>(positions[i]) * vocab, vocab);
    const auto d = golden::DistanceOf({row.begin(), row.end()}, golden.Row("short.logits", i));
    EXPECT_LE(d.max, 0.08) << "at position " << positions[i];
    EXPECT_LE(d.rms, 0.025) << "at position " << positions[i];
    ++compared;
  }
  EXPECT_GE(compared, 1u);
}

// Weights of floats: what differs is rounding, of prompt rows to f16.
TEST_F(DeviceExecutors, ComputeQwenAsTheCpuDoes) {
  const auto cpu = Cpu(), device = Device();
  for (const char* kv : {"f32", "f16"})
    ExpectNear(LogitsOf(device.get(), kv, "full"), LogitsOf(cpu.get(), kv, "full"), 0.03);
  // Of codes of four bits some are others where a prompt's rows were rounded.
  for (const auto& [kv, within] : {std::pair{"planes", 0.03}, {"int8", 0.03}, {"int4", 0.06}}) {
    SCOPED_TRACE(kv);
    ExpectNear(LogitsOf(device.get(), kv, "full", kCodedPrompt),
               LogitsOf(cpu.get(), kv, "full", kCodedPrompt), within);
  }
}

// Tied and not, positions in either float; where a window is coded, its tokens' places among the
// raw ones are not their positions.
TEST_F(DeviceExecutors, ComputeGpt2AsTheCpuDoes) {
  for (const bool tied : {false, true}) {
    Use(Gpt2File(tied, tied ? DType::kF16 : DType::kF32));
    const auto cpu = Cpu(), device = Device();
    const auto near = LogitsOf(cpu.get(), "f32", "full");
    ExpectNear(LogitsOf(device.get(), "f32", "full"), near, 0.03);
    ExpectNear(LogitsOf(device.get(), "f16", "full"), near, 0.03);
    ExpectNear(LogitsOf(device.get(), "planes", "full", kCodedPrompt),
               LogitsOf(cpu.get(), "planes", "full", kCodedPrompt), 0.03);
  }
}

TEST_F(DeviceExecutors, MissWhatGpt2HasAndTheFileHasNot) {
  std::vector<uint8_t> bytes = Gpt2File(true, DType::kF32);
  const std::string name = "blk.1.attn_output.bias", other = "blk.1.attn_output.bian";
  const auto at = std::search(bytes.begin(), bytes.end(), name.begin(), name.end());
  ASSERT_NE(at, bytes.end());
  std::copy(other.begin(), other.end(), at);
  Use(bytes);
  const Status status = TryDevice().status();
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_NE(status.message().find(name), std::string::npos) << status.message();
}

// Pages are chosen by scores: where they are equal but for rounding, so are the logits.
TEST_F(DeviceExecutors, SelectAsTheCpuDoes) {
  const char* box = "box:ratio=0.5,min_tokens=0,min_context=16,recent=1,sink=0";
  for (const std::vector<uint8_t>& file : {QwenFile(), Gpt2File(false, DType::kF32)}) {
    Use(file);
    const auto cpu = Cpu(), device = Device();
    const auto chosen = LogitsOf(device.get(), "f16", box);
    ExpectNear(chosen, LogitsOf(cpu.get(), "f16", box), 0.03);
    EXPECT_NE(chosen.back(), LogitsOf(device.get(), "f16", "full").back());
  }
}

constexpr char kHierarchical[] =
    "hierarchical:ratio=0.5,min_tokens=0,min_context=16,recent=1,sink=0,sub=4,reuse=4";

// The logits of generated tokens after a prompt, in steps of so many.
std::vector<std::vector<float>> LogitsInRuns(Backend* backend, const std::string& kv,
                                             const std::vector<uint32_t>& runs) {
  ExecutorOptions options = OptionsFor(kv, kHierarchical);
  options.logits_max = options.step_tokens_max;
  auto executor = *backend->CreateExecutor(options);
  const uint32_t selects = *executor->FindSelector(kHierarchical);
  const SequenceSlot slot = *executor->cache()->AddSequence();
  std::vector<std::vector<float>> all;
  uint32_t position = 0;
  const auto run = [&](uint32_t length, bool prompt) {
    StepBatch batch;
    batch.rows.push_back({.slot = slot,
                          .first_position = position,
                          .length = length,
                          .first_input = 0,
                          .token_class = prompt ? TokenClass::kPrompt : TokenClass::kGenerated,
                          .want = prompt ? Want::kNothing : Want::kEveryLogits,
                          .selector = selects});
    for (uint32_t i = 0; i < length; ++i)
      batch.inputs.push_back(static_cast<int32_t>((position + i) * 11 % kVocab));
    position += length;
    EXPECT_TRUE(executor->cache()->Reserve(slot, position).ok());
    const Status ran = executor->RunStep(batch);
    EXPECT_TRUE(ran.ok()) << ran.message();
    executor->cache()->Commit(slot, position);
    if (prompt || !ran.ok()) return;
    const std::span<const float> logits = executor->logits(0);
    for (uint32_t i = 0; i < length; ++i) {
      const std::span<const float> row = logits.subspan(uint64_t{i} * kVocab, kVocab);
      all.emplace_back(row.begin(), row.end());
    }
  };
  run(58, true);
  for (const uint32_t length : runs) run(length, false);
  return all;
}

// Choices in force go from step to step and from row to row alike; a window is coded on the way.
TEST_F(DeviceExecutors, ReplayWhatWasGeneratedBitForBit) {
  const auto cpu = Cpu(), device = Device();
  for (const char* kv : {"f16", "int8", "planes"}) {
    const auto single = LogitsInRuns(device.get(), kv, std::vector<uint32_t>(16, 1));
    EXPECT_EQ(single, LogitsInRuns(device.get(), kv, {6, 1, 1, 8})) << kv;
    if (kv == std::string("f16")) {
      ExpectNear(single, LogitsInRuns(cpu.get(), kv, {16}), 0.03);
    }
  }
}

// The root mean square distance of the rows after the window was coded.
double ApartWhereCoded(const std::vector<std::vector<float>>& a,
                       const std::vector<std::vector<float>>& b) {
  double squares = 0, count = 0;
  for (size_t i = a.size() - 4; i < a.size(); ++i) {
    for (size_t t = 0; t < a[i].size(); ++t, ++count) {
      squares += (double{a[i][t]} - b[i][t]) * (double{a[i][t]} - b[i][t]);
    }
  }
  return std::sqrt(squares / count);
}

// Budgets that leave no choice of single tokens, for rounding turns some into others
// (attention_cascade_test.cc has the same keys on both sides): each is read as the CPU reads it,
// and not as it reads the others. Half of the pages in full; by approximate logits; by mean values.
TEST_F(DeviceExecutors, ReadLessAndLessAsTheCpuDoes) {
  const auto cpu = Cpu(), device = Device();
  std::vector<std::vector<std::vector<float>>> of_device, of_cpu;
  for (const char* budgets : {"ratio=0.5,wide_layers=0,full=1,values=1", "ratio=1,full=0,values=1",
                              "ratio=1,full=0,values=0"}) {
    const std::string cascade = fmt::format(
        "cascade:{},min_full=0,min_values=0,min_tokens=0,min_context=16,recent=1,sink=0", budgets);
    of_device.push_back(LogitsOf(device.get(), "planes", cascade, kCodedPrompt));
    of_cpu.push_back(LogitsOf(cpu.get(), "planes", cascade, kCodedPrompt));
  }
  for (size_t i = 0; i < of_device.size(); ++i) {
    for (size_t j = 0; j < of_cpu.size(); ++j) {
      const double apart = ApartWhereCoded(of_device[i], of_cpu[j]);
      if (i == j) {
        EXPECT_LT(apart, 0.02) << i;
      } else {
        EXPECT_GT(apart, 0.04) << i << " " << j;
      }
    }
  }
}

TEST_F(DeviceExecutors, DrawNothingFromLogitsThatAreNoNumbers) {
  for (const double reach : {0.15, 1e38}) {
    Use(QwenFile(reach));
    const auto backend = Device();
    auto executor = *backend->CreateExecutor(OptionsFor("f16", "full"));
    StepBatch batch;
    batch.rows.push_back({.slot = *executor->cache()->AddSequence(),
                          .first_position = 0,
                          .length = 3,
                          .first_input = 0,
                          .token_class = TokenClass::kPrompt,
                          .want = Want::kLogits,
                          .draw = {.on_device = true}});
    batch.inputs = {1, 2, 3};
    ASSERT_TRUE(executor->cache()->Reserve(batch.rows[0].slot, 3).ok());
    const Status ran = executor->RunStep(batch);
    ASSERT_TRUE(ran.ok()) << ran.message();
    EXPECT_TRUE(executor->finite(0));
    ASSERT_TRUE(executor->drawn(0).has_value());
    EXPECT_EQ(executor->drawn(0)->token >= 0, reach < 1);
  }
}

TEST_F(DeviceExecutors, GraphsChangeNoBit) {
  const auto plain = Device(false), graphs = Device(true);
  const char* box = "box:ratio=0.4,min_tokens=0,min_context=16,recent=1";
  for (const auto& [kv, selector] : {std::pair{"f16", box},
                                     {"int8", box},
                                     {"planes", kCascade},
                                     {"f16", kHierarchical},
                                     {"int4", kHierarchical}})
    EXPECT_EQ(LogitsOf(plain.get(), kv, selector, kCodedPrompt),
              LogitsOf(graphs.get(), kv, selector, kCodedPrompt))
        << kv;
}

// A query group of one head; which position a replayed row has is read when it runs.
TEST_F(DeviceExecutors, GraphsOfGpt2ChangeNoBit) {
  Use(Gpt2File(true, DType::kF32));
  const auto plain = Device(false), graphs = Device(true);
  for (const auto& [kv, selector] : {std::pair{"f16", kHierarchical}, {"planes", kCascade}})
    EXPECT_EQ(LogitsOf(plain.get(), kv, selector, kCodedPrompt),
              LogitsOf(graphs.get(), kv, selector, kCodedPrompt))
        << kv;
}

// Three sequences that go on with what the device draws, one of which somebody ends at the third
// token; what each has drawn, and what was counted. Ahead: a step is begun before the one before it
// has ended, and has a row too many where that one ends a sequence.
struct Drawn {
  std::vector<std::vector<int32_t>> tokens;
  SelectionCounts counts;
  uint64_t steps = 0;
  bool operator==(const Drawn& other) const {
    return tokens == other.tokens && steps == other.steps &&
           counts.queries == other.counts.queries && counts.bytes_read == other.counts.bytes_read &&
           counts.pages_held == other.counts.pages_held;
  }
};

class DrawingRun {
 public:
  static constexpr uint32_t kSequences = 3, kSteps = 8, kEndsAfter = 3;

  DrawingRun(Backend* backend, const std::string& kv, const std::string& selector, uint32_t prompt,
             bool ahead)
      : executor_(Open(backend, OptionsFor(kv, selector))),
        selector_(*executor_->FindSelector(selector)),
        prompt_(prompt),
        ahead_(ahead) {
    drawn_.tokens.resize(kSequences);
  }

  Drawn Run() {
    for (uint32_t s = 0; s < kSequences; ++s) slots_.push_back(*executor_->cache()->AddSequence());
    StepBatch running = Prompts(), next;
    std::vector<uint32_t> of = {0, 1, 2};  // sequences by row
    for (uint32_t step = 0; step < kSteps; ++step) {
      const std::vector<uint32_t> of_running = of;
      const bool last = step + 1 == kSteps;
      if (ahead_) {
        if (step == 0) executor_->BeginStep(running);
        if (!last) executor_->BeginStep(next = Generated(step, of, of));
      }
      EXPECT_TRUE((ahead_ ? executor_->FinishStep() : executor_->RunStep(running)).ok());
      Take(step, running, &of);
      if (last) break;
      running = ahead_ ? next : Generated(step, of, of_running);
      if (!ahead_ || of == of_running) continue;
      executor_->DropRow(1);
      running.rows.erase(running.rows.begin() + 1);
    }
    drawn_.counts = executor_->selection_counts();
    drawn_.steps = executor_->steps();
    EXPECT_EQ(executor_->cache()->CheckIntegrity(), "");
    return drawn_;
  }

 private:
  static std::unique_ptr<Executor> Open(Backend* backend, ExecutorOptions options) {
    options.step_tokens_max = kSequences * 64;
    return *backend->CreateExecutor(options);
  }
  StepRow Row(uint32_t sequence, uint32_t position, uint32_t length, TokenClass token_class,
              StepBatch* batch) {
    EXPECT_TRUE(executor_->cache()->Reserve(slots_[sequence], position + length).ok());
    return {.slot = slots_[sequence],
            .first_position = position,
            .length = length,
            .first_input = static_cast<uint32_t>(batch->inputs.size()),
            .token_class = token_class,
            .want = Want::kLogits,
            .selector = selector_,
            .draw = {.on_device = true,
                     .temperature = sequence == 0 ? 0.0f : 1.5f,
                     .min_p = 0,
                     .seed = sequence}};
  }
  StepBatch Prompts() {
    StepBatch batch;
    for (uint32_t s = 0; s < kSequences; ++s) {
      batch.rows.push_back(Row(s, 0, prompt_ + s, TokenClass::kPrompt, &batch));
      for (uint32_t i = 0; i < prompt_ + s; ++i)
        batch.inputs.push_back(static_cast<int32_t>((i * 11 + s * 29 + i * i) % kVocab));
    }
    return batch;
  }
  // The step after `step`, of sequences `of`; inputs are drawn by the rows of `before`.
  StepBatch Generated(uint32_t step, const std::vector<uint32_t>& of,
                      const std::vector<uint32_t>& before) {
    StepBatch batch;
    for (const uint32_t s : of) {
      batch.rows.push_back(Row(s, prompt_ + s + step, 1, TokenClass::kGenerated, &batch));
      const auto row = std::find(before.begin(), before.end(), s) - before.begin();
      batch.inputs.push_back(~static_cast<int32_t>(row));
    }
    return batch;
  }
  // What the step has drawn; a sequence that ends leaves `of`, and its slot.
  void Take(uint32_t step, const StepBatch& batch, std::vector<uint32_t>* of) {
    ASSERT_EQ(batch.rows.size(), of->size());
    for (size_t r = 0; r < of->size(); ++r) {
      EXPECT_TRUE(executor_->finite(r));
      ASSERT_TRUE(executor_->drawn(r).has_value());
      drawn_.tokens[(*of)[r]].push_back(executor_->drawn(r)->token);
      executor_->SetSampled(r, executor_->drawn(r)->token);
      executor_->cache()->Commit(batch.rows[r].slot,
                                 batch.rows[r].first_position + batch.rows[r].length);
    }
    if (step + 1 != kEndsAfter) return;
    executor_->cache()->RemoveSequence(slots_[1]);
    std::erase(*of, 1u);
  }

  std::unique_ptr<Executor> executor_;
  uint32_t selector_, prompt_;
  bool ahead_;
  std::vector<SequenceSlot> slots_;
  Drawn drawn_;
};

TEST_F(DeviceExecutors, BeginStepsAheadWithoutChangingABit) {
  const char* box = "box:ratio=0.4,min_tokens=0,min_context=16,recent=1";
  // In the second case a window is full, and coded, after some steps.
  for (const auto& [file, kv, selector, prompt] :
       {std::tuple{QwenFile(), "f16", box, 12u},
        {QwenFile(), "planes", kCascade, kCodedPrompt - 3},
        {Gpt2File(false, DType::kF32), "f16", box, 12u}}) {
    Use(file);
    const auto graphs = Device(true), plain = Device(false);
    const Drawn after = DrawingRun(graphs.get(), kv, selector, prompt, false).Run();
    const Drawn ahead = DrawingRun(graphs.get(), kv, selector, prompt, true).Run();
    EXPECT_TRUE(after == ahead) << kv;
    if (prompt == 12) {
      EXPECT_TRUE(after == DrawingRun(plain.get(), kv, selector, prompt, true).Run());
    }
    EXPECT_EQ(after.tokens[1].size(), DrawingRun::kEndsAfter);
    EXPECT_NE(after.tokens[1], std::vector<int32_t>(DrawingRun::kEndsAfter, after.tokens[1][0]));
  }
}

}  // namespace
}  // namespace tinyserve
