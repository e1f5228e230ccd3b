// TinyServe's embedding API: open a model, submit requests, receive token events, cancel.
//
//   tinyserve::EngineOptions options;
//   options.model_path = "model.gguf";
//   auto engine = tinyserve::Engine::Open(options);
//   if (!engine.ok()) { puts(engine.status().message().c_str()); return 1; }
//   tinyserve::Request request;
//   request.prompt = *(*engine)->Tokenize("The capital of France is", true, false);
//   request.max_tokens = 16;
//   auto id = (*engine)->Submit(request, [](const tinyserve::TokenEvent& e) { fputs(e.text.c_str(),
//   stdout); });
//   (*engine)->Wait(*id);
//
// Every function may be called from any thread. Event sinks run on the engine's own thread: they
// must return quickly, must not throw, and must not call Wait.
#ifndef TINYSERVE_ENGINE_H_
#define TINYSERVE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// What EngineOptions::target_itl_ms does at the moment.
struct TuningStats {
  uint32_t rung = 0, rungs = 0;  // 0 of how many: everything allowed; rungs is 0 where it is off
  uint64_t moves = 0;
  double step_seconds = 0;    // mean of the last window of steps that generated
  uint32_t chunk_tokens = 0;  // of prompts beside generation, at most
  double ratio = 0;           // of new requests' selector; 0: it has none that moves
  uint32_t sequences = 0;     // that run at once, at most
};

struct EngineOptions {
  std::string model_path;  // a GGUF file (any shard's first file of a split model)
  uint32_t threads = 0;    // compute threads; 0: the cores this process may really use
  uint32_t context_tokens =
      0;  // longest sequence; 0: the model's own, as far as kv_memory_bytes allows
  uint64_t kv_memory_bytes = 0;  // size of the KV pool, fixed at start; 0: one full context or a
                                 // quarter of the memory limit
  // How keys and values are stored: f32, f16, bf16; with page_tokens 16 coded: planes in 8 bits,
  // int8, k8v4 (keys in 8 bits, values in 4), int4; empty: planes where the selector reads them,
  // else f16.
  std::string kv;
  std::string compute =
      "fast";  // fast: integer dots over int8 activations; f32: the accuracy reference
  std::string
      target;  // SIMD target by name; empty: TINYSERVE_TARGET, else the best of this machine
  // cpu, auto, or cuda[:N], which is refused with what is missing. auto (and empty): the first CUDA
  // device where there is one that can compute what is asked, else the CPU.
  std::string device;
  // What generated tokens read: NAME[:key=value,...] as docs/selection.md lists them. What a
  // selector needs to know of a page is kept from the start, so a request may only ask for another
  // one that needs no more than is kept.
  std::string selector = "full";
  // Further selectors that requests may name: what they need is kept as well. At most 16.
  std::vector<std::string> metadata;
  bool time_selection = false;  // whether SelectionStats holds times
  // Share of the tokens made under selection that are held against dense attention, each at one
  // random (layer, KV head): EngineStats::shadow. 0..1; no output changes.
  double shadow_check = 0;
  // Shared objects that bring selectors or step plugins (tinyserve/plugin.h).
  std::vector<std::string> plugins;
  // Step plugins, NAME[:key=value,...] as docs/selection.md lists them, at most 8: early_exit lets
  // sure tokens leave the model early, low_entropy_end ends answers that loop, token_pruning drops
  // tokens from the cache (not with prefix_cache).
  std::vector<std::string> step_plugins;
  uint32_t page_tokens = 16;       // 4, 8, 16, 32, 64; where pages are coded 16
  uint32_t block_tokens = 32;      // a multiple of page_tokens, at most 256
  uint32_t sequences_max = 64;     // requests that run at once
  uint32_t step_tokens_max = 512;  // tokens of one step: decodes first, the rest is prefill
  uint32_t queue_max = 1024;       // requests that wait
  // Writes what every step and request did, and when, to this file in Chrome's JSON trace format;
  // empty: none.
  std::string trace_path;
  // Keys and values of earlier prompts and answers are used again where a prompt begins like them.
  bool prefix_cache = true;
  // Of them only what prefill made, so that an answer is bit for bit that of an engine which never
  // saw the earlier request. Else also what was generated under the same selector: the text that a
  // conversation goes on from is then kept in the numbers with which it was generated.
  bool exact_reuse = false;
  // Which of them give way first when memory is needed: lru, what was not used for longest; lfu,
  // what was used least often, aged; cost, by uses times the work of computing it anew.
  std::string cache_policy = "lru";
  // Conversations (Request::session): how many are known at a time, how long one lasts without a
  // request, and which share of the pool's blocks may be kept for their sake; 0..1.
  uint32_t sessions_max = 1024;
  double session_ttl_seconds = 300;
  double session_share = 0.5;
  // Time between two tokens to hold, 0.1..60000; 0: off. Where steps take longer, prompts get
  // smaller chunks, then new requests the selector with a smaller ratio, never below min_ratio,
  // then fewer requests run at once. A request's selector is settled when it is admitted: its text
  // does not depend on load that comes later.
  double target_itl_ms = 0;
  double min_ratio = 0.1;                                 // 0.001..1
  std::function<void(const TuningStats&)> on_tuning;      // after each move, on the engine's thread
  std::function<void(double fraction)> on_load_progress;  // called on the opening thread, 0..1
};

