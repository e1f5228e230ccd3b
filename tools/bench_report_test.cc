#include "tools/bench_report.h"

#include <gtest/gtest.h>

#include <cmath>

#include "text/json_text.h"

namespace tinyserve {
namespace {

BenchSetup TestSetup() {
  BenchSetup setup{
      .model = "m", .target = "avx2", .base_kv = "f16", .compute = "fast", .threads = 2};
  setup.methods = *ParseMethods({"full"}, "");
  setup.peaks.read_bytes_per_s = 10e9;
  setup.peaks.multiply_adds_per_s[static_cast<uint32_t>(DotKind::kF32)] = 50e9;
  return setup;
}

// 64 steps of 8 sequences, 100 MB a step.
CaseResult Decode(std::vector<double> seconds) {
  CaseResult result{.bench_case = {BenchKind::kDecode, 64, 4096, 8}, .samples = {}};
  for (double s : seconds) {
    result.samples.push_back(
        {.seconds = s, .bytes = 64 * 100e6, .roofline_seconds = 0.8, .steps = 64});
  }
  return result;
}

TEST(BenchReport, FiguresCountEverySequence) {
  const CaseFigures f = FiguresOf(Decode({2.0, 1.0, 4.0}), TestSetup().peaks);
  EXPECT_DOUBLE_EQ(f.tokens_per_s_median, 256);
  EXPECT_DOUBLE_EQ(f.tokens_per_s_min, 128);
  EXPECT_DOUBLE_EQ(f.tokens_per_s_max, 512);
  EXPECT_DOUBLE_EQ(f.bytes_per_step, 100e6);
  EXPECT_DOUBLE_EQ(f.bandwidth_share, 6.4e9 / 2.0 / 10e9);
  EXPECT_DOUBLE_EQ(f.roofline_share, 0.4);
}

TEST(BenchReport, MedianOfAnEvenNumberIsBetweenTheTwo) {
  EXPECT_DOUBLE_EQ(FiguresOf(Decode({1.0, 2.0}), TestSetup().peaks).tokens_per_s_median, 384);
  const CaseFigures unknown = FiguresOf(Decode({1.0, 2.0}), MachinePeaks());
  EXPECT_DOUBLE_EQ(unknown.tokens_per_s_median, 384);
  EXPECT_TRUE(std::isnan(unknown.bandwidth_share) && std::isnan(unknown.roofline_share));
}

TEST(BenchReport, JsonLine) {
  const CaseResult result = Decode({2.0});
  EXPECT_EQ(ToJson(CaseJson(result, {result}, TestSetup())),
            R"({"engine": "tinyserve", "kind": "decode", "tokens": 64, "depth": 4096, "batch": 8, )"
            R"("selector": "full", "resolved": "full", )"
            R"("tokens_per_s": {"median": 256, "min": 256, "max": 256}, "speedup_over_full": 1, )"
            R"("bytes_per_step": 100000000, "roofline_share": 0.4, "bandwidth_share": 0.32, )"
            R"("target": "avx2", "threads": 2, "kv": "f16", "compute": "fast", "text": null})");
}

// Two rounds on a device: the host's time is hidden but for what the device waited.
TEST(BenchReport, SaysHowMuchOfTheHostsTimeIsHidden) {
  CaseResult result = Decode({2.0, 2.0});
  EXPECT_TRUE(std::isnan(FiguresOf(result, TestSetup().peaks).hidden_share));
  EXPECT_EQ(CaseTable({result}, TestSetup()).find("hidden"), std::string::npos);
  for (BenchSample& sample : result.samples)
    sample.times = {
        .steps = 50, .host_seconds = 0.01, .device_seconds = 0.1, .idle_seconds = 0.0004};
  const CaseFigures f = FiguresOf(result, TestSetup().peaks);
  EXPECT_DOUBLE_EQ(f.host_ms, 0.2);
  EXPECT_DOUBLE_EQ(f.device_ms, 2);
  EXPECT_DOUBLE_EQ(f.hidden_share, 0.96);
  const std::string line = ToJson(CaseJson(result, {result}, TestSetup()));
  EXPECT_NE(line.find(R"("host_ms": 0.2, "device_ms": 2, "hidden_share": 0.96)"), std::string::npos)
      << line;
  const std::string table = CaseTable({result}, TestSetup());
  EXPECT_NE(table.find("depth 4096, batch 8: device 2.000 ms, host 0.200 ms, 96"),
            std::string::npos)
      << table;
  // The device may have waited for longer than the host took: for the launch itself.
  for (BenchSample& sample : result.samples) sample.times.idle_seconds = 0.02;
  EXPECT_EQ(FiguresOf(result, TestSetup().peaks).hidden_share, 0);
}

TEST(BenchReport, SpeedupComparesTheSameRounds) {
  BenchSetup setup = TestSetup();
  setup.methods = *ParseMethods({"default", "full", "full@planes"}, "");
  CaseResult sparse = Decode({1.0, 2.0, 1.0}), full = Decode({4.0, 4.0, 2.0}), shallow = full;
  full.bench_case.selector = 1;
  shallow.bench_case.selector = 1;
  shallow.bench_case.depth = 0;
  EXPECT_DOUBLE_EQ(SpeedupOverFull(sparse, {sparse, shallow, full}, setup), 2);  // of 4, 2 and 2
  EXPECT_TRUE(std::isnan(SpeedupOverFull(sparse, {sparse, shallow}, setup)));
  const std::string table = CaseTable({sparse, full}, setup);
  EXPECT_NE(table.find("m, planes and f16 keys and values"), std::string::npos) << table;
  EXPECT_NE(table.find("    2.00  planes  default\n"), std::string::npos) << table;
  EXPECT_NE(table.find("    1.00  f16     full\n"), std::string::npos) << table;
  EXPECT_NE(table.find("\ndefault is cascade:ratio="), std::string::npos) << table;
  // Dense attention over other storage is no base.
  full.bench_case.selector = 2;
  EXPECT_TRUE(std::isnan(SpeedupOverFull(sparse, {sparse, full}, setup)));
  EXPECT_EQ(CaseJson(full, {full}, setup).at("kv").as_string(), "planes");
  EXPECT_NE(CaseTable({sparse}, setup).find("       -  planes  default\n"), std::string::npos);
}

TEST(BenchReport, SkippedLineNamesTheCase) {
  const SkippedCase skipped{{BenchKind::kPrefill, 2048, 7168, 1}, "too long"};
  EXPECT_EQ(ToJson(SkippedJson(skipped)),
            R"({"skipped": {"kind": "prefill", "tokens": 2048, "depth": 7168, "batch": 1}, )"
            R"("reason": "too long"})");
}

TEST(BenchReport, PeaksNameOnlyDotsThatTheTargetHas) {
  const std::string json = ToJson(PeaksJson(TestSetup()));
  EXPECT_NE(json.find(R"("multiply_adds_per_s": {"f32": 50000000000})"), std::string::npos) << json;
}

TEST(Roofline, TheSlowerOfBytesAndDotsBinds) {
  MachinePeaks peaks = TestSetup().peaks;
  StepCost cost{.weight_bytes = 5'000'000'000, .kv_bytes = 5'000'000'000};
  EXPECT_DOUBLE_EQ(RooflineSeconds(cost, peaks), 1.0);
  cost.multiply_adds[static_cast<uint32_t>(DotKind::kF32)] = 100'000'000'000;
  EXPECT_DOUBLE_EQ(RooflineSeconds(cost, peaks), 2.0);
  // A kind without a peak of its own counts as the fastest there is, and kinds add up.
  cost.multiply_adds[static_cast<uint32_t>(DotKind::kU8S8)] = 50'000'000'000;
  EXPECT_DOUBLE_EQ(RooflineSeconds(cost, peaks), 3.0);
}

}  // namespace
}  // namespace tinyserve
