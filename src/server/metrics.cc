#include "server/metrics.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace tinyserve {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = std::vector<double>;

// Seconds, about doubling: from a step of a small model to minutes of a long one.
const Buckets& StepBuckets() {
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                  0.2,   0.3,    0.4,   0.5,  0.75,  1,    2.5,   5,   10};
  return buckets;
}
const Buckets& RequestBuckets() {
  static const Buckets buckets = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,   2.5,
                                  5,     10,   15,    20,   30,  60,   120, 300, 600};
  return buckets;
}
const Buckets& TokenBuckets() {
  static const Buckets buckets = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000};
  return buckets;
}

class PrometheusMetrics : public Metrics {
 public:
  explicit PrometheusMetrics(const std::string& model)
      : labels_({{"model_name", model}, {"engine", "0"}}) {
    for (const char* label : {"stop", "length", "abort", "error"}) {
      success_.emplace_back(
          label, &AddCounter("vllm:request_success_total", "Finished requests by their reason",
                             {{"finished_reason", label}}));
    }
  }

  void ObserveFirstToken(double seconds) override { first_token_.Observe(seconds); }
  void ObserveTokenGap(double seconds) override {
    token_gap_.Observe(seconds);
    older_token_gap_.Observe(seconds);
  }
  void ObserveFinish(const TokenEvent& event, double seconds) override;
  void ObserveAbort() override { Success("abort").Increment(); }
  void ObserveReply(int status) override {
    AddCounter("tinyserve:http_replies_total", "Replies by their status",
               {{"status", fmt::format("{}", status)}})
        .Increment();
  }
  void SetConnections(uint64_t open) override { connections_.Set(static_cast<double>(open)); }
  LatencyTotals Latencies() const override {
    const prometheus::ClientMetric::Histogram first = first_token_.Collect().histogram;
    const prometheus::ClientMetric::Histogram gap = token_gap_.Collect().histogram;
    return {.first_tokens = first.sample_count,
            .token_gaps = gap.sample_count,
            .first_token_seconds = first.sample_sum,
            .token_gap_seconds = gap.sample_sum};
  }
  std::string Text(const EngineStats* stats) override;