struct SamplingOptions {
  float temperature = 0.0f;  // 0: greedy; else 0 < t <= 100
  uint32_t top_k = 0;        // 0: off
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1): drop tokens below min_p times the best probability
  float repetition_penalty =
      1.0f;  // (0, 100]: divides positive, multiplies negative logits of tokens already seen
  float presence_penalty = 0.0f;   // [-2, 2], subtracted once for a token already generated
  float frequency_penalty = 0.0f;  // [-2, 2], subtracted for each time it was generated
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to logits; [-100, 100]
  uint64_t seed = 0;  // the same seed gives the same text, whatever else runs
};

enum class Priority : uint8_t { kHigh, kNormal, kLow };

// How the hidden states of a prompt's tokens, after the last norm, become one vector.
enum class Pooling : uint8_t {
  kNone,
  kMean,  // of all tokens; none of them is taken from the cache
  kLast,  // that of the last token, which has seen all others
};

// What the tokens of one answer must follow, one step at a time. Called by the engine's threads:
// for one request by one at a time, for different requests at once.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets bit t % 32 of bits[t / 32] for each token t that may come next; end tokens, where the
  // answer may end here. `bits`: [(vocab + 31) / 32], all zero. An error ends the request with
  // kError.
  virtual Status Mask(std::span<uint32_t> bits) = 0;
  // The token that was sampled; not called for one that ends the answer.
  virtual Status Accept(int32_t token) = 0;
};

enum class GrammarKind : uint8_t {
  kJsonSchema,
  kRegex,  // of the whole answer, in the syntax of Rust's crate regex
  kLark,   // a context-free grammar in Lark's form, beginning at `start`
};

