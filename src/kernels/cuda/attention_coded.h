// The decode kernel over coded pages: for attention_decode.cu, which has what calls need.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_CODED_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_CODED_H_

#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

struct DecodeCall;

// Of planes, int8, k8v4 and int4. Errors: kUnsupported.
Status LaunchCoded(const DecodeShape& shape, const DecodeCall& call, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_CODED_H_
