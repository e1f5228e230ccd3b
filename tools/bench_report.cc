#include "tools/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/machine.h"
#include "tools/eval_figures.h"
#include "tools/format.h"
#include "tools/layer_report.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr char kFull[] = "full";

// Digits beyond what a timing can tell are noise for whoever reads the line.
double Rounded(double value, int digits) {
  const double scale = std::pow(10.0, digits);
  return std::round(value * scale) / scale;
}

}  // namespace

CaseFigures FiguresOf(const CaseResult& result, const MachinePeaks& peaks) {
  const BenchCase& c = result.bench_case;
  std::vector<double> rates;
  for (const BenchSample& s : result.samples) {
    rates.push_back(static_cast<double>(c.tokens) * c.batch / s.seconds);
  }
  CaseFigures figures;
  figures.tokens_per_s_median = Median(rates);
  figures.tokens_per_s_min = *std::min_element(rates.begin(), rates.end());
  figures.tokens_per_s_max = *std::max_element(rates.begin(), rates.end());
  // Every round of a case does the same work.
  const BenchSample& sample = result.samples.front();
  const double seconds = static_cast<double>(c.tokens) * c.batch / figures.tokens_per_s_median;
  figures.bytes_per_step = sample.bytes / static_cast<double>(sample.steps);
  const bool has_peaks = peaks.read_bytes_per_s > 0;
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  figures.bandwidth_share = has_peaks ? sample.bytes / seconds / peaks.read_bytes_per_s : kUnknown;
  figures.roofline_share = has_peaks ? sample.roofline_seconds / seconds : kUnknown;
  DeviceTimes times;
  for (const BenchSample& s : result.samples) {
    times.steps += s.times.steps;
    times.host_seconds += s.times.host_seconds;
    times.device_seconds += s.times.device_seconds;
    times.idle_seconds += s.times.idle_seconds;
  }
  const double steps = times.steps > 0 ? static_cast<double>(times.steps) : kUnknown;
  figures.host_ms = times.host_seconds * 1e3 / steps;
  figures.device_ms = times.device_seconds * 1e3 / steps;
  const double seen = std::min(times.idle_seconds, times.host_seconds);
  figures.hidden_share = times.steps > 0 ? 1 - seen / times.host_seconds : kUnknown;
  return figures;
}

double SpeedupOverFull(const CaseResult& result, const std::vector<CaseResult>& results,
                       const BenchSetup& setup) {
  const BenchCase& c = result.bench_case;
  for (const CaseResult& other : results) {
    const BenchCase& o = other.bench_case;
    const bool same = c.kind == BenchKind::kDecode && o.kind == c.kind && o.tokens == c.tokens &&
                      o.depth == c.depth && o.batch == c.batch;
    if (!same || !setup.methods[o.selector].IsBase(setup.base_kv)) continue;
    std::vector<double> ratios;
    for (size_t round = 0; round < result.samples.size(); ++round)
      ratios.push_back(other.samples[round].seconds / result.samples[round].seconds);
    return Median(std::move(ratios));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

json::object CaseJson(const CaseResult& result, const std::vector<CaseResult>& results,
                      const BenchSetup& setup) {
  const BenchCase& c = result.bench_case;
  const CaseFigures f = FiguresOf(result, setup.peaks);
  const bool decodes = c.kind == BenchKind::kDecode;
  const Method& method = setup.methods[c.selector];
  json::object out = {{"engine", "tinyserve"},
                      {"kind", BenchKindName(c.kind)},
                      {"tokens", c.tokens},
                      {"depth", c.depth},
                      {"batch", c.batch},
                      {"selector", decodes ? method.typed : kFull},
                      {"resolved", decodes ? method.resolved : kFull},
                      {"tokens_per_s", json::object{{"median", Rounded(f.tokens_per_s_median, 2)},
                                                    {"min", Rounded(f.tokens_per_s_min, 2)},
                                                    {"max", Rounded(f.tokens_per_s_max, 2)}}},
                      {"speedup_over_full", Rounded(SpeedupOverFull(result, results, setup), 4)},
                      {"bytes_per_step", static_cast<uint64_t>(f.bytes_per_step)},
                      {"roofline_share", Rounded(f.roofline_share, 4)},
                      {"bandwidth_share", Rounded(f.bandwidth_share, 4)},
                      {"target", setup.target},
                      {"threads", setup.threads},
                      {"kv", method.kv},
                      {"compute", setup.compute},
                      {"text", setup.text.empty() ? json::value() : json::value(setup.text)}};
  if (!std::isnan(f.hidden_share)) {
    out["host_ms"] = Rounded(f.host_ms, 4);
    out["device_ms"] = Rounded(f.device_ms, 4);
    out["hidden_share"] = Rounded(f.hidden_share, 4);
  }
  if (!result.samples.front().layers.empty()) {
    out["layers"] = LayersJson(result.samples.front().layers);
  }
  return out;
}

json::object SkippedJson(const SkippedCase& skipped) {
  const BenchCase& c = skipped.bench_case;
  return {{"skipped", json::object{{"kind", BenchKindName(c.kind)},
                                   {"tokens", c.tokens},
                                   {"depth", c.depth},
                                   {"batch", c.batch}}},
          {"reason", skipped.reason}};
}

namespace {

json::object DevicePeaksJson(const DevicePeaks& peaks) {
  return {{"engine", "tinyserve"},
          {"kind", "machine"},
          {"device", peaks.device},
          {"copy_bytes_per_s", std::round(peaks.copy_bytes_per_s)},
          {"multiply_adds_per_s", json::object{{"f32", std::round(peaks.f32)},
                                               {"dp4a", std::round(peaks.dp4a)},
                                               {"tensor_f16", std::round(peaks.tensor_f16)},
                                               {"tensor_bf16", std::round(peaks.tensor_bf16)}}}};
}

std::string DevicePeaksTable(const DevicePeaks& peaks) {
  return fmt::format(
      "{}\n  copies {}, read and written; multiply-adds a second: f32 {:.0f} G dp4a {:.0f} G, of "
      "tensor cores f16 {:.0f} G bf16 {:.0f} G\n",
      PrintableLine(peaks.device, 100), FormatBandwidth(peaks.copy_bytes_per_s), peaks.f32 / 1e9,
      peaks.dp4a / 1e9, peaks.tensor_f16 / 1e9, peaks.tensor_bf16 / 1e9);
}

}  // namespace

json::object PeaksJson(const BenchSetup& setup) {
  if (setup.device_peaks) return DevicePeaksJson(*setup.device_peaks);
  json::object dots;
  for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
    const double peak = setup.peaks.multiply_adds_per_s[kind];
    if (peak > 0) dots[DotKindName(static_cast<DotKind>(kind))] = std::round(peak);
  }
  return {{"engine", "tinyserve"},
          {"kind", "machine"},
          {"cpu", CpuName()},
          {"threads", setup.threads},
          {"target", setup.target},
          {"read_bytes_per_s", std::round(setup.peaks.read_bytes_per_s)},
          {"multiply_adds_per_s", std::move(dots)}};
}

std::string PeaksTable(const BenchSetup& setup) {
  if (setup.device_peaks) return DevicePeaksTable(*setup.device_peaks);
  std::string out = fmt::format("{}, {} threads, target {}\n  reads {}", CpuName(), setup.threads,
                                setup.target, FormatBandwidth(setup.peaks.read_bytes_per_s));
  out += "; multiply-adds a second:";
  for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
    const double peak = setup.peaks.multiply_adds_per_s[kind];
    if (peak > 0)
      out += fmt::format(" {} {:.0f} G", DotKindName(static_cast<DotKind>(kind)), peak / 1e9);
  }
  return out + "\n";
}

