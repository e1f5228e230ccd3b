// Times the cascade of a target over coded pages.
//
//   cascade_bench [--target NAME] [--threads 2] [--head-dim 64] [--group 3] [--pages 448]
//                 [--items 720] [--candidates 0.4] [--full 0.02] [--values 0.15]
//                 [--least-share 0.00006] [--seconds 1]
//
// A call is the decode attention of one (sequence, layer, KV head). Calls go over `items` times as
// much memory, more than caches hold, by all threads, as in an engine's step; the same call again
// and again by one thread is warm. Budgets are shares of the pages, and of their tokens. Bytes are
// those of the records, the upper planes with mean values and scales, and the rows that are read,
// in whole lines; the share is of the read bandwidth of the same threads.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "bench/kernels/timing.h"
#include "kernels/targets.h"
#include "page/planes.h"

namespace tinyserve {
namespace {

struct Options {
  std::string target;
  uint32_t threads = 2;
  uint32_t head_dim = 64, group = 3, pages = 448, items = 720;
  double candidates = 0.4, full = 0.02, values = 0.15, least_share = 0.00006;
  double seconds = 1;
};

// Items of coded pages, all with the same tokens: keys wander, as those of a text do, and some of
// them stand out to the queries. Queries differ, so that no call's branches foretell another's.
class Items {
 public:
  Items(const Kernels& kernels, const Options& options)
      : options_(options),
        shape_{KvType::kPlanes, 1, options.head_dim, kPlanesTokens},
        open_{KvType::kF16, 1, options.head_dim, kPlanesTokens},
        layout_(MetaLayoutOf(kMetaSpread, options.head_dim)) {
    kernels.page_bytes(&shape_, &k_bytes_, &v_bytes_);
    data_ = Allocate(DataBytes() * options.items);
    records_ = Allocate(RecordBytes() * options.items);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const uint32_t dim = options.head_dim;
    q_.resize(uint64_t{options.group} * dim);
    for (float& x : q_) x = normal(random);
    std::vector<float> drift(dim), k(dim), v(dim);
    uint32_t k_open, v_open;
    kernels.page_bytes(&open_, &k_open, &v_open);
    Buffer page = Allocate(k_open + v_open);
    const KvSlab open_slab{page.data(), 0, 31, k_open + v_open, k_open};
    const uint32_t first = 0;
    for (uint32_t p = 0; p < options.pages; ++p) {
      pages_.push_back(p);
      for (uint32_t t = 0; t < kPlanesTokens; ++t) {
        const float pull = std::pow(std::fabs(normal(random)), 3.0f) * 0.1f;
        for (uint32_t c = 0; c < dim; ++c) {
          drift[c] = 0.99f * drift[c] + 0.1f * normal(random);
          k[c] = 2 * drift[c] + normal(random) + pull * q_[c] + (c % 16 == 3 ? 6.0f : 0.0f);
          v[c] = normal(random);
        }
        const AppendArgs append{open_, open_slab, &first, t, 1, k.data(), v.data(), dim};
        kernels.append(&append);
      }
      const SealArgs seal{open_, open_slab, 0, shape_, Slab(0), Records(0), layout_, p};
      kernels.seal_page(&seal);
    }
    const uint64_t floats = q_.size();
    q_.resize(floats * options.items);
    for (uint64_t i = floats; i < q_.size(); ++i) {
      q_[i] = 0.7f * q_[i % floats] + 0.7f * normal(random);
    }
    for (uint32_t i = 1; i < options.items; ++i) {
      std::memcpy(Slab(i).base, Slab(0).base, DataBytes());
      std::memcpy(Records(i).base, Records(0).base, RecordBytes());
    }
  }

  CascadeArgs Args(uint32_t item) const {
    const auto share = [](double ratio, uint32_t of) {
      return static_cast<uint32_t>(std::lround(ratio * of));
    };
    const uint32_t tokens = options_.pages * kPlanesTokens;
    return {.shape = shape_,
            .slab = Slab(item),
            .records = Records(item),
            .layout = layout_,
            .pages = pages_.data(),
            .count = options_.pages,
            .sink = 1,
            .recent = 1,
            .candidates = share(options_.candidates, options_.pages),
            .full_tokens = share(options_.full, tokens),
            .value_tokens = share(options_.values, tokens),
            .least_share = static_cast<float>(options_.least_share),
            .alpha = 1,
            .group = options_.group,
            .scale = 1 / std::sqrt(static_cast<float>(options_.head_dim)),
            .q = q_.data() + uint64_t{item} * options_.group * options_.head_dim};
  }

  // Bytes that a call has read, in whole lines.
  double CallBytes(const CascadeCounts& counts) const {
    const PlanesLayout at = PlanesLayoutOf(options_.head_dim);
    return 1.0 * counts.pages_scored * layout_.record_bytes + 1.0 * counts.candidates * at.low_at +
           1.0 * counts.full_tokens * LineBytes(at.low_bytes) +
           1.0 * counts.value_tokens * LineBytes(at.channels);
  }
  double DenseBytes() const { return options_.pages * kPlanesTokens * options_.head_dim * 4.0; }
  const KvShape& shape() const { return shape_; }

