// The table of a target. The including unit names it (TS_TARGET_NAME, TS_TARGET_TABLE) and has
// included its primitives.
#include "kernels/cpu/attention.inl"
#include "kernels/cpu/cascade.inl"
#include "kernels/cpu/peaks.inl"
#include "kernels/cpu/products.inl"
#include "kernels/cpu/rows.inl"
#include "kernels/cpu/selection.inl"
#include "kernels/tables.h"

namespace tinyserve {
namespace {

constexpr Kernels kTable = {
    .name = TS_TARGET_NAME,
    .prompt_dot =
        DotKind::kU8S8,  // 16-bit pair products count as such where there are no byte dots
    .plan_matrix = PlanMatrix,
    .pack_panel = PackPanel,
    .unpack_row = UnpackRow,
    .act_row_bytes = ActRowBytes,
    .make_acts = MakeActs,
    .matmul = MatMul,
    .rms_norm = RmsNorm,
    .layer_norm = LayerNorm,
    .rope = Rope,
    .page_bytes = PageBytes,
    .append = Append,
    .read_token = ReadToken,
    .seal_page = SealPage,
    .decode_scratch_bytes = DecodeScratchBytes,
    .attend_decode = AttendDecode,
    .merge_partials = MergePartials,
    .prompt_scratch_bytes = PromptScratchBytes,
    .attend_prompt = AttendPrompt,
    .summarise_page = SummarisePage,
    .score_pages = ScorePages,
    .cascade_scratch_bytes = CascadeScratchBytes,
    .attend_cascade = AttendCascade,
    .read_bytes = ReadBytes,
    .run_dots = RunDots,
};

}  // namespace

const Kernels* TS_TARGET_TABLE() { return &kTable; }

}  // namespace tinyserve