namespace {

// How much of the host's time passes beside the device's.
std::string DeviceLines(const std::vector<CaseResult>& results, const BenchSetup& setup) {
  std::string out;
  for (const CaseResult& result : results) {
    const BenchCase& c = result.bench_case;
    const CaseFigures f = FiguresOf(result, setup.peaks);
    if (std::isnan(f.hidden_share)) continue;
    if (out.empty()) out = "\nA step of generated tokens:\n";
    out +=
        fmt::format("  depth {}, batch {}: device {:.3f} ms, host {:.3f} ms, {} of it hidden  {}\n",
                    c.depth, c.batch, f.device_ms, f.host_ms, FormatShare(f.hidden_share),
                    PrintableLine(setup.methods[c.selector].typed, 200));
  }
  return out;
}

}  // namespace

std::string CaseTable(const std::vector<CaseResult>& results, const BenchSetup& setup) {
  // Methods have columns where any but the base was asked for.
  const bool compares = setup.methods.size() > 1 || !setup.methods[0].IsBase(setup.base_kv);
  std::string out = fmt::format(
      "{}, {} keys and values, compute {}, chunks of {} tokens, prompts of {}\n"
      "{:<8}{:>7}{:>7}{:>7}{:>11}{:>23}{:>12}{:>11}{:>10}{}\n",
      setup.model.empty() ? "model" : PrintableLine(setup.model, 60),
      ListStorages(StoragesOf(setup.methods)), setup.compute, setup.chunk_tokens,
      setup.text.empty() ? "random tokens" : PrintableLine(setup.text, 60), "kind", "tokens",
      "depth", "batch", "tokens/s", "(min - max)", "bytes/step", "bandwidth", "roofline",
      compares ? "  x full  kv      selector" : "");
  for (const CaseResult& result : results) {
    const BenchCase& c = result.bench_case;
    const CaseFigures f = FiguresOf(result, setup.peaks);
    out += fmt::format("{:<8}{:>7}{:>7}{:>7}{:>11.1f}{:>23}{:>12}{:>11}{:>10}",
                       BenchKindName(c.kind), c.tokens, c.depth, c.batch, f.tokens_per_s_median,
                       fmt::format("({:.1f} - {:.1f})", f.tokens_per_s_min, f.tokens_per_s_max),
                       FormatBytes(static_cast<uint64_t>(f.bytes_per_step)),
                       FormatShare(f.bandwidth_share), FormatShare(f.roofline_share));
    const Method& method = setup.methods[c.selector];
    if (compares && c.kind == BenchKind::kDecode) {
      const double speedup = SpeedupOverFull(result, results, setup);
      out += fmt::format("{:>8}  {:<6}  {}",
                         std::isnan(speedup) ? "-" : fmt::format("{:.2f}", speedup), method.kv,
                         PrintableLine(method.typed, 200));
    } else if (compares) {
      out += fmt::format("{:>8}  {}", "", method.kv);
    }
    out += '\n';
  }
  if (compares) out += ResolvedLines(setup.methods);
  out += DeviceLines(results, setup);
  for (const CaseResult& result : results) {
    const BenchCase& c = result.bench_case;
    const std::string layers = LayerTable(result.samples.front().layers);
    if (layers.empty()) continue;
    out +=
        fmt::format("\n{} at depth {}, batch {}: pages of a query\n{}",
                    PrintableLine(setup.methods[c.selector].typed, 200), c.depth, c.batch, layers);
  }
  return out;
}

}  // namespace tinyserve
