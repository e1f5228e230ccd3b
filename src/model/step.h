// One step's activations, and the named operations that a layer's forward is written in.
#ifndef TINYSERVE_MODEL_STEP_H_
#define TINYSERVE_MODEL_STEP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "attend/attention.h"
#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/weights.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Called after each layer with the residual stream: hidden is [rows][dim].
using LayerHook =
    std::function<void(uint32_t layer, const float* hidden, uint32_t rows, uint32_t dim)>;

// Normalisation weights; without a bias it is an RMS norm, with one a layer norm.
struct Norm {
  std::vector<float> weight;  // [dim]
  std::vector<float> bias;    // [dim] or empty
};

// What Step needs to know of a model's sizes.
struct StepSizes {
  uint32_t dim, qkv_dim, attention_dim, ffn_dim, vocab;
  uint32_t rows_max;    // tokens of a step
  uint32_t logits_max;  // rows whose logits are computed at a time
};

// Buffers for the largest step, allocated once; a step allocates nothing. All matrices are
// row-major f32, a row a token.
class Step {
 public:
  static Result<std::unique_ptr<Step>> Create(const StepSizes& sizes, const Kernels* kernels,
                                              ThreadPool* threads);

  // Begins a step of `rows` tokens at `positions`.
  void Begin(std::span<const int32_t> tokens, std::span<const uint32_t> positions,
             Attention* attention);

  // Tokens leave the layers, between two of them: later layers make their keys and values of the
  // state as it is, and nothing else. rows: of the step, each once, none has left before.
  void Leave(std::span<const uint32_t> rows);
  // Rows that have not left, ascending.
  std::span<const uint32_t> active() const { return std::span(row_of_).first(active_); }
  // All states are in x() in the step's order again. After the last layer.
  void Rejoin();
  // Rows behind the others, whose states after the last layer, [rows][dim], were computed apart.
  void Append(std::span<const float> states);

  // x[r] = row tokens[r] of the embedding.
  void Embed(const Linear& embedding);
  // x[r] += row positions[r] of a position embedding.
  void AddPositions(const Linear& embedding);
  // h = norm(x), in the forms that `next` takes. ForQkv: also of tokens that have left.
  void NormFor(const Norm& norm, float eps, const Linear& next);
  void NormForQkv(const Norm& norm, float eps, const Linear& qkv);
  // qkv = linear(h), whose first q_dim columns are q; of tokens that have left k and v alone.
  void ProjectQkv(const Linear& linear, uint32_t q_dim);
  // Rotates the q and k heads of qkv in place. `cos_sin` rows come from PrepareRope.
  void PrepareRope(const std::vector<float>& frequencies, float magnitude);
  void Rope(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, const RopeConfig& rope);
  // o = attention(q, cache after appending k, v)
  void Attend(uint32_t layer, uint32_t q_dim, uint32_t kv_dim);
  // x += linear(o)
  void AddAttentionOut(const Linear& linear);
  // a = silu(gate(h)) * up(h)
  void SwiGlu(const Linear& gate_up);
  // a = gelu(linear(h))
  void Gelu(const Linear& linear);
  // x += linear(a)
  void AddDown(const Linear& linear);
  // out[i] = head(norm(x[wanted[i]])) for at most logits_max rows; out is [wanted.size()][vocab].
  void Logits(std::span<const uint32_t> wanted, const Norm& norm, float eps, const Linear& head,
              float* out);
  // out = norm(x[row]); out is [dim].
  void FinalState(uint32_t row, const Norm& norm, float eps, float* out) const;

  uint32_t rows() const { return rows_; }
  // [rows][dim]. While tokens have left, row i is the state of active()[i], and behind those of all
  // active ones come the others.
  float* x() { return x_.as<float>(); }
  const float* x() const { return x_.as<float>(); }
  const StepSizes& sizes() const { return sizes_; }

 private:
  Step() = default;
  // Runs body(row) for rows [0, rows): on the caller alone where that is cheaper.
  template <class Body>
  void ForRows(uint32_t rows, const Body& body);
  // Puts row `row` of `x` [cols] into the activation forms of `kinds`.
  void MakeActs(uint8_t kinds, const float* x, uint32_t row, uint32_t cols);
  // A product's activation rows [begin, end) and output columns from first_column on.
  struct Region {
    uint32_t begin, end;
    uint32_t first_column = 0;
  };
  void NormRows(const Norm& norm, float eps, const Linear& next, uint32_t rows);
  void Project(const Linear& linear, const Region& region, float* out, uint64_t out_stride,
               Epilogue epilogue);
  void NormRow(const Norm& norm, float eps, const float* x, float* out) const;
  // Moves the state of place from[i] to place i.
  void Reorder(std::span<const uint32_t> from);

  StepSizes sizes_{};
  const Kernels* kernels_ = nullptr;
  ThreadPool* threads_ = nullptr;
  Attention* attention_ = nullptr;
  uint32_t rows_ = 0;
  std::span<const int32_t> tokens_;
  std::span<const uint32_t> positions_;
  uint32_t rope_pairs_ = 0;
  // Where the states of rows lie in x: those of active rows first, ascending. Activations of
  // products lie likewise; q, k, v and attention's output lie in the step's order.
  uint32_t active_ = 0;
  std::vector<uint32_t> row_of_, place_of_;  // [rows]
  std::vector<uint32_t> moves_;              // scratch, [rows]
  Buffer x_;                                 // [rows_max][dim], the residual stream
  Buffer normed_;                            // [max(rows_max, logits_max)][dim]
  Buffer qkv_;                               // [rows_max][qkv_dim]
  Buffer placed_;                            // [rows_max][qkv_dim], of states as they lie in x
  Buffer o_;                                 // [rows_max][attention_dim]
  Buffer a_;                                 // [rows_max][ffn_dim]
  Buffer up_;       // [rows_max][2 * ffn_dim], where gate and up are not fused
  Buffer acts_[3];  // by ActKind: [max(rows_max, logits_max)][act_row_bytes(widest input)]
  Buffer cos_sin_;  // [rows_max][pairs][2]
};

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_STEP_H_
