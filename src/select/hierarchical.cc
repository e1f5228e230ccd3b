#include "select/hierarchical.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "base/clock.h"
#include "select/builtin_parts.h"
#include "select/selector.h"

namespace tinyserve {
namespace {

// ---- f16, rounded outward ----

// The half towards zero of a finite x, as its magnitude's bits; `up`: the one away from it, where x
// is none.
uint16_t MagnitudeBits(float x, bool up) {
  const float magnitude = std::min(std::fabs(x), 65504.0f);
  uint32_t bits;
  float back;
  std::memcpy(&bits, &magnitude, sizeof bits);
  const uint32_t half =
      bits < 113u << 23 ? static_cast<uint32_t>(magnitude * 0x1p24f) : (bits >> 13) - (112u << 10);
  back = tinyserve_half(static_cast<uint16_t>(half));
  return static_cast<uint16_t>(half + (up && back < magnitude ? 1 : 0));
}

// The least half that is no less than x; the sign of a zero is dropped.
uint16_t HalfAbove(float x) {
  if (x >= 0) return MagnitudeBits(x, /*up=*/true);
  const uint16_t bits = MagnitudeBits(x, /*up=*/false);
  return static_cast<uint16_t>(bits == 0 ? 0 : bits | 0x8000);
}
uint16_t HalfBelow(float x) {
  if (x >= 0) return MagnitudeBits(x, /*up=*/false);
  return static_cast<uint16_t>(MagnitudeBits(x, /*up=*/true) | 0x8000);
}

// ---- the selector ----

// What is kept of a sequence: the selection in force. `bits`: its pages, counted from the
// sequence's first.
struct InForce {
  uint32_t made;  // at this position, plus 1; 0: none
  uint32_t end;   // candidates ended before this page then
  uint64_t bits[1];

  bool Has(uint32_t page) const { return (bits[page / 64] >> page % 64 & 1) != 0; }
};

struct Hierarchical {
  tinyserve_shape shape;
  MetaLayout box;  // of a sub-page
  uint32_t sub;    // tokens of one
  uint32_t reuse;  // positions
  ScorePool pool;

