// One accessor a compiled table. Each is defined in the unit of its target and has no other contact
// with the program.
#ifndef TINYSERVE_KERNELS_TABLES_H_
#define TINYSERVE_KERNELS_TABLES_H_

#include "kernels/kernels.h"

namespace tinyserve {

const Kernels* RefKernels();
const Kernels* Avx2Kernels();
const Kernels* AvxVnniKernels();
const Kernels* Avx512Kernels();
const Kernels* Avx512VnniKernels();
const Kernels* Avx512Bf16Kernels();

}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_TABLES_H_
