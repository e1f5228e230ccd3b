// Times attention of a target on the shape of a small model, next to what the machine can do at
// most.
//
//   attention_bench [--target NAME] [--threads N] [--head-dim 64] [--group 3] [--kv-heads 90]
//                   [--page-tokens 16] [--kv f16] [--shuffle] [--depths 512,2048,4096,7168]
//                   [--chunks 16,512] [--seconds 0.5] [--decode-only] [--prompt-only] [--cpu-time]
//
// Decode: one query over `depth` tokens in splits of 256, walked through more memory than caches
// hold. GB/s counts K and V once; the share is of the read bandwidth measured by the same threads.
// Prompt: `chunk` rows at `depth`, in items of at most 64 rows, as the engine cuts them. GMAC/s
// counts a multiply-add for each of q.k and p.v that causality asks for; the shares are of the
// measured peaks of f32 multiply-adds and of byte dots. Tokens/s is what attention alone would
// allow a model with `kv-heads` (layers times KV heads) of these. Each figure is the best of many
// short repeats.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

struct Options {
  std::string target;
  uint32_t threads = 2;
  uint32_t head_dim = 64, group = 3, kv_heads = 90, page_tokens = 16;
  KvType type = KvType::kF16;
  bool shuffle = false, decode = true, prompt = true, cpu_time = false;
  std::vector<uint32_t> depths = {512, 2048, 4096, 7168}, chunks = {16, 512};
  double seconds = 0.5;
};

constexpr uint32_t kSplitTokens = 256;
constexpr uint32_t kItemRows = 64;
// Bytes of a timed stretch of decode or reading: short, so that on a busy machine some are
// undisturbed.
constexpr uint64_t kStretchBytes = uint64_t{24} << 20;
constexpr uint64_t kDataBytes = uint64_t{192} << 20;

double Now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double ProcessorNow() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double BestTime(double seconds, const std::function<void()>& work) {
  work();
  double best = 1e30;
  const double end = Now() + seconds;
  for (int repeat = 0; repeat < 3 || Now() < end; ++repeat) {
    const double start = Now();
    work();
    best = std::min(best, Now() - start);
  }
  return best;
}

Buffer Allocate(uint64_t bytes) {
  auto buffer = Buffer::Allocate(bytes, true);
  TS_CHECK(buffer.ok());
  return std::move(*buffer);
}

struct Peaks {
  double bytes_per_s;
  double f32_macs_per_s, byte_macs_per_s;
};

double DotPeak(const Kernels& kernels, ThreadPool& pool, DotKind kind, const Options& options) {
  constexpr uint64_t kMacs = 20'000'000;
  uint64_t done = 0;
  std::vector<double> item_times(pool.threads(), 1e30);
  const double time = BestTime(options.seconds, [&] {
    pool.For(pool.threads(), [&](uint32_t item, uint32_t) {
      const double start = ProcessorNow();
      const uint64_t n = kernels.run_dots(kind, kMacs);
      item_times[item] = std::min(item_times[item], ProcessorNow() - start);
      if (item == 0) done = n;
    });
  });
  return static_cast<double>(done) * pool.threads() / (options.cpu_time ? item_times[0] : time);
}

Peaks MeasurePeaks(const Kernels& kernels, ThreadPool& pool, const Options& options) {
  Buffer data = Allocate(kDataBytes);
  std::memset(data.data(), 1, kDataBytes);
  constexpr uint32_t kPieces = 24;
  constexpr uint64_t kPiece = kStretchBytes / kPieces;
  std::vector<uint64_t> sums(kPieces);
  uint64_t at = 0;
  Peaks peaks;
  peaks.bytes_per_s = kStretchBytes / BestTime(options.seconds * 2, [&] {
                        pool.For(kPieces, [&](uint32_t item, uint32_t) {
                          sums[item] = kernels.read_bytes(data.data() + at + item * kPiece, kPiece);
                        });
                        at = at + 2 * kStretchBytes <= kDataBytes ? at + kStretchBytes : 0;
                      });
  peaks.f32_macs_per_s = DotPeak(kernels, pool, DotKind::kF32, options);
  peaks.byte_macs_per_s = DotPeak(kernels, pool, DotKind::kU8S8, options);
  return peaks;
}

