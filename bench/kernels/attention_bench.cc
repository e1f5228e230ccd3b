// Times attention of a target on the shape of a small model, next to what the machine can do at
// most.
//
//   attention_bench [--target NAME] [--threads N] [--head-dim 64] [--group 3] [--kv-heads 90]
//                   [--page-tokens 16] [--kv f16,int8] [--shuffle] [--depths 512,2048,4096,7168]
//                   [--chunks 16,512] [--seconds 0.5] [--decode-only] [--prompt-only] [--cpu-time]
//                   [--mib 192]
//
// Decode: one query over `depth` tokens in splits of 256, walked through more memory than caches
// hold (`mib`; 0: one head's), by each type of pages in turn. ns/page: of a thread, for a page of
// one KV head, best and median of the stretches. GB/s counts K and V once, of coded types pages
// with their records; the share is of the read bandwidth measured by the same threads. Prompt:
// `chunk` rows at `depth`, in items of at most 64 rows, as the engine cuts them. GMAC/s counts a
// multiply-add for each of q.k and p.v that causality asks for; the shares are of the measured
// peaks of f32 multiply-adds and of byte dots. Tokens/s is what attention alone would allow a model
// with `kv-heads` (layers times KV heads) of these. Each figure is the best of many short repeats.
// Prompts: of the first type, which must not be a coded one.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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

constexpr uint64_t kDataBytes = uint64_t{192} << 20;

struct Options {
  std::string target;
  uint32_t threads = 2;
  uint32_t head_dim = 64, group = 3, kv_heads = 90, page_tokens = 16;
  std::vector<KvType> types = {KvType::kF16};
  bool shuffle = false, decode = true, prompt = true, cpu_time = false;
  std::vector<uint32_t> depths = {512, 2048, 4096, 7168}, chunks = {16, 512};
  double seconds = 0.5;
  uint64_t mib = kDataBytes >> 20;
};

struct NamedType {
  const char* name;
  KvType type;
};
constexpr NamedType kTypes[] = {{"f32", KvType::kF32},   {"f16", KvType::kF16},
                                {"bf16", KvType::kBF16}, {"planes", KvType::kPlanes},
                                {"int8", KvType::kInt8}, {"k8v4", KvType::kK8V4},
                                {"int4", KvType::kInt4}};
const char* NameOf(KvType type) {
  return std::find_if(std::begin(kTypes), std::end(kTypes),
                      [&](const NamedType& named) { return named.type == type; })
      ->name;
}

constexpr uint32_t kSplitTokens = 256;
constexpr uint32_t kItemRows = 64;
// Bytes of a timed stretch of decode or reading: short, so that on a busy machine some are
// undisturbed.
constexpr uint64_t kStretchBytes = uint64_t{24} << 20;

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

// What records of a type's pages hold.
uint32_t KindsOf(KvType type) {
  if (!IsCoded(type)) return 0;
  return IsRanged(type) ? kMetaRange : kMetaSpread;
}

// Caches of several KV heads, all with the same tokens.
class Caches {
 public:
  Caches(const Kernels& kernels, const Options& options, KvType type, uint32_t tokens)
      : kernels_(kernels),
        shape_{type, options.kv_heads, options.head_dim, options.page_tokens},
        layout_(MetaLayoutOf(KindsOf(type), options.head_dim)),
        tokens_(tokens) {
    if (IsCoded(type)) tokens = tokens_ = (tokens + 15) / 16 * 16;
    kernels.page_bytes(&shape_, &k_bytes_, &v_bytes_);
    const uint32_t pages = (tokens + shape_.page_tokens - 1) / shape_.page_tokens;
    head_bytes_ = uint64_t{pages} * (k_bytes_ + v_bytes_);
    records_bytes_ = (uint64_t{pages} * layout_.record_bytes + 63) / 64 * 64;
    heads_ = static_cast<uint32_t>(std::max((options.mib << 20) / head_bytes_, uint64_t{1}));
    bytes_ = Allocate(head_bytes_ * heads_);
    records_ = Allocate(records_bytes_ * heads_ + 64);
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
    if (IsCoded(type)) {
      Seal(values);
    } else {
      Append(shape_, Slab(0), pages_.data(), tokens, values.data());
    }
    for (uint32_t h = 1; h < heads_; ++h) {
      std::memcpy(bytes_.data() + h * head_bytes_, bytes_.data(), head_bytes_);
      std::memcpy(records_.data() + h * records_bytes_, records_.data(), records_bytes_);
    }
  }

