#include "kernels/cuda/weights.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/ref/codes.h"
#include "tensor/blocks.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kBlockCols = 32;  // that share a scale in the file
constexpr uint32_t kHalfCols = 16;

struct FormOf {
  uint32_t line_cols;
  uint32_t scales;  // f16 of 32 columns
};
constexpr FormOf kForms[kWeightForms] = {{32, 1}, {32, 2}, {16, 1}, {16, 8},
                                         {8, 0},  {8, 0},  {4, 0}};

WeightForm FormFor(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return WeightForm::kQ4;
    case DType::kQ4_1:
      return WeightForm::kQ4M;
    case DType::kQ8_0:
      return WeightForm::kQ8;
    case DType::kF16:
      return WeightForm::kF16;
    case DType::kBF16:
      return WeightForm::kBF16;
    case DType::kF32:
      return WeightForm::kF32;
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
      return WeightForm::kQ8M;
  }
  TS_CHECK(false && "a DType outside its enumerators");
  return WeightForm::kF32;
}

// Blocks of {scales, codes} taken apart.
template <class Block>
void Part(const uint8_t* source, uint32_t blocks, uint8_t* codes, uint8_t* scales) {
  constexpr uint32_t kCodes = sizeof(Block::qs), kScales = sizeof(Block) - kCodes;
  for (uint32_t b = 0; b < blocks; ++b, source += sizeof(Block)) {
    std::memcpy(scales + b * kScales, source, kScales);
    std::memcpy(codes + b * kCodes, source + kScales, kCodes);
  }
}

// Codes in 8 bits with a scale and a minimum for each 16 columns.
void Widen(DType type, const uint8_t* source, uint32_t blocks, uint8_t* codes, uint8_t* scales) {
  for (uint32_t b = 0; b < blocks; ++b) {
    const ref::CodeBlock block = ref::DecodeCodes(type, source, b);
    for (uint32_t half = 0; half < kBlockCols / kHalfCols; ++half) {
      // Q6_K's codes come with their scale multiplied in.
      int factor = 1;
      if (type == DType::kQ6_K) {
        BlockQ6_K k;
        std::memcpy(&k, source + uint64_t{b / 8} * sizeof k, sizeof k);
        factor = k.scales[b % 8 * 2 + half];
      }
      const float pair[2] = {block.scale * static_cast<float>(factor), block.min};
      std::memcpy(scales + (2 * b + half) * sizeof pair, pair, sizeof pair);
      for (uint32_t i = 0; i < kHalfCols; ++i) {
        const int code = block.code[half * kHalfCols + i];
        const auto byte = static_cast<int8_t>(factor == 0 ? 0 : code / factor);
        codes[b * kBlockCols + half * kHalfCols + i] = static_cast<uint8_t>(byte);
      }
    }
  }
}

}  // namespace

WeightPlan PlanWeights(DType type, uint32_t rows, uint32_t cols) {
  TS_CHECK(cols % InfoOf(type).block_elems == 0);
  const WeightForm form = FormFor(type);
  const FormOf& f = kForms[static_cast<uint32_t>(form)];
  WeightPlan plan{
      .form = form, .rows = rows, .cols = (cols + kColsUnit - 1) / kColsUnit * kColsUnit};
  plan.row_lines = plan.cols / f.line_cols;
  plan.row_scales = plan.cols / kBlockCols * f.scales;
  plan.code_bytes = uint64_t{rows} * plan.row_lines * kLineBytes;
  plan.scale_bytes = uint64_t{rows} * plan.row_scales * sizeof(F16);
  return plan;
}

void PackWeightRow(const WeightPlan& plan, DType type, uint32_t cols, const uint8_t* source,
                   uint8_t* codes, uint8_t* scales) {
  std::memset(codes, 0, uint64_t{plan.row_lines} * kLineBytes);
  std::fill_n(scales, uint64_t{plan.row_scales} * sizeof(F16), uint8_t{0});
  if (source == nullptr) return;
  const uint32_t blocks = cols / kBlockCols;
  switch (plan.form) {
    case WeightForm::kQ4:
      return Part<BlockQ4_0>(source, blocks, codes, scales);
    case WeightForm::kQ4M:
      return Part<BlockQ4_1>(source, blocks, codes, scales);
    case WeightForm::kQ8:
      return Part<BlockQ8_0>(source, blocks, codes, scales);
    case WeightForm::kQ8M:
      return Widen(type, source, blocks, codes, scales);
    case WeightForm::kF16:
    case WeightForm::kBF16:
    case WeightForm::kF32:
      std::memcpy(codes, source, RowBytes(type, cols));
  }
}

}  // namespace tinyserve::cuda
