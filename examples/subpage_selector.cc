// A selector with a page summary of its own, as a shared object (skeleton_selector.cc says how to
// build and name one): every page keeps the bounding boxes of its quarters, so that one outstanding
// key does not widen the bound of its whole page. `keep` favours pages that the query before read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "tinyserve/plugin.h"

namespace {

constexpr uint32_t kParts = 4;  // of a page

struct Subpage {
  tinyserve_shape shape;
  float keep;  // added to the score of a page that was read before
};

// A summary: [part][least, greatest][head_dim] f32. A state: a bit for each page.
int Sizes(const tinyserve_shape* shape, const char*, tinyserve_sizes* sizes, tinyserve_error*) {
  sizes->summary_bytes = kParts * 2 * shape->head_dim * sizeof(float);
  sizes->state_bytes = (shape->pages_max + 7) / 8;
  return 0;
}

int Summarise(void* self, const tinyserve_page_in* page, void* summary) {
  const tinyserve_shape& shape = static_cast<const Subpage*>(self)->shape;
  const uint32_t dim = shape.head_dim, tokens = shape.page_tokens / kParts;
  float* least = static_cast<float*>(summary);
  for (uint32_t part = 0; part < kParts; ++part, least += 2 * dim) {
    for (uint32_t c = 0; c < dim; ++c) {
      const float* k = page->k + part * tokens * dim + c;
      least[c] = least[dim + c] = k[0];
      for (uint32_t t = 1; t < tokens; ++t) {
        least[c] = std::min(least[c], k[t * dim]);
        least[dim + c] = std::max(least[dim + c], k[t * dim]);
      }
    }
  }
  return 0;
}

// The largest q.k that a key in one of the boxes can have, over the parts and the query heads.
float Score(const tinyserve_shape& shape, const float* q, const float* summary) {
  float best = -INFINITY;
  for (uint32_t h = 0; h < shape.group; ++h, q += shape.head_dim) {
    for (uint32_t part = 0; part < kParts; ++part) {
      const float* least = summary + part * 2 * shape.head_dim;
      float bound = 0;
      for (uint32_t c = 0; c < shape.head_dim; ++c)
        bound += q[c] * (q[c] >= 0 ? least[shape.head_dim + c] : least[c]);
      best = std::max(best, bound);
    }
  }
  return best;
}

int Select(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
           tinyserve_select_out* out) {
  const Subpage& s = *static_cast<const Subpage*>(self);
  for (uint32_t i = 0; i < count; ++i) {
    const tinyserve_select_item& item = in->items[first + i];
    const auto* read = static_cast<const uint8_t*>(item.state);
    float* scores = in->scratch;
    for (uint32_t p = 0; p < item.page_count; ++p) {
      const void* summary = tinyserve_slab_item(&item.summaries, item.pages[p]);
      const uint32_t page = item.first_page + p;
      scores[p] = Score(s.shape, item.q, static_cast<const float*>(summary)) +
                  s.keep * static_cast<float>(read[page / 8] >> page % 8 & 1);
    }
    std::vector<uint32_t> order(item.page_count);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + item.budget_pages, order.end(),
                      [&](uint32_t a, uint32_t b) {
                        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
                      });
    std::copy_n(order.begin(), item.budget_pages, out[i].pages);
    out[i].n_pages = item.budget_pages;
  }
  return 0;
}

int Observe(void* self, const tinyserve_observe_in* in) {
  const tinyserve_shape& shape = static_cast<const Subpage*>(self)->shape;
  auto* read = static_cast<uint8_t*>(in->state);
  std::memset(read, 0, (shape.pages_max + 7) / 8);
  for (uint32_t i = 0; i < in->n_pages; ++i)
    read[in->pages[i] / 8] |= static_cast<uint8_t>(1u << in->pages[i] % 8);
  return 0;
}

// The engine has checked the options against the schema below: {"keep":0}.
int Open(const tinyserve_shape* shape, const char* config_json, void** self, tinyserve_error*) {
  const float keep = std::strtof(std::strchr(config_json, ':') + 1, nullptr);
  *self = std::make_unique<Subpage>(Subpage{*shape, keep}).release();
  return 0;
}

void Close(void* self) { std::unique_ptr<Subpage>(static_cast<Subpage*>(self)); }

constexpr tinyserve_selector_v2 kTable = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                          .struct_size = sizeof(tinyserve_selector_v2),
                                          .name = "subpage",
                                          .config_schema = R"({"type":"object","properties":{
      "keep":{"type":"number","minimum":0,"maximum":100,"default":0}}})",
                                          .needs = 0,
                                          .open = Open,
                                          .select = Select,
                                          .close = Close,
                                          .fused_id = 0,
                                          .fused = nullptr,
                                          .heeds_mass = 0,
                                          .sizes = Sizes,
                                          .summarise = Summarise,
                                          .observe = Observe};

}  // namespace

extern "C" const tinyserve_selector_v2* tinyserve_selector() { return &kTable; }