// Caches of several KV heads, all with the same tokens.
class Caches {
 public:
  Caches(const Kernels& kernels, const Options& options, uint32_t tokens)
      : kernels_(kernels),
        shape_{options.type, options.kv_heads, options.head_dim, options.page_tokens},
        tokens_(tokens) {
    kernels.page_bytes(&shape_, &k_bytes_, &v_bytes_);
    const uint32_t pages = (tokens + shape_.page_tokens - 1) / shape_.page_tokens;
    head_bytes_ = uint64_t{pages} * (k_bytes_ + v_bytes_);
    heads_ = static_cast<uint32_t>((kDataBytes + head_bytes_ - 1) / head_bytes_);
    bytes_ = Allocate(head_bytes_ * heads_);
    uint64_t state = 1;
    const auto random = [&] { return state = state * 6364136223846793005u + 1442695040888963407u; };
    for (uint32_t i = 0; i < pages; ++i) pages_.push_back(i);
    for (uint32_t i = pages; options.shuffle && i > 1; --i) {
      std::swap(pages_[i - 1], pages_[random() / 65536 % i]);
    }
    std::vector<float> values(uint64_t{tokens} * shape_.head_dim);
    for (float& value : values) {
      value = static_cast<float>(static_cast<int64_t>(random()) >> 32) * 0x1p-31f;
    }
    for (uint32_t h = 0; h < heads_; ++h) {
      const AppendArgs args{.shape = shape_,
                            .slab = Slab(h),
                            .pages = pages_.data(),
                            .first_slot = 0,
                            .tokens = tokens,
                            .k = values.data(),
                            .v = values.data(),
                            .stride = shape_.head_dim};
      kernels.append(&args);
    }
  }

  KvSlab Slab(uint32_t head) const {
    return {.base = bytes_.data() + head * head_bytes_,
            .extent_stride = 0,
            .extent_shift = 31,
            .page_bytes = k_bytes_ + v_bytes_,
            .v_offset = k_bytes_};
  }
  // Tokens first .. end - 1; first begins a page.
  PageView View(uint32_t first, uint32_t end) const {
    const uint32_t count = (end - first + shape_.page_tokens - 1) / shape_.page_tokens;
    return {.pages = pages_.data() + first / shape_.page_tokens,
            .count = count,
            .last_tokens = end - first - (count - 1) * shape_.page_tokens,
            .space = MemorySpace::kHost};
  }
  const KvShape& shape() const { return shape_; }
  uint32_t heads() const { return heads_; }
  uint32_t tokens() const { return tokens_; }
  uint64_t token_bytes() const {
    return uint64_t{shape_.head_dim} * 2 * (shape_.type == KvType::kF32 ? 4 : 2);
  }

 private:
  const Kernels& kernels_;
  KvShape shape_;
  uint32_t tokens_, heads_, k_bytes_, v_bytes_;
  uint64_t head_bytes_;
  Buffer bytes_;
  std::vector<uint32_t> pages_;
};

// Scratch and outputs of every thread.
struct Workspace {
  Workspace(uint32_t threads, uint64_t scratch_bytes, uint64_t out_floats)
      : stride((scratch_bytes + out_floats * 4 + 4095) / 4096 * 4096),
        scratch_bytes_rounded((scratch_bytes + 63) / 64 * 64),
        bytes(Allocate(threads * (stride + 4096))) {}
  uint8_t* Scratch(uint32_t thread) { return bytes.data() + thread * (stride + 4096); }
  float* Out(uint32_t thread) {
    return reinterpret_cast<float*>(Scratch(thread) + scratch_bytes_rounded);
  }
  uint64_t stride, scratch_bytes_rounded;
  Buffer bytes;
};