  KvSlab Slab(uint32_t head) const {
    return {.base = bytes_.data() + head * head_bytes_,
            .extent_stride = 0,
            .extent_shift = 31,
            .page_bytes = k_bytes_ + v_bytes_,
            .v_offset = k_bytes_};
  }
  KvSlab Records(uint32_t head) const {
    return {.base = records_.data() + head * records_bytes_,
            .extent_stride = 0,
            .extent_shift = 31,
            .page_bytes = layout_.record_bytes,
            .v_offset = 0};
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
  const MetaLayout& layout() const { return layout_; }
  uint32_t heads() const { return heads_; }
  uint32_t tokens() const { return tokens_; }
  double token_bytes() const {
    const uint32_t values = shape_.head_dim * 2 * shape_.page_tokens;
    const double page_bytes = IsCoded(shape_.type) ? k_bytes_ + v_bytes_ + layout_.record_bytes
                              : shape_.type == KvType::kF32 ? 4.0 * values
                                                            : 2.0 * values;
    return page_bytes / shape_.page_tokens;
  }

 private:
  void Append(const KvShape& shape, const KvSlab& slab, const uint32_t* pages, uint32_t tokens,
              const float* values) const {
    const AppendArgs args{.shape = shape,
                          .slab = slab,
                          .pages = pages,
                          .first_slot = 0,
                          .tokens = tokens,
                          .k = values,
                          .v = values,
                          .stride = shape.head_dim};
    kernels_.append(&args);
  }

  void Seal(const std::vector<float>& values) {
    const KvShape open{KvType::kF32, 1, shape_.head_dim, shape_.page_tokens};
    uint32_t k_bytes, v_bytes;
    kernels_.page_bytes(&open, &k_bytes, &v_bytes);
    const Buffer page = Allocate(k_bytes + v_bytes);
    const KvSlab slab{page.data(), 0, 31, k_bytes + v_bytes, k_bytes};
    const uint32_t first = 0;
    for (uint32_t i = 0; i < pages_.size(); ++i) {
      const uint64_t at = uint64_t{i} * shape_.page_tokens * shape_.head_dim;
      Append(open, slab, &first, shape_.page_tokens, values.data() + at);
      const SealArgs args{open, slab, first, shape_, Slab(0), Records(0), layout_, pages_[i]};
      kernels_.seal_page(&args);
    }
  }

  const Kernels& kernels_;
  KvShape shape_;
  MetaLayout layout_;
  uint32_t tokens_, heads_, k_bytes_, v_bytes_;
  uint64_t head_bytes_, records_bytes_;
  Buffer bytes_, records_;
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

// Decode over the caches of one type: stretches of it, one after another.
class DecodeWork {
 public:
  DecodeWork(const Kernels& kernels, ThreadPool& pool, const Options& options, KvType type,
             uint32_t depth)
      : kernels_(kernels),
        pool_(pool),
        group_(options.group),
        caches_(kernels, options, type, depth),
        splits_((caches_.tokens() + kSplitTokens - 1) / kSplitTokens),
        items_(splits_ * caches_.heads()),
        work_(pool.threads(), kernels.decode_scratch_bytes(&caches_.shape(), group_, kSplitTokens),
              group_ * (options.head_dim + 2ull)),
        q_(uint64_t{group_} * options.head_dim) {
    for (size_t i = 0; i < q_.size(); ++i) q_[i] = static_cast<float>(i * 7919 % 1009) / 500 - 1;
    const double item_bytes = caches_.token_bytes() * std::min(depth, kSplitTokens);
    per_stretch_ = std::min(items_, static_cast<uint32_t>(kStretchBytes / item_bytes) + 1);
  }

  // Seconds.
  double Stretch() {
    const double start = Now();
    pool_.For(per_stretch_, [&](uint32_t i, uint32_t thread) { Attend(begin_ + i, thread); });
    begin_ = (begin_ + per_stretch_) % items_;
    return Now() - start;
  }
  // Splits may be shorter at the end of a head: their mean length.
  double tokens() const { return 1.0 * per_stretch_ * caches_.tokens() / splits_; }
  double token_bytes() const { return caches_.token_bytes(); }
  const KvShape& shape() const { return caches_.shape(); }

 private:
  PageView View(uint32_t item) const {
    const uint32_t first = item % splits_ * kSplitTokens;
    return caches_.View(first, std::min(caches_.tokens(), first + kSplitTokens));
  }
  void Attend(uint32_t i, uint32_t thread) {
    const uint32_t item = i % items_, next = (item + pool_.threads()) % items_;
    float* out = work_.Out(thread);
    const DecodeArgs args{.shape = caches_.shape(),
                          .slab = caches_.Slab(item / splits_),
                          .records = caches_.Records(item / splits_),
                          .layout = caches_.layout(),
                          .view = View(item),
                          .group = group_,
                          .scale = 0.125f,
                          .q = q_.data(),
                          .out = {.m = out, .d = out + group_, .o = out + 2 * group_},
                          .scratch = work_.Scratch(thread),
                          .next_slab = caches_.Slab(next / splits_),
                          .next_view = View(next)};
    kernels_.attend_decode(&args);
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
  const uint32_t group_;
  const Caches caches_;
  const uint32_t splits_, items_;
  Workspace work_;
  std::vector<float> q_;
  uint32_t per_stretch_, begin_ = 0;
};

void TimeDecode(const Kernels& kernels, ThreadPool& pool, const Options& options,
                const Peaks& peaks, uint32_t depth) {
  std::vector<std::unique_ptr<DecodeWork>> works;
  for (const KvType type : options.types) {
    works.push_back(std::make_unique<DecodeWork>(kernels, pool, options, type, depth));
  }
  std::vector<std::vector<double>> times(works.size());
  const double end = Now() + options.seconds * static_cast<double>(works.size());
  while (times[0].size() < 6 || Now() < end) {
    for (size_t i = 0; i < works.size(); ++i) times[i].push_back(works[i]->Stretch());
  }
  for (size_t i = 0; i < works.size(); ++i) {
    const DecodeWork& work = *works[i];
    std::sort(times[i].begin(), times[i].end());
    const double best = times[i].front(), median = times[i][times[i].size() / 2];
    const double to_ns = 1e9 * pool.threads() * work.shape().page_tokens / work.tokens();
    const double rate = work.tokens() * work.token_bytes() / best;
    std::printf(
        "decode  %-6s depth %5u  %6.1f ns/page (median %6.1f)  %6.2f GB/s  %5.1f %% of read  "
        "%7.0f tokens/s\n",
        NameOf(work.shape().type), depth, best * to_ns, median * to_ns, rate / 1e9,
        100 * rate / peaks.bytes_per_s,
        rate / (1.0 * options.kv_heads * depth * work.token_bytes()));
  }
}

void TimePrompt(const Kernels& kernels, ThreadPool& pool, const Options& options,
                const Peaks& peaks, uint32_t depth, uint32_t chunk, Compute compute) {
  const Caches caches(kernels, options, options.types[0], depth + chunk);
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

std::vector<KvType> TypesNamed(const std::string& list) {
  std::vector<KvType> types;
  std::stringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');) {
    const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                     [&](const NamedType& type) { return name == type.name; });
    if (found == std::end(kTypes)) {
      std::fprintf(stderr, "unknown --kv %s (f32, f16, bf16, planes, int8, k8v4, int4)\n",
                   name.c_str());
      std::exit(2);
    }
    types.push_back(found->type);
  }
  return types;
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
      options.types = TypesNamed(value());
    else if (name == "--depths")
      options.depths = Numbers(value());
    else if (name == "--chunks")
      options.chunks = Numbers(value());
    else if (name == "--seconds")
      options.seconds = std::atof(value().c_str());
    else if (name == "--mib")
      options.mib = Numbers(value())[0];
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
  Options options = Parse(argc, argv);
  options.prompt = options.prompt && !IsCoded(options.types[0]);
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
