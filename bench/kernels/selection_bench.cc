// Times page selection of a target: the records of pages, and their scores.
//
//   selection_bench [--target NAME] [--threads N] [--head-dim 64] [--group 3] [--slabs 90]
//                   [--page-tokens 16] [--kv f16] [--pages 512] [--records one|both]
//                   [--run-pages 16] [--pool max|sum|softmax] [--seconds 0.5]
//
// A call scores `pages` pages for the `group` query heads of one KV head. Warm: the same call again
// and again, by one thread. Cold: calls in the order of an engine's step over more memory than
// caches hold, by all threads; as in the cache, a slab has runs of `run-pages` pages, next to those
// of the `slabs` others (layers times KV heads). GB/s counts what the kind scored reads; the share
// is of the read bandwidth of the same threads. `both`: records hold the other kind too. Each
// figure is the best and the median of many short repeats.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "bench/kernels/timing.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

struct Options {
  std::string target;
  uint32_t threads = 2;
  uint32_t head_dim = 64, group = 3, slabs = 90, page_tokens = 16, pages = 512, run_pages = 16;
  KvType type = KvType::kF16;
  ScorePool pool = ScorePool::kSoftmax;
  bool both = false;
  double seconds = 0.5;
};

constexpr float kAlpha = 2.0f;

// Records of several sequences in all slabs, filled with f16 from 0.5 to 1.
class RecordStore {
 public:
  RecordStore(const Options& options, uint32_t kinds)
      : layout_(MetaLayoutOf(kinds, options.head_dim)),
        run_bytes_(uint64_t{layout_.record_bytes} * options.run_pages),
        slabs_(options.slabs) {
    const uint64_t sequence_bytes = uint64_t{layout_.record_bytes} * options.pages * slabs_;
    sequences_ = static_cast<uint32_t>(kDataBytes / sequence_bytes + 1);
    const uint32_t runs = (sequences_ * options.pages + options.run_pages - 1) / options.run_pages;
    bytes_ = Allocate(runs * run_bytes_ * slabs_);
    for (uint64_t i = 0; i < runs * run_bytes_ * slabs_ / 2; ++i) {
      bytes_.as<uint16_t>()[i] = static_cast<uint16_t>(0x3800 + i * 7919 % 0x400);
    }
    for (uint32_t i = 0; i < sequences_ * options.pages; ++i) pages_.push_back(i);
    while ((1u << shift_) < options.run_pages) ++shift_;
    TS_CHECK(1u << shift_ == options.run_pages);
  }
  KvSlab Slab(uint32_t slab) const {
    return {.base = bytes_.data() + slab * run_bytes_,
            .extent_stride = run_bytes_ * slabs_,
            .extent_shift = shift_,
            .page_bytes = layout_.record_bytes,
            .v_offset = 0};
  }
  const MetaLayout& layout() const { return layout_; }
  uint32_t sequences() const { return sequences_; }
  const uint32_t* Pages(uint32_t sequence, const Options& options) const {
    return pages_.data() + uint64_t{sequence} * options.pages;
  }

 private:
  MetaLayout layout_;
  uint64_t run_bytes_;
  uint32_t slabs_, sequences_ = 0, shift_ = 0;
  Buffer bytes_;
  std::vector<uint32_t> pages_;
};

void TimeScores(const Kernels& kernels, ThreadPool& pool, const Options& options, ScoreKind kind,
                double read_rate) {
  const bool box = kind == ScoreKind::kBox;
  const uint32_t kinds = options.both ? kMetaBox | kMetaMoments : box ? kMetaBox : kMetaMoments;
  const RecordStore store(options, kinds);
  const uint64_t stride = (options.pages + 15) / 16 * 16;
  const uint64_t thread_bytes = ((options.group + 1) * stride * 4 + 4095) / 4096 * 4096;
  Buffer scratch = Allocate(thread_bytes * options.threads);
  std::vector<float> q(uint64_t{options.group} * options.head_dim);
  for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 7919 % 1009) / 500.0f - 1.0f;
  const auto score = [&](uint32_t sequence, uint32_t slab, uint32_t thread) {
    auto* head_scores = reinterpret_cast<float*>(scratch.data() + thread * thread_bytes);
    const ScoreArgs args{.layout = store.layout(),
                         .records = store.Slab(slab),
                         .kind = kind,
                         .pool = options.pool,
                         .alpha = kAlpha,
                         .head_dim = options.head_dim,
                         .group = options.group,
                         .q = q.data(),
                         .pages = store.Pages(sequence, options),
                         .count = options.pages,
                         .head_scores = head_scores,
                         .scores = head_scores + options.group * stride};
    kernels.score_pages(&args);
  };
  const double bytes = 4.0 * store.layout().channels * options.pages;
  constexpr uint32_t kWarmCalls = 50;
  const Time warm = TimeOf(options.seconds, [&] {
    for (uint32_t i = 0; i < kWarmCalls; ++i) score(0, 0, 0);
  });
  const auto calls = static_cast<uint32_t>(kStretchBytes / bytes) + 1;
  uint32_t begin = 0;
  const Time cold = TimeOf(options.seconds, [&] {
    pool.For(calls, [&](uint32_t i, uint32_t thread) {
      const uint32_t call = begin + i;
      score(call / options.slabs % store.sequences(), call % options.slabs, thread);
    });
    begin += calls;
  });
  const auto us = [](double seconds, uint32_t n) { return 1e6 * seconds / n; };
  const uint32_t n = options.threads;
  std::printf(
      "%-8s warm %6.2f us (median %6.2f), %5.1f GB/s   cold %6.2f us a call and thread (median "
      "%6.2f), %5.1f GB/s, %5.1f %% of read\n",
      box ? "box" : "moments", us(warm.best, kWarmCalls), us(warm.median, kWarmCalls),
      bytes * kWarmCalls / warm.best / 1e9, us(cold.best, calls) * n, us(cold.median, calls) * n,
      bytes * calls / cold.best / 1e9, 100 * bytes * calls / cold.best / read_rate);
}

