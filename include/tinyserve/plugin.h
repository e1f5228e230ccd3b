/* Selectors: which KV pages a generated token reads. Step plugins (at the end): what is decided
 * about a generated token beside that. The built-in ones enter by the same tables as those that are
 * loaded from a shared object (--plugin PATH), which exports one of these, or both:
 *
 *     const tinyserve_selector_v2* tinyserve_selector(void);
 *     const tinyserve_step_v2* tinyserve_step(void);
 *
 * Everything here is plain C data. The engine owns all memory that it passes; pointers are valid
 * during the call only. `select` is called from several threads at once, on different items: it
 * must be reentrant, must not throw, and its answer for an item must depend on that item alone, its
 * summaries and its state included. Queries of one sequence at one (layer, KV head) come in the
 * order of their positions.
 *
 * A table that fails, or that answers with pages that do not exist or twice with the same one, is
 * counted, and the item reads every page: a plugin can cost speed, never an answer. */
#ifndef TINYSERVE_PLUGIN_H_
#define TINYSERVE_PLUGIN_H_

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TINYSERVE_SELECTOR_ABI_VERSION 2u

/* What a selector needs to be kept of every full page (bits of `needs`). */
#define TINYSERVE_NEEDS_BOX 1u     /* least and largest value of each key channel */
#define TINYSERVE_NEEDS_MOMENTS 2u /* mean and variance of each key channel */
#define TINYSERVE_NEEDS_PLANES 4u  /* coded pages in planes and their spread (KV codec planes) */

/* Kernels of the engine's own that a table may name in place of `select` (fused_id). */
#define TINYSERVE_FUSED_CASCADE 1u /* needs planes; `fused` fills a tinyserve_cascade */

/* Pages by their score, then tokens by the upper plane of their keys, then the rest by its mean:
 * kernels/kernels.h, CascadeArgs. Shares are of the tokens that are coded; the newest ones, which
 * are not, are read raw. The budget's ratio and floor are those of candidate pages. */
typedef struct tinyserve_cascade {
  double full;          /* share of tokens whose key is read in full */
  double values;        /* share of tokens whose value is read, at least those */
  uint32_t min_full;    /* tokens */
  uint32_t min_values;  /* tokens */
  uint32_t wide_layers; /* first layers in which everything is twice as much */
  float alpha;          /* score = q.mean + alpha * |q * distance|_2 */
  float least_share; /* of the softmax, 0 .. 1: tokens that weigh less, on average over the heads,
                      * give no value. A table of before leaves it at 0: all do */
} tinyserve_cascade;

/* Where the records of one (layer, KV head) lie: page p's at
 * base + (p >> extent_shift) * extent_stride + (p & ((1 << extent_shift) - 1)) * item_bytes. */
typedef struct tinyserve_slab {
  const uint8_t* base;
  uint64_t extent_stride; /* bytes */
  uint32_t extent_shift;
  uint32_t item_bytes;
} tinyserve_slab;

static inline const uint8_t* tinyserve_slab_item(const tinyserve_slab* slab, uint32_t page) {
  return slab->base + (uint64_t)(page >> slab->extent_shift) * slab->extent_stride +
         (uint64_t)(page & ((1u << slab->extent_shift) - 1u)) * slab->item_bytes;
}

/* IEEE half precision, as records hold it. */
static inline float tinyserve_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u;
  uint32_t bits = sign | (exponent + 112u) << 23 | (uint32_t)(half & 1023u) << 13;
  float value;
  if (exponent == 0) { /* zero and subnormal: a multiple of 2^-24 */
    value = (float)(half & 1023u) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) bits |= 255u << 23;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* What a selector is opened for. */
typedef struct tinyserve_shape {
  uint32_t struct_size;
  uint32_t layers;
  uint32_t kv_heads;
  uint32_t group;    /* query heads that share a KV head */
  uint32_t head_dim; /* channels */
  uint32_t page_tokens;
  uint32_t pages_max;    /* of one sequence */
  uint32_t record_kinds; /* TINYSERVE_NEEDS_* that are kept; a record holds them in the order of the
                            bits, each as two rows of record_channels f16: (least, largest), rounded
                            outward, or (mean, variance) */
  uint32_t record_channels; /* head_dim rounded up to 16; the padding holds zeros */
} tinyserve_shape;

/* What a table keeps for itself, in memory of the engine's. */
typedef struct tinyserve_sizes {
  uint32_t struct_size;
  uint32_t summary_bytes; /* of a full page of one (layer, KV head); at most TINYSERVE_OWN_MAX */
  uint32_t state_bytes;   /* of one (sequence, layer, KV head); at most TINYSERVE_OWN_MAX */
} tinyserve_sizes;
#define TINYSERVE_OWN_MAX 65536u

