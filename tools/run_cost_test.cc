#include "tools/run_cost.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tinyserve {
namespace {

const ModelInfo kInfo{
    .step_weight_bytes = 100'000'000, .kv_bytes_per_token = 1000, .kv_window_bytes = 77};

TEST(RunCost, RatesAndBytes) {
  const Usage usage{.prompt_tokens = 100,
                    .completion_tokens = 51,
                    .prefill_seconds = 0.25,
                    .decode_seconds = 0.5,
                    .first_token_seconds = 0.3};
  const EngineStats before{.decode_kv_bytes = 7'000,
                           .decode_tokens = 7,
                           .selection = {.pages_held = 50, .pages_read = 50}};
  const EngineStats after{.decode_kv_bytes = 7'000 + 50 * 125'500,
                          .decode_tokens = 57,
                          .selection = {.pages_held = 250, .pages_read = 110}};
  RunCost cost = CostOf(usage, kInfo, before, after, 0.1);
  EXPECT_DOUBLE_EQ(cost.prompt_tokens_per_s, 400);
  EXPECT_DOUBLE_EQ(cost.decode_tokens_per_s, 100);  // the first token belongs to the prompt
  EXPECT_EQ(cost.kv_bytes, 151'077u);
  EngineStats dropped = after;
  dropped.dropped_tokens = 64;
  EXPECT_EQ(CostOf(usage, kInfo, before, dropped, 0.1).kv_bytes, 87'077u);
  EXPECT_DOUBLE_EQ(cost.bytes_per_token, 100'000'000 + 125'500);
  EXPECT_DOUBLE_EQ(cost.pages_read_share, 0.3);
  EXPECT_GT(cost.peak_resident_bytes, 0u);
  EXPECT_TRUE(std::isnan(cost.bandwidth_share()));
  cost.bandwidth_bytes_per_s = 20'025'100'000;
  EXPECT_NEAR(cost.bandwidth_share(), 0.5, 1e-3);
  const std::string text = FormatCost(cost);
  EXPECT_NE(text.find("100 tokens, 400.0 tokens/s; first token after 0.30 s"), std::string::npos)
      << text;
  EXPECT_NE(text.find("50 % of the 20.0 GB/s that this machine reads; 30 % of the KV pages"),
            std::string::npos)
      << text;
}

TEST(RunCost, WhatWasNotMeasuredIsNotPrinted) {
  const std::string text = FormatCost(CostOf({.prompt_tokens = 5}, kInfo, {}, {}, 0.1));
  EXPECT_EQ(text.find("tokens/s"), std::string::npos) << text;
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  EXPECT_EQ(text.find("first token"), std::string::npos) << text;
  EXPECT_EQ(text.find("reads"), std::string::npos) << text;
}

}  // namespace
}  // namespace tinyserve
