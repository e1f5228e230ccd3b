// The table of plain loops.
#include <cstring>

#include "kernels/ref/attention.h"
#include "kernels/ref/coded.h"
#include "kernels/ref/planes.h"
#include "kernels/ref/products.h"
#include "kernels/ref/rows.h"
#include "kernels/ref/selection.h"
#include "kernels/tables.h"

namespace tinyserve {
namespace {

uint64_t ReadBytes(const uint8_t* data, uint64_t bytes) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < bytes; ++i) sum += data[i];
  return sum;
}

// Scalar multiply and add, eight independent sums; the only kind that plain loops have.
uint64_t RunDots(DotKind kind, uint64_t multiply_adds) {
  if (kind != DotKind::kF32) return 0;
  float sums[8] = {};
  float factor = 0.5f;
  uint64_t done = 0;
  for (; done < multiply_adds; done += 8) {
    for (float& sum : sums) sum = sum * factor + 1.0f;
    __asm__ volatile("" : "+x"(factor));
  }
  for (float& sum : sums) __asm__ volatile("" : "+x"(sum));
  return done;
}

constexpr Kernels kTable = {
    .name = "ref",
    .prompt_dot = DotKind::kF32,
    .plan_matrix = ref::PlanMatrix,
    .pack_panel = ref::PackPanel,
    .unpack_row = ref::UnpackRow,
    .act_row_bytes = ref::ActRowBytes,
    .make_acts = ref::MakeActs,
    .matmul = ref::MatMul,
    .rms_norm = ref::RmsNorm,
    .layer_norm = ref::LayerNorm,
    .rope = ref::Rope,
    .page_bytes = ref::PageBytes,
    .append = ref::Append,
    .read_token = ref::ReadToken,
    .seal_page = ref::SealPage,
    .decode_scratch_bytes = ref::DecodeScratchBytes,
    .attend_decode = ref::AttendDecode,
    .merge_partials = ref::MergePartials,
    .prompt_scratch_bytes = ref::PromptScratchBytes,
    .attend_prompt = ref::AttendPrompt,
    .summarise_page = ref::SummarisePage,
    .score_pages = ref::ScorePages,
    .cascade_scratch_bytes = ref::CascadeScratchBytes,
    .attend_cascade = ref::AttendCascade,
    .read_bytes = ReadBytes,
    .run_dots = RunDots,
};

}  // namespace

const Kernels* RefKernels() { return &kTable; }

}  // namespace tinyserve