// A grammar that Engine::CompileGrammar made; the engine must outlive it. Any thread.
class Grammar {
 public:
  virtual ~Grammar() = default;
  // For one request.
  virtual Result<std::shared_ptr<TokenConstraint>> Start() const = 0;
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  uint32_t max_tokens = 256;    // 0: only process the prompt
  SamplingOptions sampling;
  std::vector<std::string>
      stop;  // text that ends the answer and is not part of it; at most 16, 256 bytes each
  std::vector<int32_t> stop_tokens;  // beside the model's own end tokens
  bool ignore_eos = false;
  uint32_t min_tokens = 0;    // end tokens are not sampled before
  int32_t top_logprobs = -1;  // -1: none; 0: of the chosen token; n <= 20: and of the n best
  bool prompt_logprobs =
      false;  // log-probability of every prompt token after the first, in the final event
  // Other than kNone: the prompt's embedding, in the final event. With max_tokens 0 alone.
  Pooling pooling = Pooling::kNone;
  // Conversation that this request belongs to, of its client; at most 256 bytes. What the cache
  // holds of its latest request gives way after all that belongs to no conversation.
  std::string session;
  // Whose it is, at most 256 bytes: clients are served alike, however much each asks for.
  std::string client;
  // Of requests without a client, who is served alike in its place; at most 256 bytes. It owns
  // nothing: sessions and cached prefixes are the client's.
  std::string peer;
  std::string salt;  // cached prefixes are shared only among equal salts; at most 256 bytes
  Priority priority = Priority::kNormal;
  uint64_t deadline_ms = 0;  // since submission; 0: none
  std::string selector;      // as EngineOptions::selector; "": the engine's own
  // As EngineOptions::step_plugins, in place of the engine's own. Those that end answers are not
  // asked before min_tokens, nor with ignore_eos or a constraint.
  std::optional<std::vector<std::string>> step_plugins;
  // Of this request alone; null: none. Not together with ignore_eos, min_tokens.
  std::shared_ptr<TokenConstraint> constraint;
  bool spell_control = false;  // control tokens are in the answer's text as they are spelled
};

using RequestId = uint64_t;

struct TokenLogprob {
  int32_t token;
  float logprob;
};

enum class FinishReason : uint8_t {
  kNone,
  kStop,
  kLength,
  kCancelled,
  kDeadline,
  kError,  // the event's `status` says what: kCorrupt where the model computes no finite numbers
};

// What selecting queries did; a query is one generated token at one (layer, KV head).
struct SelectionStats {
  uint64_t queries = 0;
  uint64_t pages_held = 0, pages_scored = 0, pages_read = 0;
  // Of the pages read by queries whose sequence also decoded at the position before: how many, and
  // how many of them were read there too. Hit rate: pages_reused / pages_followed.
  uint64_t pages_followed = 0, pages_reused = 0;
  uint64_t tokens_read = 0;
  uint64_t bytes_read = 0;  // pages and what is kept of them
  uint64_t bytes_held = 0;  // of the same pages in the same storage: what reading all would read
  uint64_t failures = 0;    // of a selector: everything was read
  // With EngineOptions::time_selection: thread time. A kernel that scores, chooses and attends in
  // one call (cascade) counts as attention; a plugin's call counts as choosing.
  double score_seconds = 0, select_seconds = 0, attend_seconds = 0;
};

struct Usage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt: not computed, but found in the cache
  uint32_t completion_tokens = 0;
  double queue_seconds = 0;        // submission to first step
  double prefill_seconds = 0;      // first step to the first token's logits
  double decode_seconds = 0;       // first token to last
  double first_token_seconds = 0;  // submission to first token
  // What was read for the tokens that were generated, after the first one: by those that select as
  // the selector chose, by others everything (which counts as no hit); again where they were
  // replayed. No times.
  SelectionStats reads;
};

struct TokenEvent {
  enum class Kind : uint8_t {
    kPrefill,   // `done` of `total` prompt tokens are processed
    kToken,     // one token; `text` may be empty while a character or a stop string is incomplete
    kFinished,  // last event of a request, always sent; `text` holds what was held back
  };
  Kind kind = Kind::kToken;
  RequestId request = 0;
  uint32_t done = 0, total = 0;
  int32_t token = -1;
  std::string text;  // complete UTF-8 characters only
  float logprob = 0;
  std::vector<TokenLogprob> top;
  FinishReason finish = FinishReason::kNone;
  Status status;                       // of kFinished with kError
  std::vector<float> prompt_logprobs;  // of kFinished
  // Of kFinished, beside prompt_logprobs: the top_logprobs likeliest tokens at each place, best
  // first.
  std::vector<std::vector<TokenLogprob>> prompt_top;
  // Of kFinished: [ModelInfo::dim], of length 1, where Request::pooling asks for it.
  std::vector<float> embedding;
  Usage usage;  // of kFinished
};

