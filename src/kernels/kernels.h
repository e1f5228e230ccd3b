// The function table of a compute target, and the plain data its functions take.
//
// A table is chosen once (TargetFor) and then called directly. Functions work on ranges, know
// nothing of threads, allocate nothing and lock nothing. `ref` is plain loops in f32, the oracle;
// every other target is held against it.
//
// Reproducibility, for every function: an output element depends on its own inputs alone, never on
// how many rows or panels the call covers. A product accumulates over the columns in one fixed
// order (by blocks of 32 of increasing column), the same for one row as for many.
#ifndef TINYSERVE_KERNELS_KERNELS_H_
#define TINYSERVE_KERNELS_KERNELS_H_

#include <stdint.h>

#include "page/page.h"
#include "tensor/dtype.h"

namespace tinyserve {

// ---- products -----------------------------------------------------------------------------------

// How products are computed. kFast: integer dots over int8 activations for quantised weights, what
// the target has for the others. kF32: f32 activations against dequantised weights, the accuracy
// reference.
enum class Compute : uint8_t { kFast, kF32 };

// The form in which a product wants its activations. The bytes of a row are private to the table.
enum class ActKind : uint8_t {
  kF32,   // cols floats
  kQ8,    // int8 codes, a scale for each 32 columns, and what the formats' offsets need (sums of
          // codes)
  kBF16,  // bfloat16
};

// A weight matrix [rows][cols] repacked for a target: panels of `panel_rows` interleaved rows, the
// last one padded with zero rows. y[r] = sum_c w[r][c] * x[c].
struct PackedMatrix {
  DType type;      // of the source
  ActKind acts;    // what its products take
  uint8_t layout;  // private to the table
  uint32_t rows, cols;
  uint32_t panel_rows;
  uint32_t panels;       // ceil(rows / panel_rows)
  uint64_t panel_bytes;  // a multiple of 64
  const uint8_t* data;   // [panels][panel_bytes], 64-byte aligned
};

enum class Epilogue : uint8_t {
  kStore,   // out = y + bias
  kAdd,     // out += y + bias
  kSwiGlu,  // panels alternate gate, up: out = silu(gate) * up; output panel i comes from panels 2i
            // and 2i+1
  kGelu,    // out = gelu_tanh(y + bias)
};

struct MatMulArgs {
  const PackedMatrix* w;
  const uint8_t* acts;  // [..][act_row_bytes] rows in the form w->acts
  uint64_t act_row_bytes;
  uint32_t row_begin, row_end;      // of the activations and of out
  uint32_t panel_begin, panel_end;  // of w; even numbers for kSwiGlu
  const float* bias;                // [w->rows] or null
  float* out;           // [..][out_stride]: row r, output column c at out[r * out_stride + c]
  uint64_t out_stride;  // floats
  Epilogue epilogue;
};

// ---- attention ----------------------------------------------------------------------------------

// Decode: the g query heads of one KV head against one split of a view's pages.
struct DecodeArgs {
  KvShape shape;
  KvSlab slab;
  KvSlab records;     // of coded pages
  MetaLayout layout;  // of records
  PageView view;      // the pages of this split only
  uint32_t group;     // g
  float scale;        // logit = scale * q.k
  const float* q;     // [g][head_dim], after RoPE
  Partial out;
  void* scratch;  // decode_scratch_bytes(shape, group), 64-byte aligned, private to the calling
                  // thread
  // What the calling thread is likely to attend to next, with the same shape: its first pages are
  // prefetched. A hint: it may be wrong, and a count of 0 says that nothing is known.
  KvSlab next_slab;
  PageView next_view;
};

// Prefill: consecutive prompt rows of one sequence, the g query heads of one KV head. Row i
// (absolute position first_position + i) attends to the positions 0 .. first_position + i. Key
// tiles start at absolute position 0 and have a fixed width; int8 scales, where used, belong to
// single rows; so a row's result does not depend on the chunking.
//
// The first positions may be in coded pages (`sealed`), a multiple of 64 of them; the others are in
// `view`.
struct SealedKeys {
  KvShape shape;
  KvSlab slab, records;
  MetaLayout layout;
  PageView view;  // whole pages; a count of 0: none
};
struct PromptArgs {
  SealedKeys sealed;
  KvShape shape;
  KvSlab slab;
  PageView view;  // all pages of positions `sealed tokens` .. first_position + rows - 1
  uint32_t group;
  float scale;
  uint32_t first_position;
  uint32_t rows;
  const float* q;     // row i, head h of the group at q[i * q_stride + h * head_dim]
  uint64_t q_stride;  // floats
  float* out;         // same addressing with out_stride: the finished attention output
  uint64_t out_stride;
  void* scratch;  // prompt_scratch_bytes(shape, group), 64-byte aligned, private to the calling
                  // thread
  Compute
      compute;  // kFast: what the target has (int8 operands, say); kF32: f32 arithmetic, near ref
};

// Writes K and V of consecutive tokens of one (layer, KV head): token i goes to slot (first_slot +
// i) counted in tokens over `pages`.
struct AppendArgs {
  KvShape shape;
  KvSlab slab;
  const uint32_t* pages;
  uint32_t first_slot;
  uint32_t tokens;
  const float* k;  // token i at k[i * stride], head_dim floats, after RoPE
  const float* v;
  uint64_t stride;  // floats
};

// Codes one full open page: writes its coded page, and its record, which is a function of the coded
// page where it does not define it.
struct SealArgs {
  KvShape open;
  KvSlab open_slab;
  uint32_t open_page;
  KvShape shape;
  KvSlab slab, records;
  MetaLayout layout;  // has kMetaSpread for kPlanes, else kMetaRange
  uint32_t page;      // of slab and records
};

// ---- selection ----------------------------------------------------------------------------------

// Makes the box and the moments, as far as they are kept, of one full page of one (layer, KV head)
// from its stored keys: a function of the page alone. Keys of a coded page are those that it is
// decoded to; its spread or range, which seal_page has written, stays. `records`: a slab with
// record_bytes as page_bytes and the same extents.
struct SummariseArgs {
  KvShape shape;
  KvSlab slab;
  KvSlab records;
  MetaLayout layout;
  uint32_t page;
};

enum class ScoreKind : uint8_t {
  // sum_c max(q_c * low_c, q_c * high_c): the largest q.k that a key in the page's box can have
  // (Quest, section 3.2; TinyServe, eq. 2). Where ranges are kept they are the boxes: sum_c
  // (q_c * middle_c + |q_c| * reach_c).
  kBox,
  // q.mean + alpha * sqrt(sum_c q_c^2 * var_c)
  kMoments,
};

// How the g query heads of a KV head make one score of theirs: the largest, the sum, or the sum of
// each head's softmax over the pages.
enum class ScorePool : uint8_t { kMax, kSum, kSoftmax };

struct ScoreArgs {
  MetaLayout layout;
  KvSlab records;
  ScoreKind kind;
  ScorePool pool;
  float alpha;  // of kMoments
  uint32_t head_dim;
  uint32_t group;         // g
  const float* q;         // [g][head_dim], after RoPE, times the scale of logits
  const uint32_t* pages;  // [count] page indices, all of full pages
  uint32_t count;
  float* head_scores;  // [g][count rounded up to 16], scratch, 64-byte aligned
  float* scores;       // [count]
};

// Decode that reads less and less of what matters less, over coded pages in two planes:
//   1. pages are scored by their spread, q.mean + alpha * |q| * radius; softmaxes of the heads,
//      summed, rank them: the best `candidates` go on;
//   2. the keys' upper plane gives approximate logits of the candidates' tokens; a token weighs
//      the sum over the heads of its share of the softmax over those tokens and what `open` covers;
//   3. the `full_tokens` of largest weight get exact logits;
//   4. the `value_tokens` of largest weight, those included, give their value;
//   5. the other candidates keep their approximate logits, and give their page's mean value.
// Tokens that weigh less than `least_share` on average over the heads are in neither 3 nor 4. What
// is lost by a page's mean in place of a token's value grows with the square of its weight, so one
// threshold for all heads and layers loses least for what it reads; the numbers are caps where
// attention is spread wide. Weights are compared in bins of 1/8 octave, ties by position. The first
// `sink` and the last `recent` pages are candidates whose tokens are read in full; they count in
// all three budgets.
struct CascadeArgs {
  KvShape shape;  // kPlanes
  KvSlab slab, records;
  MetaLayout layout;
  const uint32_t* pages;  // [count] all coded pages of the sequence, in order of position
  uint32_t count;         // at least 1
  uint32_t sink, recent;  // pages; together at most count
  uint32_t candidates;    // pages
  uint32_t full_tokens, value_tokens;  // full_tokens <= value_tokens
  float least_share;                   // 0 .. 1
  float alpha;
  uint32_t group;
  float scale;     // logit = scale * q.k
  const float* q;  // [g][head_dim], after RoPE
  Partial open;    // of the tokens that are not coded yet: m and d are read
  Partial out;
  void* scratch;     // cascade_scratch_bytes, 64-byte aligned, private to the calling thread
  uint32_t* chosen;  // [candidates] or null: which pages went on, as indices into `pages`
};

// What a call has read.
struct CascadeCounts {
  uint32_t pages_scored, candidates, full_tokens, value_tokens;
};

// ---- machine peaks ------------------------------------------------------------------------------

// Kinds of multiply-add whose peak a machine has.
enum class DotKind : uint8_t {
  kF32,   // f32 fused multiply-add
  kBF16,  // bf16 dot into f32
  kU8S8,  // int8 dot into int32 (VNNI, or 16-bit pair sums widened at once)
  kU4S8,  // 4-bit by 8-bit: like kU8S8 where there is a dot instruction, else 16-bit sums kept for
          // several steps
};
static constexpr uint32_t kDotKinds = 4;

// ---- the table ----------------------------------------------------------------------------------

struct Kernels {
  const char* name;    // "ref", "avx2", "avx-vnni", "avx512", "avx512-vnni", "avx512-bf16"
  DotKind prompt_dot;  // what attend_prompt multiplies with under Compute::kFast; f32 under kF32