  uint32_t subs() const { return shape.page_tokens / sub; }
  uint32_t words() const { return shape.pages_max / 64 + 1; }
};

int Read(const tinyserve_shape* shape, const char* config_json, Hierarchical* h,
         tinyserve_error* error) {
  const boost::json::object options = Options(config_json);
  h->shape = *shape;
  h->box = MetaLayoutOf(kMetaBox, shape->head_dim);
  h->sub = options.at("sub").to_number<uint32_t>();
  h->reuse = options.at("reuse").to_number<uint32_t>();
  if (h->sub == 0 || (h->sub & (h->sub - 1)) != 0 || shape->page_tokens % h->sub != 0) {
    return Refuse(error, "sub is " + std::to_string(h->sub) +
                             ": allowed are 2, 4, 8 and 16, and no more than the tokens of a "
                             "page, " +
                             std::to_string(shape->page_tokens));
  }
  if (!ReadPool(options, &h->pool)) return Refuse(error, "pool: allowed are max, sum and softmax");
  return 0;
}

int Sizes(const tinyserve_shape* shape, const char* config_json, tinyserve_sizes* sizes,
          tinyserve_error* error) {
  Hierarchical h;
  if (Read(shape, config_json, &h, error) != 0) return 1;
  sizes->summary_bytes = h.subs() * h.box.record_bytes;
  // The bits of the first word are within InForce.
  if (h.reuse > 1)
    sizes->state_bytes = static_cast<uint32_t>(sizeof(InForce) + (h.words() - 1) * 8);
  return 0;
}

int Open(const tinyserve_shape* shape, const char* config_json, void** self,
         tinyserve_error* error) {
  auto h = std::make_unique<Hierarchical>();
  if (Read(shape, config_json, h.get(), error) != 0) return 1;
  *self = h.release();
  return 0;
}

// A box of each sub-page, one after another: two rows of f16, as records have them.
int Summarise(void* self, const tinyserve_page_in* page, void* summary) {
  const Hierarchical& h = *static_cast<const Hierarchical*>(self);
  const uint32_t dim = h.shape.head_dim;
  auto* record = static_cast<uint8_t*>(summary);
  for (uint32_t s = 0; s < h.subs(); ++s, record += h.box.record_bytes) {
    std::memset(record, 0, h.box.record_bytes);
    auto* low = reinterpret_cast<uint16_t*>(record);
    const float* first = page->k + uint64_t{s} * h.sub * dim;
    for (uint32_t c = 0; c < dim; ++c) {
      float least = first[c], greatest = first[c];
      for (uint32_t t = 1; t < h.sub; ++t) {
        least = std::min(least, first[t * dim + c]);
        greatest = std::max(greatest, first[t * dim + c]);
      }
      low[c] = HalfBelow(least);
      low[h.box.channels + c] = HalfAbove(greatest);
    }
  }
  return 0;
}

// Scores of a query head are made for so many pages and heads at a time, on the stack.
constexpr uint32_t kPagesAtOnce = 64, kHeadsAtOnce = 8;

// rows[head * stride + page]: the largest bound of the page's sub-pages, of all heads.
void ScoreHeads(const Hierarchical& h, const tinyserve_select_item& item, uint64_t stride,
                float* rows) {
  const auto& storage = *static_cast<const ItemStorage*>(item.engine);
  alignas(64) float bounds[kHeadsAtOnce * kPagesAtOnce], unused[kPagesAtOnce];
  ScoreArgs args{.layout = h.box,
                 .records = {.base = nullptr,
                             .extent_stride = item.summaries.extent_stride,
                             .extent_shift = item.summaries.extent_shift,
                             .page_bytes = item.summaries.item_bytes,
                             .v_offset = 0},
                 .kind = ScoreKind::kBox,
                 .pool = ScorePool::kMax,
                 .alpha = 0,
                 .head_dim = h.shape.head_dim,
                 .group = 0,
                 .q = nullptr,
                 .pages = nullptr,
                 .count = 0,
                 .head_scores = bounds,
                 .scores = unused};
  for (uint32_t first = 0; first < item.page_count; first += kPagesAtOnce) {
    args.pages = item.pages + first;
    args.count = std::min(kPagesAtOnce, item.page_count - first);
    const uint32_t padded = (args.count + 15) / 16 * 16;
    for (uint32_t head = 0; head < h.shape.group; head += kHeadsAtOnce) {
      args.group = std::min(kHeadsAtOnce, h.shape.group - head);
      args.q = item.q + uint64_t{head} * h.shape.head_dim;
      for (uint32_t s = 0; s < h.subs(); ++s) {
        args.records.base =
            const_cast<uint8_t*>(item.summaries.base) + uint64_t{s} * h.box.record_bytes;
        storage.kernels->score_pages(&args);
        for (uint32_t g = 0; g < args.group; ++g) {
          float* row = rows + (head + g) * stride + first;
          const float* bound = bounds + uint64_t{g} * padded;
          for (uint32_t p = 0; p < args.count; ++p)
            row[p] = s == 0 ? bound[p] : std::max(row[p], bound[p]);
        }
      }
    }
  }
}

void Softmax(float* row, uint32_t count) {
  const float top = *std::max_element(row, row + count);
  float sum = 0;
  for (uint32_t p = 0; p < count; ++p) sum += row[p] = std::exp(row[p] - top);
  for (uint32_t p = 0; p < count; ++p) row[p] /= sum;
}

uint32_t ChooseAnew(const Hierarchical& h, const tinyserve_select_item& item, float* scratch,
                    uint32_t* pages) {
  const auto& storage = *static_cast<const ItemStorage*>(item.engine);
  const uint64_t start = storage.score_ns != nullptr ? NowNs() : 0;
  const uint64_t stride = (item.page_count + 15u) / 16u * 16u;
  const ScorePool pool = item.mass > 0 ? ScorePool::kSoftmax : h.pool;
  ScoreHeads(h, item, stride, scratch);
  for (uint32_t head = 0; head < h.shape.group; ++head) {
    float* row = scratch + head * stride;
    if (pool == ScorePool::kSoftmax) Softmax(row, item.page_count);
    for (uint32_t p = 0; head > 0 && p < item.page_count; ++p)
      scratch[p] = pool == ScorePool::kMax ? std::max(scratch[p], row[p]) : scratch[p] + row[p];
  }
  if (storage.score_ns != nullptr) *storage.score_ns += NowNs() - start;
  // Pages that become candidates before the next choice are to join this one.
  const uint32_t to_come = (h.reuse - 1 + h.shape.page_tokens - 1) / h.shape.page_tokens;
  return Best(item, scratch, std::min(to_come, item.budget_pages / 2), pages);
}

uint32_t Choose(const Hierarchical& h, const tinyserve_select_item& item, float* scratch,
                uint32_t* pages, uint32_t* scored) {
  if (h.reuse == 1) return ChooseAnew(h, item, scratch, pages);
  auto& in_force = *static_cast<InForce*>(item.state);
  if (in_force.made == 0 || (in_force.made - 1) / h.reuse != item.position / h.reuse) {
    const uint32_t n = ChooseAnew(h, item, scratch, pages);
    in_force.made = item.position + 1;
    in_force.end = item.first_page + item.page_count;
    std::fill_n(in_force.bits, h.words(), 0);
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t page = item.first_page + pages[i];
      in_force.bits[page / 64] |= uint64_t{1} << page % 64;
    }
    return n;
  }
  uint32_t n = 0;
  // Where the budget has no room for pages that came since, they wait for the next choice.
  for (uint32_t p = 0; p < item.page_count && n < item.budget_pages; ++p) {
    const uint32_t page = item.first_page + p;
    if (page >= in_force.end || in_force.Has(page)) pages[n++] = p;
  }
  *scored = 0;
  return n;
}

int Select(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
           tinyserve_select_out* out) {
  for (uint32_t i = 0; i < count; ++i) {
    out[i].n_pages = Choose(*static_cast<const Hierarchical*>(self), in->items[first + i],
                            in->scratch, out[i].pages, &out[i].n_scored);
  }
  return 0;
}

constexpr char kSchema[] = R"({"type":"object","properties":{
  "pool":{"type":"string","enum":["max","sum","softmax"],"default":"max"},
  "sub":{"type":"integer","minimum":2,"maximum":16,"default":4},
  "reuse":{"type":"integer","minimum":1,"maximum":64,"default":4}}})";

}  // namespace

const tinyserve_selector_v2 kHierarchicalSelector = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                                     .struct_size = sizeof(tinyserve_selector_v2),
                                                     .name = "hierarchical",
                                                     .config_schema = kSchema,
                                                     .needs = 0,
                                                     .open = Open,
                                                     .select = Select,
                                                     .close = Close<Hierarchical>,
                                                     .fused_id = 0,
                                                     .fused = nullptr,
                                                     .heeds_mass = 1,
                                                     .sizes = Sizes,
                                                     .summarise = Summarise,
                                                     .observe = nullptr};

}  // namespace tinyserve