void TimeDecode(const Kernels& kernels, ThreadPool& pool, const Options& options,
                const Peaks& peaks, uint32_t depth) {
  const Caches caches(kernels, options, depth);
  const KvShape& shape = caches.shape();
  const uint32_t g = options.group, splits = (depth + kSplitTokens - 1) / kSplitTokens;
  const uint32_t items = splits * caches.heads();
  const uint64_t out_floats = g * (shape.head_dim + 2ull);
  Workspace work(pool.threads(), kernels.decode_scratch_bytes(&shape, g, kSplitTokens), out_floats);
  const std::vector<float> q(uint64_t{g} * shape.head_dim, 0.1f);
  const auto view = [&](uint32_t item) {
    const uint32_t first = item % splits * kSplitTokens;
    return caches.View(first, std::min(depth, first + kSplitTokens));
  };
  const uint32_t per_stretch = std::min<uint64_t>(
      items, kStretchBytes / (caches.token_bytes() * std::min(depth, kSplitTokens)) + 1);
  uint32_t begin = 0;
  const double time = BestTime(options.seconds, [&] {
    pool.For(per_stretch, [&](uint32_t i, uint32_t thread) {
      const uint32_t item = (begin + i) % items, next = (item + pool.threads()) % items;
      float* out = work.Out(thread);
      const DecodeArgs args{.shape = shape,
                            .slab = caches.Slab(item / splits),
                            .view = view(item),
                            .group = g,
                            .scale = 0.125f,
                            .q = q.data(),
                            .out = {.m = out, .d = out + g, .o = out + 2 * g},
                            .scratch = work.Scratch(thread),
                            .next_slab = caches.Slab(next / splits),
                            .next_view = view(next)};
      kernels.attend_decode(&args);
    });
    begin = (begin + per_stretch) % items;
  });
  // Splits may be shorter at the end of a head: their mean length.
  const double bytes = 1.0 * per_stretch * depth / splits * caches.token_bytes();
  const double rate = bytes / time;
  std::printf("decode  depth %5u              %6.2f GB/s  %5.1f %% of read   %7.0f tokens/s\n",
              depth, rate / 1e9, 100 * rate / peaks.bytes_per_s,
              rate / (1.0 * options.kv_heads * depth * caches.token_bytes()));
}

void TimePrompt(const Kernels& kernels, ThreadPool& pool, const Options& options,
                const Peaks& peaks, uint32_t depth, uint32_t chunk, Compute compute) {
  const Caches caches(kernels, options, depth + chunk);
  const KvShape& shape = caches.shape();
  const uint32_t g = options.group, pieces = (chunk + kItemRows - 1) / kItemRows;
  const uint64_t width = uint64_t{g} * shape.head_dim;
  Workspace work(pool.threads(), kernels.prompt_scratch_bytes(&shape, g, kItemRows),
                 kItemRows * width);
  std::vector<float> q(kItemRows * width);
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 7919 % 1009) / 500.0f - 1.0f;
  // Two heads a thread, so that uneven pieces balance out.
  const uint32_t heads = std::min(caches.heads(), 2 * pool.threads());
  uint32_t first_head = 0;
  std::vector<double> item_times(heads * pieces, 1e30);
  double time = BestTime(options.seconds, [&] {
    pool.For(heads * pieces, [&](uint32_t item, uint32_t thread) {
      const uint32_t row = item % pieces * kItemRows, rows = std::min(kItemRows, chunk - row);
      const PromptArgs args{.shape = shape,
                            .slab = caches.Slab((first_head + item / pieces) % caches.heads()),
                            .view = caches.View(0, depth + row + rows),
                            .group = g,
                            .scale = 0.125f,
                            .first_position = depth + row,
                            .rows = rows,
                            .q = q.data(),
                            .q_stride = width,
                            .out = work.Out(thread),
                            .out_stride = width,
                            .scratch = work.Scratch(thread),
                            .compute = compute};
      const double start = ProcessorNow();
      kernels.attend_prompt(&args);
      item_times[item] = std::min(item_times[item], ProcessorNow() - start);
    });
    first_head = (first_head + heads) % caches.heads();
  });
  if (options.cpu_time) {
    time = std::accumulate(item_times.begin(), item_times.end(), 0.0) / pool.threads();
  }
  const double keys = 1.0 * chunk * depth + chunk * (chunk + 1.0) / 2;
  const double rate = heads * keys * width * 2 / time;
  std::printf(
      "prompt  depth %5u  chunk %4u  %s  %6.1f GMAC/s  %5.1f %% of f32  %5.1f %% of bytes  %7.0f "
      "tokens/s\n",
      depth, chunk, compute == Compute::kFast ? "fast" : "f32 ", rate / 1e9,
      100 * rate / peaks.f32_macs_per_s, 100 * rate / peaks.byte_macs_per_s,
      chunk / (time / heads * options.kv_heads));
}