/* A full page of one (layer, KV head), its keys and values as attention will read them. */
typedef struct tinyserve_page_in {
  uint32_t struct_size;
  uint32_t layer, kv_head;
  const float* k; /* [page_tokens][head_dim], after RoPE */
  const float* v; /* [page_tokens][head_dim] */
} tinyserve_page_in;

typedef struct tinyserve_error {
  char message[256]; /* zero-terminated */
} tinyserve_error;

/* One query token at one (layer, KV head). Candidates are full pages that the engine does not read
 * anyway: the first (sink) and the newest ones are added by the engine. */
typedef struct tinyserve_select_item {
  const float* q;    /* [group][head_dim], after RoPE, times the scale of logits */
  uint32_t position; /* of the query token */
  uint32_t sequence; /* slot */
  uint32_t layer, kv_head;
  uint32_t first_page;   /* of the candidates, counted from the sequence's first page */
  uint32_t page_count;   /* candidates */
  uint32_t budget_pages; /* at most so many may be chosen; no more than page_count */
  uint32_t least_pages;  /* a choice by mass is no fewer than these; no more than budget_pages */
  float mass; /* 0: budget_pages is what is wanted. Else the share of the attention over the
                 candidates that is: as few pages as the table thinks have it, best ones first.
                 Only where the table heeds_mass; below 1 */
  const uint32_t* pages; /* [page_count]: the candidates' indices into the slabs */
  tinyserve_slab records;
  tinyserve_slab summaries; /* the table's own, 64-byte aligned; base is null without them */
  void* state; /* the table's own, 64-byte aligned; null without one. Zeros where the query does not
                  follow one at the position before, of the same sequence and under the same
                  options: after a prompt, after tokens were taken back. Otherwise as that query's
                  select and observe left it; it moves along when a sequence is copied */
  const void* engine; /* the engine's own, for built-in selectors */
} tinyserve_select_item;

typedef struct tinyserve_select_in {
  uint32_t struct_size;
  const tinyserve_select_item* items;
  float* scratch;          /* of the calling thread, 64-byte aligned */
  uint64_t scratch_floats; /* at least (group + 2) * (pages_max + 16) */
} tinyserve_select_in;

typedef struct tinyserve_select_out {
  uint32_t struct_size;
  uint32_t n_pages; /* chosen */
  uint32_t* pages; /* [budget_pages] chosen candidates, 0 .. page_count - 1, each once, any order */
  uint32_t n_scored; /* candidates whose records or summaries were read, for the counts: set to
                        page_count before the call */
} tinyserve_select_out;

/* What a query read in the end, at one (layer, KV head). */
typedef struct tinyserve_observe_in {
  uint32_t struct_size;
  uint32_t position, sequence, layer, kv_head; /* as in the item */
  uint32_t pages_held;                         /* of the query's tokens */
  uint32_t n_pages;                            /* read; all of them where the table was not asked */
  const uint32_t* pages; /* [n_pages], ascending, counted from the sequence's first page */
  void* state;           /* as in the item */
} tinyserve_observe_in;

typedef struct tinyserve_selector_v2 {
  uint32_t abi_version; /* TINYSERVE_SELECTOR_ABI_VERSION */
  uint32_t struct_size; /* sizeof(tinyserve_selector_v2) */
  const char* name;
  const char* config_schema; /* JSON schema of the options that are its own: an object whose
                                properties have a type, a default and their range */
  uint64_t needs;            /* TINYSERVE_NEEDS_* */
  /* config_json: an object with every option of its own. 0 and *self, or not 0 and a message. */
  int (*open)(const tinyserve_shape* shape, const char* config_json, void** self,
              tinyserve_error* error);
  /* Chooses for items[first] .. items[first + count - 1] into out[0] .. out[count - 1]. 0: done.
   * Null where fused_id is not 0. */
  int (*select)(void* self, const tinyserve_select_in* in, uint32_t first, uint32_t count,
                tinyserve_select_out* out);
  void (*close)(void* self);
  uint32_t fused_id; /* 0: none, or TINYSERVE_FUSED_* */
  /* Writes the parameters of that kernel. 0: done. Null without a fused_id. */
  int (*fused)(void* self, void* parameters, tinyserve_error* error);
  uint32_t heeds_mass; /* 1: select knows tinyserve_select_item.mass, and `mass` is an option */
  /* Sizes of what the table keeps, for a shape and options; called before open. 0: done. Null:
   * nothing is kept. */
  int (*sizes)(const tinyserve_shape* shape, const char* config_json, tinyserve_sizes* sizes,
               tinyserve_error* error);
  /* Writes the summary of a page, once, when the page is full: a function of `page` alone. It lives
   * as long as the page does, whichever sequences share or copy that. 0: done; else every query of
   * this selector reads everything from then on. Null without summary_bytes. Reentrant. */
  int (*summarise)(void* self, const tinyserve_page_in* page, void* summary);
  /* Told of every query beyond min_context and dense_layers, after its pages are settled. 0: done.
   * Nullable. */
  int (*observe)(void* self, const tinyserve_observe_in* in);
} tinyserve_selector_v2;