 private:
  uint64_t DataBytes() const { return uint64_t{k_bytes_ + v_bytes_} * options_.pages; }
  uint64_t RecordBytes() const {
    return (uint64_t{layout_.record_bytes} * options_.pages + 63) / 64 * 64;
  }
  KvSlab Slab(uint32_t item) const {
    return {data_.data() + item * DataBytes(), 0, 31, k_bytes_ + v_bytes_, k_bytes_};
  }
  KvSlab Records(uint32_t item) const {
    return {records_.data() + item * RecordBytes(), 0, 31, layout_.record_bytes, 0};
  }

  const Options options_;
  KvShape shape_, open_;
  MetaLayout layout_;
  uint32_t k_bytes_ = 0, v_bytes_ = 0;
  Buffer data_, records_;
  std::vector<float> q_;
  std::vector<uint32_t> pages_;
};

void Run(const Kernels& kernels, const Options& options) {
  ThreadPool pool(options.threads);
  const Items items(kernels, options);
  const uint64_t floats = uint64_t{options.group} * (options.head_dim + 2);
  const uint64_t scratch_bytes =
      kernels.cascade_scratch_bytes(&items.shape(), options.group, options.pages);
  const uint64_t stride = (scratch_bytes + 2 * floats * 4 + 8191) / 4096 * 4096;
  Buffer scratch = Allocate(stride * options.threads);
  std::vector<CascadeCounts> counts(options.items);
  const auto call = [&](uint32_t item, uint32_t thread) {
    uint8_t* at = scratch.data() + thread * stride;
    auto* out = reinterpret_cast<float*>(at + (scratch_bytes + 63) / 64 * 64);
    CascadeArgs args = items.Args(item);
    args.scratch = at;
    args.out = {out, out + options.group, out + 2 * options.group};
    args.open = {out + floats, out + floats + options.group, nullptr};
    for (uint32_t h = 0; h < options.group; ++h) args.open.d[h] = 0;
    counts[item] = kernels.attend_cascade(&args);
  };
  const double rate = ReadRate(kernels, pool, 0.5);
  const Time warm = TimeOf(options.seconds, [&] { call(0, 0); });
  const Time cold = TimeOf(options.seconds, [&] { pool.For(options.items, call); });
  const double each = options.threads / static_cast<double>(options.items) * 1e6;
  double bytes = 0, values = 0;
  for (const CascadeCounts& of : counts) {
    bytes += items.CallBytes(of) / options.items;
    values += 1.0 * of.value_tokens / options.items;
  }
  std::printf(
      "%s, %u threads, read bandwidth %.1f GB/s; %.0f values, %.0f KB a call, %.1f %% of dense "
      "f16\n",
      kernels.name, options.threads, rate * 1e-9, values, bytes * 1e-3,
      100 * bytes / items.DenseBytes());
  std::printf("warm  %6.1f us (median %.1f)\n", warm.best * 1e6, warm.median * 1e6);
  std::printf("cold  %6.1f us (median %.1f) of a thread, %.2f of bandwidth\n", cold.best * each,
              cold.median * each, bytes * options.items / cold.best / rate);
  std::printf("dense f16 at this bandwidth: %.1f us of a thread\n",
              items.DenseBytes() / rate * options.threads * 1e6);
}

}  // namespace

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    TS_CHECK(i + 1 < argc);
    const std::string value = argv[++i];
    const auto number = [&] {
      return static_cast<uint32_t>(std::strtoul(value.c_str(), nullptr, 10));
    };
    if (flag == "--target")
      options.target = value;
    else if (flag == "--threads")
      options.threads = number();
    else if (flag == "--head-dim")
      options.head_dim = number();
    else if (flag == "--group")
      options.group = number();
    else if (flag == "--pages")
      options.pages = number();
    else if (flag == "--items")
      options.items = number();
    else if (flag == "--candidates")
      options.candidates = std::strtod(value.c_str(), nullptr);
    else if (flag == "--full")
      options.full = std::strtod(value.c_str(), nullptr);
    else if (flag == "--least-share")
      options.least_share = std::strtod(value.c_str(), nullptr);
    else if (flag == "--values")
      options.values = std::strtod(value.c_str(), nullptr);
    else if (flag == "--seconds")
      options.seconds = std::strtod(value.c_str(), nullptr);
    else {
      std::fprintf(stderr, "cascade_bench: unknown flag %s\n", flag.c_str());
      return 2;
    }
  }
  const auto kernels = TargetFor(options.target);
  if (!kernels.ok()) {
    std::fprintf(stderr, "cascade_bench: %s\n", kernels.status().message().c_str());
    return 2;
  }
  Run(**kernels, options);
  return 0;
}

}  // namespace tinyserve

int main(int argc, char** argv) { return tinyserve::Main(argc, argv); }