// One thread makes records of pages that are in its caches, as those just filled are.
void TimeSummaries(const Kernels& kernels, const Options& options, uint32_t kinds,
                   const char* name) {
  constexpr uint32_t kPages = 16;
  const KvShape shape{options.type, 1, options.head_dim, options.page_tokens};
  uint32_t k_bytes, v_bytes;
  kernels.page_bytes(&shape, &k_bytes, &v_bytes);
  Buffer pages = Allocate(uint64_t{k_bytes + v_bytes} * kPages);
  const KvSlab slab{pages.data(), 0, 31, k_bytes + v_bytes, k_bytes};
  uint32_t order[kPages];
  for (uint32_t i = 0; i < kPages; ++i) order[i] = i;
  std::vector<float> keys(uint64_t{kPages} * options.page_tokens * options.head_dim);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(i * 7919 % 1009) / 500.0f;
  const AppendArgs append{.shape = shape,
                          .slab = slab,
                          .pages = order,
                          .first_slot = 0,
                          .tokens = kPages * options.page_tokens,
                          .k = keys.data(),
                          .v = keys.data(),
                          .stride = options.head_dim};
  kernels.append(&append);
  const MetaLayout layout = MetaLayoutOf(kinds, options.head_dim);
  Buffer records = Allocate(uint64_t{layout.record_bytes} * kPages);
  const KvSlab record_slab{records.data(), 0, 31, layout.record_bytes, 0};
  constexpr uint32_t kRepeats = 20;
  const Time time = TimeOf(options.seconds / 2, [&] {
    for (uint32_t i = 0; i < kRepeats * kPages; ++i) {
      const SummariseArgs args{shape, slab, record_slab, layout, i % kPages};
      kernels.summarise_page(&args);
    }
  });
  std::printf("record of a page, %-8s %6.3f us (median %6.3f)\n", name,
              1e6 * time.best / (kRepeats * kPages), 1e6 * time.median / (kRepeats * kPages));
}

template <class T>
T Named(const std::string& option, const std::string& name,
        const std::vector<std::pair<std::string, T>>& values) {
  std::string names;
  for (const auto& [known, value] : values) {
    if (name == known) return value;
    names += " " + known;
  }
  std::fprintf(stderr, "%s %s is unknown:%s\n", option.c_str(), name.c_str(), names.c_str());
  std::exit(2);
}

Options Parse(int argc, char** argv) {
  Options options;
  const std::vector<std::pair<std::string, uint32_t*>> numbers = {
      {"--threads", &options.threads},
      {"--head-dim", &options.head_dim},
      {"--group", &options.group},
      {"--slabs", &options.slabs},
      {"--page-tokens", &options.page_tokens},
      {"--pages", &options.pages},
      {"--run-pages", &options.run_pages}};
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", name.c_str());
      std::exit(2);
    }
    const std::string value = argv[i + 1];
    const auto number = std::find_if(numbers.begin(), numbers.end(),
                                     [&](const auto& known) { return known.first == name; });
    if (number != numbers.end()) {
      *number->second = static_cast<uint32_t>(std::strtoul(value.c_str(), nullptr, 10));
    } else if (name == "--target") {
      options.target = value;
    } else if (name == "--seconds") {
      options.seconds = std::atof(value.c_str());
    } else if (name == "--kv") {
      options.type = Named<KvType>(
          name, value, {{"f32", KvType::kF32}, {"f16", KvType::kF16}, {"bf16", KvType::kBF16}});
    } else if (name == "--records") {
      options.both = Named<bool>(name, value, {{"both", true}, {"one", false}});
    } else if (name == "--pool") {
      options.pool = Named<ScorePool>(
          name, value,
          {{"max", ScorePool::kMax}, {"sum", ScorePool::kSum}, {"softmax", ScorePool::kSoftmax}});
    } else {
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
  const double read_rate = ReadRate(kernels, pool, options.seconds);
  std::printf(
      "%s, %u threads, head size %u, group %u, %u pages in runs of %u, records of %s: read %.1f "
      "GB/s\n",
      kernels.name, options.threads, options.head_dim, options.group, options.pages,
      options.run_pages, options.both ? "both kinds" : "one kind", read_rate / 1e9);
  TimeScores(kernels, pool, options, ScoreKind::kBox, read_rate);
  TimeScores(kernels, pool, options, ScoreKind::kMoments, read_rate);
  TimeSummaries(kernels, options, kMetaBox, "box");
  TimeSummaries(kernels, options, kMetaMoments, "moments");
  TimeSummaries(kernels, options, kMetaBox | kMetaMoments, "both");
  return 0;
}

}  // namespace
}  // namespace tinyserve

int main(int argc, char** argv) { return tinyserve::Main(argc, argv); }
