#include "select/builtin.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/random.h"
#include "select/builtin_parts.h"
#include "select/hierarchical.h"
#include "select/selector.h"
#include "select/top_pages.h"

namespace tinyserve {
namespace {

// ---- what the tables have in common ----

// Calls choose(item, scratch, out pages) -> pages chosen, for each item.
template <class Choose>
int ForItems(const tinyserve_select_in* in, uint32_t first, uint32_t count,
             tinyserve_select_out* out, Choose choose) {
  for (uint32_t i = 0; i < count; ++i) {
    out[i].n_pages = choose(in->items[first + i], in->scratch, out[i].pages);
  }
  return 0;
}

constexpr char kNoOptions[] = R"({"type":"object","properties":{}})";

// ---- streaming: the newest pages (StreamingLLM's window, in pages; the sinks are the engine's)
// ----

struct Streaming {
  static int Open(const tinyserve_shape*, const char*, void** self, tinyserve_error*) {
    *self = std::make_unique<Streaming>().release();
    return 0;
  }
  static int Select(void*, const tinyserve_select_in* in, uint32_t first, uint32_t count,
                    tinyserve_select_out* out) {
    return ForItems(in, first, count, out,
                    [](const tinyserve_select_item& item, float*, uint32_t* pages) {
                      for (uint32_t i = 0; i < item.budget_pages; ++i)
                        pages[i] = item.page_count - item.budget_pages + i;
                      return item.budget_pages;
                    });
  }
};

// ---- random: the control that a claim is held against ----

struct Random {
  uint64_t seed;

  static int Open(const tinyserve_shape*, const char* config_json, void** self, tinyserve_error*) {
    *self = std::make_unique<Random>(
                Random{.seed = Options(config_json).at("seed").to_number<uint64_t>()})
                .release();
    return 0;
  }
  static int Select(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
                    tinyserve_select_out* out) {
    const uint64_t seed = static_cast<Random*>(self)->seed;
    return ForItems(in, first, count, out,
                    [seed](const tinyserve_select_item& item, float* scores, uint32_t* pages) {
                      const uint64_t place =
                          MixBits(seed + kGoldenGamma * (uint64_t{item.position} << 32 |
                                                         item.layer << 16 | item.kv_head));
                      for (uint32_t i = 0; i < item.page_count; ++i)
                        scores[i] = static_cast<float>(MixBits(place + item.first_page + i) >> 40);
                      TopPages({scores, item.page_count}, item.budget_pages, pages);
                      return item.budget_pages;
                    });
  }
};

// ---- box and moments: pages by an estimate of their best key ----

struct Scored {
  ScoreKind kind;
  ScorePool pool;
  float alpha;

  static int OpenKind(ScoreKind kind, const char* config_json, void** self,
                      tinyserve_error* error) {
    const boost::json::object options = Options(config_json);
    auto scored =
        std::make_unique<Scored>(Scored{.kind = kind, .pool = ScorePool::kSoftmax, .alpha = 0});
    if (!ReadPool(options, &scored->pool))
      return Refuse(error, "pool: allowed are max, sum and softmax");
    if (kind == ScoreKind::kMoments) scored->alpha = options.at("alpha").to_number<float>();
    *self = scored.release();
    return 0;
  }
  static int OpenBox(const tinyserve_shape*, const char* config, void** self,
                     tinyserve_error* error) {
    return OpenKind(ScoreKind::kBox, config, self, error);
  }
  static int OpenMoments(const tinyserve_shape*, const char* config, void** self,
                         tinyserve_error* error) {
    return OpenKind(ScoreKind::kMoments, config, self, error);
  }

