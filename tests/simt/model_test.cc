// Whole tiny models on the emulated device against what transformers computes (tests/golden), with
// all kernels of a decoding step in their places.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/append.h"
#include "tests/golden/golden_run.h"
#include "tests/simt/device_model.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

using golden::DistanceOf;
using golden::GoldenFile;

const std::string kFolder = TS_SOURCE_DIR "/tests/golden/tiny/";

std::unique_ptr<DeviceModel> Open(const std::string& name, KvType kv, uint32_t tokens) {
  auto model = DeviceModel::Load(kFolder + name + ".gguf", kv, 2, tokens);
  EXPECT_TRUE(model.ok()) << model.status().message();
  return std::move(model).value();
}

std::vector<StepRow> RowsOf(const std::vector<int32_t>& tokens, uint32_t first, uint32_t end,
                            uint32_t sequence) {
  std::vector<StepRow> rows;
  for (uint32_t p = first; p < end; ++p) rows.push_back({tokens[p], p, sequence});
  return rows;
}

std::vector<float> LogitsOf(const DeviceModel& model, uint32_t row) {
  return {model.logits(row), model.logits(row) + model.config().vocab};
}

// Logits near the reference's, at the positions of the short run that come first: the others cost
// minutes of emulation. The distances are those that tests/golden/models_test.cc allows fast
// compute.
TEST(DeviceModels, AreNearTheReference) {
  const GoldenFile golden(kFolder + "llama-q4_k.golden.gguf");
  std::vector<int32_t> tokens = golden.Ints("golden.short.prompt");
  const std::vector<int32_t> greedy = golden.Ints("golden.short.greedy");
  tokens.insert(tokens.end(), greedy.begin(), greedy.end() - 1);
  const std::vector<int32_t> positions = golden.Ints("golden.short.positions");
  constexpr uint32_t kTokens = 24, kRows = 8;  // of a step; rows see those before them in it
  const auto model = Open("llama-q4_k", KvType::kBF16, kTokens);
  uint32_t compared = 0;
  for (uint32_t first = 0; first < std::min<size_t>(kTokens, tokens.size()); first += kRows) {
    const auto end = static_cast<uint32_t>(std::min<size_t>(tokens.size(), first + kRows));
    const Status status = model->Run(RowsOf(tokens, first, end, 1));
    ASSERT_TRUE(status.ok()) << status.message();
    for (size_t i = 0; i < positions.size(); ++i) {
      const auto p = static_cast<uint32_t>(positions[i]);
      if (p < first || p >= end) continue;
      const auto d = DistanceOf(LogitsOf(*model, p - first), golden.Row("short.logits", i));
      EXPECT_LE(d.max, 0.08) << "at position " << p;
      EXPECT_LE(d.rms, 0.025) << "at position " << p;
      ++compared;
    }
  }
  EXPECT_GE(compared, 1u);
}

// The text that the reference writes, every token found and fed back on the device.
TEST(DeviceModels, WriteTheGoldenText) {
  const GoldenFile golden(kFolder + "llama-llama3.golden.gguf");
  const std::vector<int32_t> prompt = golden.Ints("golden.short.prompt");
  const std::vector<int32_t> want = golden.Ints("golden.short.greedy");
  auto position = static_cast<uint32_t>(prompt.size());
  const auto model = Open("llama-llama3", KvType::kF16, position + 64);
  ASSERT_TRUE(model->Run(RowsOf(prompt, 0, position, 0)).ok());
  std::vector<int32_t> text = {model->Greedy()->back()};
  while (text.size() < want.size()) {
    ASSERT_TRUE(model->Run({{text.back(), position++, 0}}).ok());
    text.push_back(model->Greedy()->back());
  }
  EXPECT_EQ(text, want);
}

// In a batch with another sequence and a row that is not in use, under another order of threads.
TEST(DeviceModels, ASequenceIsTheSameAloneAndInABatch) {
  const GoldenFile golden(kFolder + "llama-q4_k.golden.gguf");
  const std::vector<int32_t> tokens = golden.Ints("golden.short.prompt");
  const uint32_t count = std::min<uint32_t>(3, static_cast<uint32_t>(tokens.size()));
  const auto alone = Open("llama-q4_k", KvType::kF16, 40);
  ASSERT_TRUE(alone->Run(RowsOf(tokens, 0, count, 0)).ok());
  const std::vector<float> want = LogitsOf(*alone, count - 1);
  simt::SetSeed(99);
  const auto batched = Open("llama-q4_k", KvType::kF16, 40);
  for (uint32_t p = 0; p < count; ++p) {
    const Status status =
        batched->Run({{tokens[count - 1 - p], p, 0}, {0, kNoPosition, 0}, {tokens[p], p, 1}});
    ASSERT_TRUE(status.ok()) << status.message();
  }
  EXPECT_EQ(LogitsOf(*batched, 2), want);
  EXPECT_NE(LogitsOf(*batched, 0), want);
}

}  // namespace
}  // namespace tinyserve::cuda