using EventSink = std::function<void(const TokenEvent&)>;

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

struct ModelInfo {
  std::string name, architecture, target, kv;
  std::string selector;            // with every option
  uint64_t parameters = 0;         // elements of all tensors
  uint64_t tensor_bytes = 0;       // as stored in the file
  uint64_t packed_bytes = 0;       // as repacked in memory
  uint64_t step_weight_bytes = 0;  // packed weights that every decode step reads
  uint32_t layers = 0, dim = 0, vocab = 0, threads = 0;
  uint32_t context_trained = 0;  // tokens
  uint32_t context_tokens = 0;   // longest sequence of this engine
  uint64_t kv_bytes_per_token = 0;
  // Of a sequence's newest tokens beside them, which are not coded yet; 0 where nothing is coded.
  uint64_t kv_window_bytes = 0;
  uint64_t kv_pool_bytes = 0;
  bool has_chat_template = false;  // the file carries one: a model that follows instructions
};

// What the model file says of its tokenizer, for those who prepare prompts elsewhere.
struct TokenizerInfo {
  std::string bos_token, eos_token;       // as they are spelled; "": the vocabulary has none
  bool add_bos = false, add_eos = false;  // by Tokenize with add_special
  std::vector<int32_t> end_tokens;        // that end an answer
  std::string chat_template;              // what RenderChat uses: Jinja
};

// SelectionStats at one layer and KV head.
struct LayerSelection {
  uint32_t layer = 0, kv_head = 0;
  SelectionStats stats;
};

struct Spread {
  double mean = 0, p99 = 0, max = 0;  // p99: at most 4 % too large
};

// What EngineOptions::shadow_check found of one selector. A check is one token at one (layer, KV
// head), dense attention being computed over the same stored keys and values.
struct ShadowStats {
  std::string selector;  // with every option
  uint64_t checks = 0;
  Spread missed_mass;   // of the dense attention, that lies on pages which were not read; 0..1
  Spread output_error;  // |output - dense output| / |dense output|
};

// What a step plugin did, under all its options.
struct StepPluginStats {
  std::string name;
  uint64_t calls = 0;
  uint64_t effects = 0;  // calls that were answered by yes
  uint64_t errors = 0;   // calls that failed: nothing was changed
};

struct EngineStats {
  uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, requests = 0, preemptions = 0;
  uint32_t running = 0, waiting = 0;
  // cached: held for prompts to come alone, and given up when blocks are needed.
  uint32_t blocks_total = 0, blocks_used = 0, blocks_used_max = 0, blocks_cached = 0;
  uint32_t blocks_pinned = 0;  // that are kept for conversations, in use or not
  uint32_t sessions = 0;
  // Prompt tokens that were looked up in the prefix cache, and those of them that were found.
  uint64_t prefix_queries = 0, prefix_hits = 0;
  uint64_t decode_kv_bytes = 0;  // that steps of generated tokens alone had to read
  uint64_t decode_tokens = 0;    // of those steps
  uint64_t dropped_tokens = 0;   // from the cache, by step plugins; again where they were replayed
  SelectionStats selection;
  std::vector<ShadowStats> shadow;  // by selectors that were checked
  TuningStats tuning;
  std::vector<StepPluginStats> step_plugins;  // that were on
  // What the last step failed with that the device could not run; empty: none, or some step has
  // succeeded since.
  std::string device_error;
};

// A conversation whose time is not over.
struct SessionInfo {
  std::string session;
  double age_seconds = 0;   // since its first request
  double idle_seconds = 0;  // since its last one began or ended
  uint64_t requests = 0, prompt_tokens = 0, generated_tokens = 0;
  uint32_t running = 0;  // requests that have not ended
};

struct RunningRequest {
  RequestId id = 0;
  uint32_t prompt_tokens = 0, generated_tokens = 0;
  std::string session;
};