  uint32_t Choose(const tinyserve_select_item& item, float* scratch, uint32_t* pages) const {
    const auto& storage = *static_cast<const ItemStorage*>(item.engine);
    const uint32_t group = storage.group;
    const uint64_t padded = (item.page_count + 15u) / 16u * 16u;
    const ScoreArgs args{.layout = storage.layout,
                         .records = storage.records,
                         .kind = kind,
                         .pool = item.mass > 0 ? ScorePool::kSoftmax : pool,
                         .alpha = alpha,
                         .head_dim = storage.shape.head_dim,
                         .group = group,
                         .q = item.q,
                         .pages = item.pages,
                         .count = item.page_count,
                         .head_scores = scratch,
                         .scores = scratch + group * padded};
    const uint64_t start = storage.score_ns != nullptr ? NowNs() : 0;
    storage.kernels->score_pages(&args);
    if (storage.score_ns != nullptr) *storage.score_ns += NowNs() - start;
    return Best(item, args.scores, 0, pages);
  }
  static int Select(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
                    tinyserve_select_out* out) {
    return ForItems(in, first, count, out,
                    [self](const tinyserve_select_item& item, float* scratch, uint32_t* pages) {
                      return static_cast<Scored*>(self)->Choose(item, scratch, pages);
                    });
  }
};

// ---- oracle: pages by their true share of the attention. Reads every key: for evaluation only
// ----

struct Oracle {
  static int Open(const tinyserve_shape*, const char*, void** self, tinyserve_error*) {
    *self = std::make_unique<Oracle>().release();
    return 0;
  }
  static uint32_t Choose(const tinyserve_select_item& item, float* scratch, uint32_t* pages) {
    const auto& storage = *static_cast<const ItemStorage*>(item.engine);
    const uint32_t group = storage.group, n = item.page_count;
    const uint64_t padded = (n + 15u) / 16u * 16u;
    float* scores = scratch + group * padded;  // [n]
    // Per head: log of each page's sum of exp(logit); its softmax over the pages is their mass.
    for (uint32_t p = 0; p < n; ++p) {
      PageMass(storage, item.q, item.pages[p], scratch + p, padded);
    }
    std::fill(scores, scores + n, 0.0f);
    for (uint32_t h = 0; h < group; ++h) {
      const float* log_mass = scratch + h * padded;
      const float top = *std::max_element(log_mass, log_mass + n);
      double sum = 0;
      for (uint32_t p = 0; p < n; ++p) sum += std::exp(log_mass[p] - top);
      for (uint32_t p = 0; p < n; ++p)
        scores[p] += static_cast<float>(std::exp(log_mass[p] - top) / sum);
    }
    return Best(item, scores, 0, pages);
  }
  // log(sum exp(logit)) of one page's keys, head h's to out[h * stride].
  static void PageMass(const ItemStorage& storage, const float* q, uint32_t page, float* out,
                       uint64_t stride) {
    const uint32_t group = storage.group;
    float* partial = storage.partial;  // [group * (head_dim + 2)]
    const DecodeArgs args{.shape = storage.shape,
                          .slab = storage.slab,
                          .records = storage.records,
                          .layout = storage.layout,
                          .view = {.pages = &page,
                                   .count = 1,
                                   .last_tokens = storage.shape.page_tokens,
                                   .space = MemorySpace::kHost},
                          .group = group,
                          .scale = 1.0f,
                          .q = q,
                          .out = {.m = partial, .d = partial + group, .o = partial + 2 * group},
                          .scratch = storage.decode_scratch,
                          .next_slab = {},
                          .next_view = {}};
    storage.kernels->attend_decode(&args);
    for (uint32_t h = 0; h < group; ++h)
      out[h * stride] = partial[h] + std::log(partial[group + h]);
  }
  static int Select(void*, const tinyserve_select_in* in, uint32_t first, uint32_t count,
                    tinyserve_select_out* out) {
    return ForItems(in, first, count, out, Choose);
  }
};

// ---- cascade: a kernel of the engine's own; here are its options ----

struct Cascade {
  tinyserve_cascade parameters;

