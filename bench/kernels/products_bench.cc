// Times the products of a target on the shapes of a small model, next to what the machine can do at
// most.
//
//   products_bench [--target NAME] [--threads N] [--types Q4_1,Q8_0] [--rows 1,8,16,64,512]
//   [--seconds 0.2]
//
// A case is a matrix and a number of activation rows. With few rows the weights come from memory:
// as many copies are walked as no cache holds (one, with --weights cached). GB/s counts the matrix
// as packed, GMAC/s rows * outputs * columns; the shares are of the measured peaks of reading and
// of the format's kind of dot product. Each figure is the best of several repeats.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/targets.h"
#include "kernels/testing.h"

namespace tinyserve {
namespace {

using testing::Buffer;

struct Options {
  std::string target;
  uint32_t threads = 2;
  std::vector<std::string> types = {"Q4_1", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q5_1", "F16", "BF16"};
  std::vector<uint32_t> rows = {1, 8, 16, 64, 512};
  double seconds = 0.2;
  bool f32 = false;
  bool cached = false;
};

struct Shape {
  const char* name;
  uint32_t outputs, cols;
};
// SmolLM2-135M: query and output, key and value, gate or up, down, head (a part of it; all rows are
// alike). The K types need columns by 256: they take Llama-3.2-1B's.
constexpr Shape kShapes[] = {{"q/o 576x576", 576, 576},
                             {"k/v 192x576", 192, 576},
                             {"gate 1536x576", 1536, 576},
                             {"down 576x1536", 576, 1536},
                             {"head 49152x576", 49152, 576}};
constexpr Shape kShapesK[] = {{"q/o 2048x2048", 2048, 2048}, {"down 2048x8192", 2048, 8192}};

double Now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// The shortest time of one call of `work`, repeated for about `seconds`.
double BestTime(double seconds, const std::function<void()>& work) {
  work();
  double best = 1e30;
  const double end = Now() + seconds;
  for (int repeat = 0; repeat < 5 || Now() < end; ++repeat) {
    const double start = Now();
    work();
    best = std::min(best, Now() - start);
  }
  return best;
}

struct Peaks {
  double bytes_per_s;
  double macs_per_s[kDotKinds];
};

Peaks MeasurePeaks(const Kernels& kernels, ThreadPool& pool, double seconds) {
  Peaks peaks = {};
  constexpr uint64_t kBytes = uint64_t{512} << 20;
  constexpr uint32_t kPieces = 64;
  Buffer data(kBytes);
  std::memset(data.data(), 1, kBytes);
  std::vector<uint64_t> sums(kPieces);
  peaks.bytes_per_s = kBytes / BestTime(seconds * 4, [&] {
                        pool.For(kPieces, [&](uint32_t item, uint32_t) {
                          const uint64_t piece = kBytes / kPieces;
                          sums[item] = kernels.read_bytes(data.data() + item * piece, piece);
                        });
                      });
  for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
    constexpr uint64_t kMacs = 20'000'000;
    uint64_t done = 0;
    const double time = BestTime(seconds, [&] {
      pool.For(pool.threads(), [&](uint32_t item, uint32_t) {
        const uint64_t n = kernels.run_dots(static_cast<DotKind>(kind), kMacs);
        if (item == 0) done = n;
      });
    });
    peaks.macs_per_s[kind] = static_cast<double>(done) * pool.threads() / time;
  }
  return peaks;
}

DType TypeNamed(const std::string& name) {
  for (const DType type : testing::kAllTypes) {
    if (name == InfoOf(type).name) return type;
  }
  std::fprintf(stderr, "unknown type %s\n", name.c_str());
  std::exit(2);
}

DotKind KindOf(const PackedMatrix& w) {
  if (w.acts == ActKind::kF32) return DotKind::kF32;
  if (w.acts == ActKind::kBF16) return DotKind::kBF16;
  const bool nibbles = w.type == DType::kQ4_0 || w.type == DType::kQ4_1 || w.type == DType::kQ4_K;
  return nibbles ? DotKind::kU4S8 : DotKind::kU8S8;
}

// Copies of one matrix, together larger than the caches when `stream`.
struct Matrices {
  PackedMatrix plan;
  uint32_t copies;
  Buffer bytes;
};

Matrices MakeMatrices(const Kernels& kernels, Compute compute, DType type, const Shape& shape) {
  constexpr uint64_t kBytesMin = uint64_t{96} << 20;
  const testing::Source source = testing::MakeSource(type, shape.outputs, shape.cols, 1);
  const testing::Packed packed = testing::Pack(kernels, compute, source);
  const uint64_t bytes = packed.matrix.panels * packed.matrix.panel_bytes;
  const auto copies = static_cast<uint32_t>((kBytesMin + bytes - 1) / bytes);
  Matrices result{packed.matrix, copies, Buffer(bytes * copies)};
  for (uint32_t c = 0; c < copies; ++c) {
    std::memcpy(result.bytes.data() + c * bytes, packed.bytes.data(), bytes);
  }
  return result;
}

void RunCase(const Kernels& kernels, ThreadPool& pool, const Options& options, const Peaks& peaks,
             const Shape& shape, const Matrices& matrices, uint32_t rows) {
  const PackedMatrix& plan = matrices.plan;
  const uint64_t bytes = plan.panels * plan.panel_bytes;
  const uint64_t act_row_bytes = kernels.act_row_bytes(plan.acts, plan.cols);
  std::vector<float> x(size_t{rows} * plan.cols);
  testing::Random random(2);
  for (float& value : x) value = random.Signed();
  Buffer acts(act_row_bytes * rows);
  kernels.make_acts(plan.acts, x.data(), plan.cols, rows, plan.cols, acts.data());
  std::vector<float> out(size_t{rows} * plan.rows);
  // Enough work a measurement: all copies for a row, fewer for many.
  const uint32_t copies = std::max(1u, matrices.copies / rows);
  const uint32_t pieces = pool.threads() * 4;
  const double time = BestTime(options.seconds, [&] {
    for (uint32_t c = 0; c < copies; ++c) {
      PackedMatrix w = plan;
      w.data = matrices.bytes.data() + (options.cached ? 0 : c * bytes);
      pool.For(pieces, [&](uint32_t piece, uint32_t) {
        MatMulArgs args = {};
        args.w = &w;
        args.acts = acts.data();
        args.act_row_bytes = act_row_bytes;
        args.row_end = rows;
        args.panel_begin = plan.panels / 2 * piece / pieces * 2;
        args.panel_end = plan.panels / 2 * (piece + 1) / pieces * 2;
        args.out = out.data();
        args.out_stride = plan.rows;
        kernels.matmul(&args);
      });
    }
  });
  const double gb_per_s = bytes / time * copies * 1e-9;
  const double macs = double(rows) * plan.rows * plan.cols * copies / time;
  const double kind_peak = peaks.macs_per_s[static_cast<uint32_t>(KindOf(plan))];
  std::printf("%-5s %-15s rows %3u  %9.2f us  %6.2f GB/s (%3.0f %%)  %7.2f GMAC/s (%3.0f %%)\n",
              InfoOf(plan.type).name, shape.name, rows, time / copies * 1e6, gb_per_s,
              100 * gb_per_s * 1e9 / peaks.bytes_per_s, macs * 1e-9, 100 * macs / kind_peak);
  std::fflush(stdout);
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> parts(1);
  for (const char c : list) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", name.c_str());
      std::exit(2);
    }
    const std::string value = argv[i + 1];
    if (name == "--target") {
      options.target = value;
    } else if (name == "--threads") {
      options.threads = static_cast<uint32_t>(std::stoul(value));
    } else if (name == "--types") {
      options.types = Split(value);
    } else if (name == "--seconds") {
      options.seconds = std::stod(value);
    } else if (name == "--weights") {
      options.cached = value == "cached";
    } else if (name == "--compute") {
      options.f32 = value == "f32";
    } else if (name == "--rows") {
      options.rows.clear();
      for (const std::string& part : Split(value)) {
        options.rows.push_back(static_cast<uint32_t>(std::stoul(part)));
      }
    } else {
      std::fprintf(stderr,
                   "unknown option %s; known: --target --threads --types --rows --seconds "
                   "--compute fast|f32 --weights streamed|cached\n",
                   name.c_str());
      std::exit(2);
    }
  }
  return options;
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  const auto target = TargetFor(options.target);
  if (!target.ok()) {
    std::fprintf(stderr, "%s\n", target.status().message().c_str());
    return 1;
  }
  const Kernels& kernels = **target;
  ThreadPool pool(options.threads);
  const Peaks peaks = MeasurePeaks(kernels, pool, options.seconds);
  std::printf(
      "target %s, threads %u: read %.1f GB/s; GMAC/s: f32 %.1f, bf16 %.1f, u8s8 %.1f, u4s8 %.1f\n",
      kernels.name, options.threads, peaks.bytes_per_s * 1e-9, peaks.macs_per_s[0] * 1e-9,
      peaks.macs_per_s[1] * 1e-9, peaks.macs_per_s[2] * 1e-9, peaks.macs_per_s[3] * 1e-9);
  const Compute compute = options.f32 ? Compute::kF32 : Compute::kFast;
  for (const std::string& name : options.types) {
    const DType type = TypeNamed(name);
    const bool k_type = InfoOf(type).block_elems == 256;
    const Shape* shapes = k_type ? std::begin(kShapesK) : std::begin(kShapes);
    const Shape* end = k_type ? std::end(kShapesK) : std::end(kShapes);
    for (; shapes != end; ++shapes) {
      const Matrices matrices = MakeMatrices(kernels, compute, type, *shapes);
      for (const uint32_t rows : options.rows) {
        RunCase(kernels, pool, options, peaks, *shapes, matrices, rows);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace tinyserve

int main(int argc, char** argv) { return tinyserve::Main(argc, argv); }