// Which pages a request's newest token read.
struct PageReads {
  std::vector<RunningRequest> running;  // of the client, in order of submission
  RequestId request = 0;                // that is shown; 0: none has generated yet
  uint32_t tokens = 0;                  // of its sequence that the cache holds
  uint32_t page_tokens = 0, layers = 0, kv_heads = 0;
  std::string selector;  // with every option
  // [layers][kv_heads][(pages + 63) / 64], pages = (tokens + page_tokens - 1) / page_tokens: a bit
  // a page, that of page p in word p / 64.
  std::vector<uint64_t> bits;
};

// What EngineOptions::trace_path got.
struct TraceCounts {
  uint64_t records = 0;  // spans, requests, counts that the file holds
  uint64_t dropped = 0;  // for which the disk was too slow
};

class Engine {
 public:
  // Errors name the file and field, or the memory it would need: kNotFound, kCorrupt, kUnsupported,
  // kOutOfMemory, kIo (the trace), kInvalidArgument (an option, with what is allowed).
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options);
  virtual ~Engine() = default;  // cancels what runs

  // Queues a request. Errors: kInvalidArgument (field and allowed range), kResourceExhausted (queue
  // full, or the request can never fit: with the figure it would need). `sink` then gets events
  // until kFinished.
  virtual Result<RequestId> Submit(const Request& request, EventSink sink) = 0;
  // Ends a request soon; its kFinished still comes. False: unknown or already finished.
  virtual bool Cancel(RequestId id) = 0;
  // Blocks until the request has finished (at once if unknown).
  virtual void Wait(RequestId id) = 0;

  // add_special: bos as the model asks. parse_special: control tokens spelled in the text count as
  // such.
  virtual Result<std::vector<int32_t>> Tokenize(std::string_view text, bool add_special,
                                                bool parse_special) const = 0;
  virtual Result<std::string> Detokenize(const std::vector<int32_t>& tokens) const = 0;
  // The bytes that one token stands for; a control token's are its spelling. They need not be whole
  // characters. Errors: kInvalidArgument (no token of the vocabulary).
  virtual Result<std::string> TokenBytes(int32_t token) const = 0;
  // The model's own chat template (ChatML where it has none), as text for Tokenize(text, false,
  // true).
  virtual Result<std::string> RenderChat(const std::vector<Message>& messages,
                                         bool add_generation_prompt) const = 0;

  // The same of all that templates take: messages as a JSON array with tool calls and the like, and
  // a JSON object of further variables (tools, enable_thinking, …). Errors: the template's own.
  virtual Result<std::string> RenderConversation(std::string_view messages_json,
                                                 bool add_generation_prompt,
                                                 std::string_view variables_json) const = 0;

  // A grammar for Request::constraint. `text` need not be trusted: its size, its depth and the work
  // of compiling it have limits. Errors: kInvalidArgument (what is wrong, or not supported).
  virtual Result<std::shared_ptr<const Grammar>> CompileGrammar(GrammarKind kind,
                                                                std::string_view text) const = 0;

  virtual const ModelInfo& info() const = 0;
  virtual const TokenizerInfo& tokenizer_info() const = 0;
  virtual EngineStats stats() const = 0;
  // By layer and KV head: all steps up to the last request that finished.
  virtual std::vector<LayerSelection> layer_selection() const = 0;

  // Of one client.
  virtual std::vector<SessionInfo> sessions(std::string_view client) const = 0;
  // Forgets a conversation: nothing is kept for its sake any more. What runs goes on. False: there
  // was none.
  virtual bool EndSession(std::string_view client, std::string_view session) = 0;

  // What was seen of a client's request since someone last asked, within seconds; of the newest one
  // where `request` is 0. Looking costs a step some microseconds, and only while someone asks.
  virtual PageReads WatchPages(std::string_view client, RequestId request) = 0;

  // Ends the trace's file: what happens after it is not in it. All 0 where there is none. The
  // engine's end does it, too, but cannot tell. Errors: kIo (a full disk).
  virtual Result<TraceCounts> EndTrace() = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_H_