  static int Open(const tinyserve_shape*, const char* config_json, void** self, tinyserve_error*) {
    const boost::json::object options = Options(config_json);
    const auto number = [&](const char* name) { return options.at(name).to_number<double>(); };
    auto cascade = std::make_unique<Cascade>();
    cascade->parameters = {.full = number("full"),
                           .values = number("values"),
                           .min_full = static_cast<uint32_t>(number("min_full")),
                           .min_values = static_cast<uint32_t>(number("min_values")),
                           .wide_layers = static_cast<uint32_t>(number("wide_layers")),
                           .alpha = static_cast<float>(number("alpha")),
                           .least_share = static_cast<float>(number("least_share"))};
    *self = cascade.release();
    return 0;
  }
  static int Fused(void* self, void* parameters, tinyserve_error*) {
    *static_cast<tinyserve_cascade*>(parameters) = static_cast<Cascade*>(self)->parameters;
    return 0;
  }
};

// The budget's own options may have other defaults here.
constexpr char kCascadeSchema[] = R"({"type":"object","properties":{
  "ratio":{"type":"number","default":0.32},
  "min_tokens":{"type":"integer","default":3072},
  "min_context":{"type":"integer","default":128},
  "full":{"type":"number","minimum":0,"maximum":1,"default":0.02},
  "min_full":{"type":"integer","minimum":0,"maximum":16777216,"default":128},
  "values":{"type":"number","minimum":0,"maximum":1,"default":0.15},
  "min_values":{"type":"integer","minimum":0,"maximum":16777216,"default":768},
  "wide_layers":{"type":"integer","minimum":0,"maximum":1024,"default":1},
  "alpha":{"type":"number","minimum":0,"maximum":100,"default":1},
  "least_share":{"type":"number","minimum":0,"maximum":1,"default":0.00008}}})";
constexpr char kBoxSchema[] = R"({"type":"object","properties":{
  "pool":{"type":"string","enum":["max","sum","softmax"],"default":"max"}}})";
constexpr char kMomentsSchema[] = R"({"type":"object","properties":{
  "pool":{"type":"string","enum":["max","sum","softmax"],"default":"softmax"},
  "alpha":{"type":"number","minimum":0,"maximum":100,"default":2}}})";
constexpr char kRandomSchema[] = R"({"type":"object","properties":{
  "seed":{"type":"integer","minimum":0,"maximum":4294967295,"default":0}}})";

template <class T>
constexpr tinyserve_selector_v2 Table(const char* name, const char* schema, uint64_t needs,
                                      decltype(tinyserve_selector_v2::open) open,
                                      bool heeds_mass = false) {
  return {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
          .struct_size = sizeof(tinyserve_selector_v2),
          .name = name,
          .config_schema = schema,
          .needs = needs,
          .open = open,
          .select = T::Select,
          .close = Close<T>,
          .fused_id = 0,
          .fused = nullptr,
          .heeds_mass = heeds_mass,
          .sizes = nullptr,
          .summarise = nullptr,
          .observe = nullptr};
}

constexpr tinyserve_selector_v2 kStreaming =
    Table<Streaming>("streaming", kNoOptions, 0, Streaming::Open);
constexpr tinyserve_selector_v2 kRandom = Table<Random>("random", kRandomSchema, 0, Random::Open);
constexpr tinyserve_selector_v2 kBox =
    Table<Scored>("box", kBoxSchema, TINYSERVE_NEEDS_BOX, Scored::OpenBox, true);
constexpr tinyserve_selector_v2 kMoments =
    Table<Scored>("moments", kMomentsSchema, TINYSERVE_NEEDS_MOMENTS, Scored::OpenMoments, true);
constexpr tinyserve_selector_v2 kOracle =
    Table<Oracle>("oracle", kNoOptions, 0, Oracle::Open, true);

constexpr tinyserve_selector_v2 kCascade = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                            .struct_size = sizeof(tinyserve_selector_v2),
                                            .name = "cascade",
                                            .config_schema = kCascadeSchema,
                                            .needs = TINYSERVE_NEEDS_PLANES,
                                            .open = Cascade::Open,
                                            .select = nullptr,
                                            .close = Close<Cascade>,
                                            .fused_id = TINYSERVE_FUSED_CASCADE,
                                            .fused = Cascade::Fused,
                                            .heeds_mass = 0,
                                            .sizes = nullptr,
                                            .summarise = nullptr,
                                            .observe = nullptr};

const tinyserve_selector_v2* const kBuiltins[] = {
    &kBox, &kMoments, &kCascade, &kHierarchicalSelector, &kStreaming, &kRandom, &kOracle};

}  // namespace

std::span<const tinyserve_selector_v2* const> BuiltinSelectors() { return kBuiltins; }

bool ScoresByRanges(const tinyserve_selector_v2* table) { return table == &kBox; }

}  // namespace tinyserve