 private:
  prometheus::Labels With(const prometheus::Labels& more) const {
    prometheus::Labels all = labels_;
    all.insert(more.begin(), more.end());
    return all;
  }
  // The registry gives the same family for the same name, and a family the same series.
  Counter& AddCounter(const char* name, const char* help, const prometheus::Labels& more = {}) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(With(more));
  }
  Gauge& AddGauge(const char* name, const char* help, const prometheus::Labels& more = {}) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(With(more));
  }
  Histogram& AddHistogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(labels_,
                                                                                      buckets);
  }
  Counter& Success(std::string_view label) {
    for (const auto& [name, counter] : success_) {
      if (name == label) return *counter;
    }
    return *success_.back().second;
  }
  void SetEngineSeries(const EngineStats& stats);
  void SetShadowSeries(const ShadowStats& stats);
  void SetStepSeries(const StepPluginStats& stats);
  void SetTuningSeries(const TuningStats& stats);

  prometheus::Registry registry_{prometheus::Registry::InsertBehavior::Merge};
  const prometheus::Labels labels_;
  std::vector<std::pair<std::string_view, Counter*>> success_;

  Histogram& first_token_ = AddHistogram("vllm:time_to_first_token_seconds",
                                         "Submission to first token", RequestBuckets());
  Histogram& token_gap_ = AddHistogram("vllm:inter_token_latency_seconds",
                                       "Between two tokens of a request", StepBuckets());
  Histogram& request_gap_ =
      AddHistogram("vllm:request_time_per_output_token_seconds",
                   "Between two tokens of a request, the mean of each", StepBuckets());
  Histogram& end_to_end_ = AddHistogram("vllm:e2e_request_latency_seconds",
                                        "Submission to last token", RequestBuckets());
  Histogram& queue_ =
      AddHistogram("vllm:request_queue_time_seconds", "Submission to first step", RequestBuckets());
  Histogram& prefill_ = AddHistogram("vllm:request_prefill_time_seconds",
                                     "First step to first token", RequestBuckets());
  Histogram& decode_ =
      AddHistogram("vllm:request_decode_time_seconds", "First token to last", RequestBuckets());
  Histogram& inference_ = AddHistogram("vllm:request_inference_time_seconds",
                                       "First step to last token", RequestBuckets());
  Histogram& prompt_size_ =
      AddHistogram("vllm:request_prompt_tokens", "Tokens of a request's prompt", TokenBuckets());
  Histogram& answer_size_ = AddHistogram("vllm:request_generation_tokens",
                                         "Tokens that a request generated", TokenBuckets());
  // Older names of the same, which dashboards and routers made for vLLM still ask for.
  Histogram& older_token_gap_ = AddHistogram("vllm:time_per_output_token_seconds",
                                             "As inter_token_latency_seconds", StepBuckets());
  Histogram& most_tokens_ = AddHistogram("vllm:request_max_num_generation_tokens",
                                         "As request_generation_tokens", TokenBuckets());
  Gauge& older_cache_usage_ = AddGauge("vllm:gpu_cache_usage_perc", "As kv_cache_usage_perc");
  Gauge& running_ = AddGauge("vllm:num_requests_running", "Requests that run now");
  Gauge& waiting_ = AddGauge("vllm:num_requests_waiting", "Requests that wait now");
  Gauge& cache_usage_ = AddGauge("vllm:kv_cache_usage_perc", "Used part of the KV pool, 0 to 1");
  Gauge& connections_ = AddGauge("tinyserve:connections", "Open connections");
  Gauge& blocks_ = AddGauge("tinyserve:kv_blocks_used", "KV blocks in use");
  Gauge& cached_blocks_ =
      AddGauge("tinyserve:kv_blocks_cached", "KV blocks that only hold prompts to come");
  Gauge& pinned_blocks_ =
      AddGauge("tinyserve:kv_blocks_pinned", "KV blocks that are kept for sessions");
  Gauge& sessions_ = AddGauge("tinyserve:sessions", "Sessions whose time is not over");

  // Totals of the engine: counters can only be raised, so they follow it by what is new.
  struct Followed {
    Counter& counter;
    uint64_t seen = 0;
    void To(uint64_t total) {
      if (total > seen) counter.Increment(static_cast<double>(total - seen));
      seen = std::max(seen, total);
    }
  };
  std::mutex mutex_;  // of the followed counters
  Followed prompt_tokens_{AddCounter("vllm:prompt_tokens_total", "Prompt tokens computed")};
  Followed generated_tokens_{AddCounter("vllm:generation_tokens_total", "Tokens generated")};
  Followed prefix_queries_{
      AddCounter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache")};
  Followed prefix_hits_{
      AddCounter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache")};
  Followed older_prefix_queries_{
      AddCounter("vllm:gpu_prefix_cache_queries_total", "As prefix_cache_queries_total")};
  Followed older_prefix_hits_{
      AddCounter("vllm:gpu_prefix_cache_hits_total", "As prefix_cache_hits_total")};
  Followed dropped_{AddCounter("tinyserve:dropped_tokens_total",
                               "Tokens that step plugins dropped from the KV cache")};
  Followed preemptions_{AddCounter("vllm:num_preemptions_total", "Requests put back")};
  Followed steps_{AddCounter("tinyserve:steps_total", "Forward passes")};
  Followed kv_bytes_{AddCounter("tinyserve:kv_read_bytes_total",
                                "KV bytes that steps of generated tokens alone had to read")};
  Followed kv_bytes_avoided_{
      AddCounter("tinyserve:kv_avoided_bytes_total",
                 "KV bytes that selecting queries did not read of what they could have read")};
  Followed pages_held_{AddCounter("tinyserve:selection_pages_held_total",
                                  "KV pages that selecting queries could have read")};
  Followed pages_read_{
      AddCounter("tinyserve:selection_pages_read_total", "KV pages that selecting queries read")};
  Followed pages_followed_{AddCounter("tinyserve:selection_pages_followed_total",
                                      "KV pages read right after another token's step")};
  Followed pages_reused_{AddCounter("tinyserve:selection_pages_reused_total",
                                    "Of those, the ones that the step before read too")};
  Followed failures_{AddCounter("tinyserve:selector_failures_total",
                                "Choices that failed, so that everything was read")};
};

void PrometheusMetrics::ObserveFinish(const TokenEvent& event, double seconds) {
  Success(FinishLabel(event.finish)).Increment();
  const Usage& usage = event.usage;
  end_to_end_.Observe(seconds);
  queue_.Observe(usage.queue_seconds);
  prefill_.Observe(usage.prefill_seconds);
  decode_.Observe(usage.decode_seconds);
  prompt_size_.Observe(usage.prompt_tokens);
  answer_size_.Observe(usage.completion_tokens);
  most_tokens_.Observe(usage.completion_tokens);
  inference_.Observe(usage.prefill_seconds + usage.decode_seconds);
  if (usage.completion_tokens > 1)
    request_gap_.Observe(usage.decode_seconds / (usage.completion_tokens - 1));
}

// Selectors come with requests: the engine opens a bounded number of them.
void PrometheusMetrics::SetShadowSeries(const ShadowStats& stats) {
  const auto set = [&](const char* name, const char* help, const Spread& spread) {
    const std::pair<const char*, double> values[] = {
        {"mean", spread.mean}, {"p99", spread.p99}, {"max", spread.max}};
    for (const auto& [of, value] : values)
      AddGauge(name, help, {{"selector", stats.selector}, {"of", of}}).Set(value);
  };
  AddGauge("tinyserve:shadow_checks", "Tokens that were held against dense attention",
           {{"selector", stats.selector}})
      .Set(static_cast<double>(stats.checks));
  set("tinyserve:missed_mass", "Of dense attention, on pages that were not read, 0 to 1",
      stats.missed_mass);
  set("tinyserve:output_error", "Of attention under selection, relative to dense attention",
      stats.output_error);
}

void PrometheusMetrics::SetStepSeries(const StepPluginStats& stats) {
  const auto follow = [&](const char* name, const char* help, uint64_t total) {
    Counter& counter = AddCounter(name, help, {{"plugin", stats.name}});
    const double more = static_cast<double>(total) - counter.Value();
    if (more > 0) counter.Increment(more);
  };
  follow("tinyserve:step_plugin_calls_total", "Questions to a step plugin", stats.calls);
  follow("tinyserve:step_plugin_effects_total", "Of those, the ones it answered by yes",
         stats.effects);
  follow("tinyserve:step_plugin_errors_total", "Of those, the ones that failed", stats.errors);
}

void PrometheusMetrics::SetTuningSeries(const TuningStats& stats) {
  AddGauge("tinyserve:tuning_rung", "How far the settings are below what is allowed")
      .Set(stats.rung);
  AddGauge("tinyserve:tuning_moves", "Moves to another rung since the start")
      .Set(static_cast<double>(stats.moves));
  AddGauge("tinyserve:tuning_step_seconds", "Mean step of the last window").Set(stats.step_seconds);
  AddGauge("tinyserve:tuning_ratio", "Of pages that new requests read").Set(stats.ratio);
  AddGauge("tinyserve:tuning_chunk_tokens", "Of prompts beside generation, at most")
      .Set(stats.chunk_tokens);
  AddGauge("tinyserve:tuning_sequences", "Requests that run at once, at most").Set(stats.sequences);
}

void PrometheusMetrics::SetEngineSeries(const EngineStats& stats) {
  std::lock_guard lock(mutex_);
  running_.Set(stats.running);
  waiting_.Set(stats.waiting);
  blocks_.Set(stats.blocks_used);
  const double used = stats.blocks_total == 0 ? 0
                                              : static_cast<double>(stats.blocks_used) /
                                                    static_cast<double>(stats.blocks_total);
  cache_usage_.Set(used);
  older_cache_usage_.Set(used);
  prompt_tokens_.To(stats.prompt_tokens);
  generated_tokens_.To(stats.generated_tokens);
  prefix_queries_.To(stats.prefix_queries);
  prefix_hits_.To(stats.prefix_hits);
  older_prefix_queries_.To(stats.prefix_queries);
  older_prefix_hits_.To(stats.prefix_hits);
  cached_blocks_.Set(stats.blocks_cached);
  pinned_blocks_.Set(stats.blocks_pinned);
  sessions_.Set(stats.sessions);
  preemptions_.To(stats.preemptions);
  dropped_.To(stats.dropped_tokens);
  steps_.To(stats.steps);
  kv_bytes_.To(stats.decode_kv_bytes);
  // What is kept of pages to choose among them counts as read, and may outweigh short contexts.
  const SelectionStats& s = stats.selection;
  kv_bytes_avoided_.To(s.bytes_held > s.bytes_read ? s.bytes_held - s.bytes_read : 0);
  pages_held_.To(stats.selection.pages_held);
  pages_read_.To(stats.selection.pages_read);
  pages_followed_.To(stats.selection.pages_followed);
  pages_reused_.To(stats.selection.pages_reused);
  failures_.To(stats.selection.failures);
  for (const ShadowStats& shadow : stats.shadow) SetShadowSeries(shadow);
  for (const StepPluginStats& plugin : stats.step_plugins) SetStepSeries(plugin);
  if (stats.tuning.rungs > 0) SetTuningSeries(stats.tuning);
}

std::string PrometheusMetrics::Text(const EngineStats* stats) {
  if (stats != nullptr) SetEngineSeries(*stats);
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace

std::unique_ptr<Metrics> Metrics::Create(const std::string& model) {
  return std::make_unique<PrometheusMetrics>(model);
}

const char* FinishLabel(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
    case FinishReason::kDeadline:
      return "abort";
    case FinishReason::kNone:
    case FinishReason::kError:
      break;
  }
  return "error";
}

}  // namespace tinyserve