  // Geometry of `type` packed for this table; data and cols*rows are the caller's. Sets everything
  // but `data`.
  void (*plan_matrix)(DType type, Compute compute, uint32_t rows, uint32_t cols, PackedMatrix* out);
  // Packs one panel from panel_rows source rows in the type's own format (null: a zero row) to
  // `panel`, panel_bytes.
  void (*pack_panel)(const PackedMatrix* w, const uint8_t* const* source_rows, uint8_t* panel);
  // Row `row` decoded to f32 [cols] (token embeddings).
  void (*unpack_row)(const PackedMatrix* w, uint32_t row, float* out);

  uint64_t (*act_row_bytes)(ActKind kind, uint32_t cols);  // a multiple of 64
  void (*make_acts)(ActKind kind, const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
                    uint8_t* out);
  void (*matmul)(const MatMulArgs* args);

  // out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight
  void (*rms_norm)(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
                   const float* weight, float eps, float* out, uint64_t out_stride);
  // out[r] = (x[r] - mean) / sqrt(var + eps) * weight + bias
  void (*layer_norm)(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
                     const float* weight, const float* bias, float eps, float* out,
                     uint64_t out_stride);
  // Rotates `heads` adjacent heads of one row in place. cos_sin: [rotary_dim/2][2] of this row's
  // position. Interleaved: pairs (2i, 2i+1), GGUF's llama; else pairs (i, i + rotary_dim/2), NeoX
  // (qwen2).
  void (*rope)(float* x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dim, bool interleaved,
               const float* cos_sin);

