// What skeleton_selector.cc does on the host, on a CUDA device: the scores of pages, for the engine
// to choose by. Built against include/tinyserve/plugin_device.h alone:
//
//   nvcc -std=c++20 -arch=native -fatbin -I include -o mine.fatbin examples/skeleton_score.cu
//   c++ -std=c++20 -O3 -march=native -shared -fPIC -I include -DSKELETON_IMAGE='"mine.fatbin"'
//       -o mine.so examples/skeleton_selector.cc
//
// Eight threads have a page: each takes every eighth run of eight channels, so that they read the
// record's lines side by side.
#include <math.h>

#include "tinyserve/plugin_device.h"

constexpr uint32_t kLanes = 8, kRun = 8;

extern "C" __global__ void skeleton_score(tinyserve_score_in in) {
  const uint32_t row = blockIdx.z, head = blockIdx.y, lane = threadIdx.x % kLanes;
  const uint32_t page = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes;
  // No thread leaves: all of a warp come to the shuffles.
  const bool asked = page < tinyserve_score_pages(&in, row);
  const uint16_t* low = asked ? tinyserve_score_record(&in, row, head, page) : nullptr;
  const uint64_t item = (uint64_t)row * in.kv_heads + head;
  float best = -INFINITY;
  for (uint32_t h = 0; h < in.group; ++h) {
    const float* q = in.q + (item * in.group + h) * in.head_dim;
    float bound = 0;
    for (uint32_t c = lane * kRun; asked && c < in.head_dim; c += kLanes * kRun) {
      for (uint32_t i = c; i < c + kRun; ++i) {
        const float x = q[i] * in.scale;
        const uint16_t* end = x >= 0 ? low + in.record_channels : low;
        bound = fmaf(x, tinyserve_score_half(end[i]), bound);
      }
    }
    for (uint32_t lanes = kLanes / 2; lanes > 0; lanes /= 2)
      bound += __shfl_xor_sync(0xffffffffu, bound, lanes);
    best = fmaxf(best, bound);
  }
  if (!asked || lane != 0) return;
  float slack;
  memcpy(&slack, in.parameters, sizeof slack);
  in.scores[item * in.pages_max + page] = best + slack * (float)page;
}