std::vector<uint32_t> Numbers(const std::string& list) {
  std::vector<uint32_t> numbers;
  std::stringstream stream(list);
  for (std::string one; std::getline(stream, one, ',');) {
    numbers.push_back(static_cast<uint32_t>(std::strtoul(one.c_str(), nullptr, 10)));
  }
  return numbers;
}

KvType TypeNamed(const std::string& name) {
  if (name == "f32") return KvType::kF32;
  if (name == "bf16") return KvType::kBF16;
  if (name == "f16") return KvType::kF16;
  std::fprintf(stderr, "unknown --kv %s (f32, f16, bf16)\n", name.c_str());
  std::exit(2);
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&] {
      if (++i < argc) return std::string(argv[i]);
      std::fprintf(stderr, "%s needs a value\n", name.c_str());
      std::exit(2);
    };
    if (name == "--target")
      options.target = value();
    else if (name == "--threads")
      options.threads = Numbers(value())[0];
    else if (name == "--head-dim")
      options.head_dim = Numbers(value())[0];
    else if (name == "--group")
      options.group = Numbers(value())[0];
    else if (name == "--kv-heads")
      options.kv_heads = Numbers(value())[0];
    else if (name == "--page-tokens")
      options.page_tokens = Numbers(value())[0];
    else if (name == "--kv")
      options.type = TypeNamed(value());
    else if (name == "--depths")
      options.depths = Numbers(value());
    else if (name == "--chunks")
      options.chunks = Numbers(value());
    else if (name == "--seconds")
      options.seconds = std::atof(value().c_str());
    else if (name == "--shuffle")
      options.shuffle = true;
    else if (name == "--cpu-time") {
      options.cpu_time = true;
    } else if (name == "--decode-only")
      options.prompt = false;
    else if (name == "--prompt-only")
      options.decode = false;
    else {
      std::fprintf(stderr, "unknown option %s\n", name.c_str());
      std::exit(2);
    }
  }
  return options;
}

int Main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  const auto target = TargetFor(options.target);
  if (!target.ok()) {
    std::fprintf(stderr, "%s\n", target.status().message().c_str());
    return 2;
  }
  const Kernels& kernels = **target;
  ThreadPool pool(options.threads);
  const Peaks peaks = MeasurePeaks(kernels, pool, options);
  std::printf(
      "%s, %u threads, head size %u, group %u, pages of %u%s: read %.1f GB/s, f32 %.0f "
      "GMAC/s, byte dots %.0f GMAC/s\n",
      kernels.name, options.threads, options.head_dim, options.group, options.page_tokens,
      options.shuffle ? " shuffled" : "", peaks.bytes_per_s / 1e9, peaks.f32_macs_per_s / 1e9,
      peaks.byte_macs_per_s / 1e9);
  for (const uint32_t depth : options.depths) {
    if (options.decode) TimeDecode(kernels, pool, options, peaks, depth);
  }
  for (const uint32_t depth : options.depths) {
    for (const uint32_t chunk : options.chunks) {
      if (!options.prompt) continue;
      TimePrompt(kernels, pool, options, peaks, depth, chunk, Compute::kFast);
      TimePrompt(kernels, pool, options, peaks, depth, chunk, Compute::kF32);
    }
  }
  return 0;
}

}  // namespace
}  // namespace tinyserve

int main(int argc, char** argv) { return tinyserve::Main(argc, argv); }