  // Bytes of a page's K part and V part. page_bytes = both, rounded up to 64 each.
  void (*page_bytes)(const KvShape* shape, uint32_t* k_bytes, uint32_t* v_bytes);
  void (*append)(const AppendArgs* args);
  // Reads a token back as f32 (tests, cache export): K and V of slot `slot` of `page`, [head_dim]
  // each. `spread`: of a coded page's record, that or its range; else null.
  void (*read_token)(const KvShape* shape, const uint8_t* page, uint32_t v_offset,
                     const uint8_t* spread, uint32_t slot, float* k, float* v);
  void (*seal_page)(const SealArgs* args);
  uint64_t (*decode_scratch_bytes)(const KvShape* shape, uint32_t group, uint32_t split_tokens);
  void (*attend_decode)(const DecodeArgs* args);
  // Merges n partials in index order and divides: out[h][head_dim] at out + h * head_dim. All
  // empty: zeros.
  void (*merge_partials)(const Partial* partials, uint32_t n, uint32_t group, uint32_t head_dim,
                         float* out);
  uint64_t (*prompt_scratch_bytes)(const KvShape* shape, uint32_t group, uint32_t rows);
  void (*attend_prompt)(const PromptArgs* args);

  void (*summarise_page)(const SummariseArgs* args);
  void (*score_pages)(const ScoreArgs* args);
  uint64_t (*cascade_scratch_bytes)(const KvShape* shape, uint32_t group, uint32_t pages_max);
  CascadeCounts (*attend_cascade)(const CascadeArgs* args);

  // Sum of all bytes read with the widest loads (bandwidth measurement); bytes a multiple of 4096.
  uint64_t (*read_bytes)(const uint8_t* data, uint64_t bytes);
  // Runs about `multiply_adds` independent multiply-adds of a kind in registers; returns how many
  // were done (0: the target has no such kind).
  uint64_t (*run_dots)(DotKind kind, uint64_t multiply_adds);
};

}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_KERNELS_H_