/* ---- step plugins ----
 *
 * Decisions about a generated token, and about what is kept of its sequence. Where several are on,
 * they are asked in the order of their priority until one says yes. Each call is counted, with its
 * effects and errors. A table that fails, or answers with anything but 0 and 1, changes nothing.
 *
 * An answer must depend on what is passed alone: then a text is the same alone, in any batch, and
 * when its tokens are replayed. Functions may be called from several threads at once. */

#define TINYSERVE_STEP_ABI_VERSION 2u

typedef struct tinyserve_step_shape {
  uint32_t struct_size;
  uint32_t layers;
  uint32_t vocab;
} tinyserve_step_shape;

/* A generated token after some of the model's layers. */
typedef struct tinyserve_layer_in {
  uint32_t struct_size;
  uint32_t layers_done; /* 1 .. layers - 1 */
  uint32_t position;
  uint32_t vocab;
  const float* logits; /* [vocab], of the model's final norm and head over the state as it is */
} tinyserve_layer_in;

/* An answer before its next token is sampled. */
typedef struct tinyserve_answer_in {
  uint32_t struct_size;
  uint32_t generated; /* tokens of the answer so far */
  uint32_t vocab;
  const float* logits; /* [vocab], of the next token, as the model gives them */
  void* state;         /* answer_bytes of the table's own, zeros at first; null without any */
} tinyserve_answer_in;

/* What attention the units of a sequence have got, once its prompt is done and then whenever its
 * tokens, dropped ones included, are a multiple of a unit. */
typedef struct tinyserve_prune_in {
  uint32_t struct_size;
  uint32_t position;    /* tokens of the sequence so far, dropped ones included */
  uint32_t held;        /* of them, that the cache holds */
  uint32_t unit_tokens; /* that are dropped together, in all layers and heads */
  uint32_t n_units;     /* that may be dropped, in order of position: full ones but the newest */
  const float* mass;    /* [n_units] their shares of the attention, 0..1: the mean of layers, heads
                           and the queries that were measured since they were full; INFINITY
                           where there was none */
} tinyserve_prune_in;

typedef struct tinyserve_step_v2 {
  uint32_t abi_version; /* TINYSERVE_STEP_ABI_VERSION */
  uint32_t struct_size; /* sizeof(tinyserve_step_v2) */
  const char* name;
  const char* config_schema; /* as a selector's */
  uint32_t priority;         /* smaller ones are asked first */
  uint32_t answer_bytes;     /* kept of an answer; at most TINYSERVE_OWN_MAX */
  int (*open)(const tinyserve_step_shape* shape, const char* config_json, void** self,
              tinyserve_error* error);
  void (*close)(void* self);
  /* Not 0: leave is asked after so many layers. Null without leave. Asked once, after open. */
  int (*asks_after)(void* self, uint32_t layers_done);
  /* *leave = 1: the token leaves here. Its logits are those that were passed; later layers get its
   * keys and values, made from the state as it is. 0: done. Nullable. */
  int (*leave)(void* self, const tinyserve_layer_in* in, uint32_t* leave);
  /* *end = 1: the answer ends before its next token. Asked once a token. 0: done. Nullable. */
  int (*end)(void* self, const tinyserve_answer_in* in, uint32_t* end);
  /* Every how many tokens attention is measured for prune; less than 8 counts as 8. Null without
   * prune. Asked once, after open. */
  uint32_t (*measures_every)(void* self);
  /* drop[unit] = 1: its keys and values leave the cache, for good. `drop`: [n_units], zeros. 0:
   * done. What drops tokens is refused where others could come to read the rest: with the prefix
   * cache on. Nullable. */
  int (*prune)(void* self, const tinyserve_prune_in* in, uint8_t* drop);
} tinyserve_step_v2;

#ifdef __cplusplus
}
#endif

#endif  // TINYSERVE_PLUGIN_H_
