// A selector of one's own, as a shared object: copy this file, change Score, build it against
// include/tinyserve/plugin.h alone, and name it:
//
//   c++ -std=c++20 -O3 -march=native -shared -fPIC -I include -o mine.so
//   examples/skeleton_selector.cc tinyserve eval --model model.gguf --text book.txt --plugin
//   ./mine.so --method full
//       --method skeleton:ratio=0.1
//
// This one ranks pages like the built-in `box` does: by the largest q.k that a key inside a page's
// bounding box can have, over the query heads that share the keys. With SKELETON_IMAGE, the path of
// skeleton_score.cu as nvcc has compiled it, it does so on a CUDA device, too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "tinyserve/plugin.h"
#include "tinyserve/plugin_device.h"

namespace {

struct Skeleton {
  tinyserve_shape shape;
  float slack;
};

// The bound of one page for one query head: least and largest value of each channel, as f16.
float Bound(const Skeleton& s, const float* q, const uint16_t* low, const uint16_t* high) {
  float bound = 0;
  for (uint32_t c = 0; c < s.shape.head_dim; ++c)
    bound += q[c] * tinyserve_half(q[c] >= 0 ? high[c] : low[c]);
  return bound;
}

// A page's score for the query heads that share its KV head; `slack` favours newer pages.
float Score(const Skeleton& s, const tinyserve_select_item& item, uint32_t page) {
  const auto* low =
      reinterpret_cast<const uint16_t*>(tinyserve_slab_item(&item.records, item.pages[page]));
  const uint16_t* high = low + s.shape.record_channels;
  float best = -INFINITY;
  for (uint32_t h = 0; h < s.shape.group; ++h)
    best = std::max(best, Bound(s, item.q + h * s.shape.head_dim, low, high));
  return best + s.slack * static_cast<float>(page);
}

int Open(const tinyserve_shape* shape, const char* config_json, void** self,
         tinyserve_error* error) {
  // The engine has checked the options against the schema below: {"slack":0.01}.
  const char* colon = std::strchr(config_json, ':');
  if (colon == nullptr) {
    std::snprintf(error->message, sizeof error->message, "slack is missing");
    return 1;
  }
  *self = std::make_unique<Skeleton>(Skeleton{*shape, std::strtof(colon + 1, nullptr)}).release();
  return 0;
}

int Select(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
           tinyserve_select_out* out) {
  const Skeleton& s = *static_cast<const Skeleton*>(self);
  for (uint32_t i = 0; i < count; ++i) {
    const tinyserve_select_item& item = in->items[first + i];
    float* scores = in->scratch;
    for (uint32_t p = 0; p < item.page_count; ++p) scores[p] = Score(s, item, p);
    std::vector<uint32_t> order(item.page_count);
    std::iota(order.begin(), order.end(), 0);
    // Equal scores: the earlier page first.
    std::partial_sort(order.begin(), order.begin() + item.budget_pages, order.end(),
                      [&](uint32_t a, uint32_t b) {
                        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
                      });
    std::copy_n(order.begin(), item.budget_pages, out[i].pages);
    out[i].n_pages = item.budget_pages;
  }
  return 0;
}

void Close(void* self) { std::unique_ptr<Skeleton>(static_cast<Skeleton*>(self)); }

constexpr tinyserve_selector_v2 kTable = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                          .struct_size = sizeof(tinyserve_selector_v2),
                                          .name = "skeleton",
                                          .config_schema = R"({"type":"object","properties":{
      "slack":{"type":"number","minimum":-1,"maximum":1,"default":0}}})",
                                          .needs = TINYSERVE_NEEDS_BOX,
                                          .open = Open,
                                          .select = Select,
                                          .close = Close};

}  // namespace

extern "C" const tinyserve_selector_v2* tinyserve_selector() { return &kTable; }

#ifdef SKELETON_IMAGE

// The file as it is; the zero byte ends it where it is PTX.
asm(".section .rodata\n.balign 16\nskeleton_image:\n.incbin \"" SKELETON_IMAGE
    "\"\n.byte 0\nskeleton_image_end:\n.previous\n");
extern "C" const char skeleton_image[], skeleton_image_end[];

namespace {

int Parameters(void* self, uint64_t* parameters, tinyserve_error*) {
  std::memcpy(parameters, &static_cast<const Skeleton*>(self)->slack, sizeof(float));
  return 0;
}

}  // namespace

extern "C" const tinyserve_selector_device_v1* tinyserve_selector_device() {
  static const tinyserve_selector_device_v1 entry = {
      .abi_version = TINYSERVE_SELECTOR_DEVICE_ABI_VERSION,
      .struct_size = sizeof(tinyserve_selector_device_v1),
      .image = skeleton_image,
      .image_bytes = static_cast<uint64_t>(skeleton_image_end - skeleton_image),
      .kernel = "skeleton_score",
      .block_threads = 128,
      .block_pages = 16,
      .shared_bytes = 0,
      .parameters = Parameters};
  return &entry;
}

#endif
