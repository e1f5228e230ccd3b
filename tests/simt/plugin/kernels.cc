// What the images of the tests' plugins stand for on an emulated device.
#include <cmath>
#include <cstring>

#include "tests/simt/emulated_library.h"
// Its names must come before the kernel.
#include "tests/simt/plugin/cuda_names.h"

// The example as it is.
#include "examples/skeleton_score.cu"

namespace tinyserve::simt {
namespace {

// Newer pages first. In as many layers as `parameters` says page 0's score is no number, or, in odd
// layers, left out.
void FaultyScore(tinyserve_score_in in) {
  const uint32_t row = blockIdx.z, head = blockIdx.y;
  const uint32_t page = blockIdx.x * blockDim.x + threadIdx.x;
  if (page >= tinyserve_score_pages(&in, row)) return;
  const bool wrong = page == 0 && in.layer < in.parameters[0];
  if (wrong && in.layer % 2 == 1) return;
  in.scores[((uint64_t)row * in.kv_heads + head) * in.pages_max + page] =
      wrong ? NAN : static_cast<float>(page);
}

const bool added = [] {
  AddImage(".version skeleton", "skeleton_score", skeleton_score);
  AddImage(".version faulty", "faulty_score", FaultyScore);
  return true;
}();

}  // namespace
}  // namespace tinyserve::simt
