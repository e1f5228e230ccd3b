#include "tools/eval_report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "text/json_text.h"

namespace tinyserve {
namespace {

EvalLine TestLine() {
  return {.method = "box:ratio=0.3",
          .resolved = "box:ratio=0.3,sink=1",
          .kv = "planes",
          .context = 8000,
          .window_scored = 256,
          .windows = 16,
          .scored_tokens = 4096,
          .kl = 0.00421234567,
          .kl_p99 = 0.05,
          .top1 = 0.9375,
          .dppl = -0.002,
          .dppl_se = 0.0015,
          .dense_perplexity = 27.8,
          .kl_by_position = {0.001, 0.002},
          .kv_bytes = 196'000'000,
          .dense_kv_bytes = 184'000'000,
          .kv_bytes_read_per_token = 66'240'000,
          .dense_bytes_read_per_token = 184'000'000,
          .decode_tokens_per_s = 92.25,
          .dense_tokens_per_s = 61.5,
          .speedup = 1.5};
}

const EvalSetup kSetup{.model = "m",
                       .text = "book.txt",
                       .target = "avx2",
                       .base_kv = "f16",
                       .compute = "fast",
                       .threads = 2,
                       .page_tokens = 16};

TEST(EvalReport, JsonStartsWithWhatEveryLineHas) {
  const std::string json = ToJson(EvalLineJson(TestLine(), kSetup));
  EXPECT_EQ(json.rfind(R"({"method": "box:ratio=0.3", "resolved": "box:ratio=0.3,sink=1", )"
                       R"("context": 8000, "scored_tokens": 4096, "kl": 0.00421235, )"
                       R"("kl_p99": 0.05, "top1": 0.9375, "dppl": -0.002, "dppl_se": 0.0015, )"
                       R"("kv_bytes": 196000000, "kv_bytes_read_per_token": 66240000, )"
                       R"("decode_tokens_per_s": 92.25, "kv_fraction_held": 1.0652, )"
                       R"("kv_fraction_read": 0.36, "speedup": 1.5, )",
                       0),
            0u)
      << json;
  EXPECT_EQ(json.find("kl_by_position"), std::string::npos);
  EXPECT_NE(json.find(R"("kv": "planes", "base_kv": "f16")"), std::string::npos) << json;
}

TEST(EvalReport, OnlyALongRunTellsPositions) {
  EvalLine line = TestLine();
  line.is_long = true;
  const std::string json = ToJson(EvalLineJson(line, kSetup));
  EXPECT_NE(json.find(R"("kl_period_tokens": 256, "kl_by_position": [0.001, 0.002])"),
            std::string::npos)
      << json;
  EXPECT_NE(EvalTableRow(line, 20).find("KL of each 256 tokens after 7744: 0.0010 0.0020\n"),
            std::string::npos);
}

TEST(EvalReport, WhatIsUnknownIsNull) {
  EvalLine line = TestLine();
  line.dppl_se = NAN;
  EXPECT_NE(ToJson(EvalLineJson(line, kSetup)).find(R"("dppl_se": null)"), std::string::npos);
}

TEST(EvalReport, TableColumnsStandUnderTheirHeads) {
  const std::string head = EvalTableHead(kSetup, 20), row = EvalTableRow(TestLine(), 20);
  const std::string heads = head.substr(head.find("method "));
  EXPECT_EQ(heads.size(), row.size());
  EXPECT_NE(row.find("-0.20 +-0.15 %"), std::string::npos) << row;
  EXPECT_NE(row.find("36.0 %"), std::string::npos) << row;
  EXPECT_EQ(std::count(row.begin(), row.end(), '\n'), 1);
}

TEST(EvalReport, FailedChoicesAreSaid) {
  EvalLine line = TestLine();
  line.selector_failures = 3;
  EXPECT_NE(EvalTableRow(line, 20).find("3 choices failed: everything was read"),
            std::string::npos);
}

}  // namespace
}  // namespace tinyserve
