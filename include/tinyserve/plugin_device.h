/* Device entries of selectors: a kernel of a plugin's own that scores pages where they lie, in the
 * memory of a CUDA device. The engine does the rest, as for its own: it keeps the records, takes
 * the best pages by their scores, and attends to them.
 *
 * A shared object that exports tinyserve_selector (plugin.h) may export this beside it:
 *
 *     const tinyserve_selector_device_v1* tinyserve_selector_device(void);
 *
 * On the CPU the selector's `select` is asked, on a device this kernel; both should rank alike. A
 * selector without a device entry is refused on a device, and so is one that keeps summaries or a
 * state, or observes: those live on the host. What it needs of a page must be the box or the
 * moments (TINYSERVE_NEEDS_BOX, TINYSERVE_NEEDS_MOMENTS).
 *
 * Plain C data, which nvcc and the host's compiler read alike. */
#ifndef TINYSERVE_PLUGIN_DEVICE_H_
#define TINYSERVE_PLUGIN_DEVICE_H_

#include <stdint.h>

#include "tinyserve/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define TINYSERVE_ON_DEVICE __host__ __device__
#else
#define TINYSERVE_ON_DEVICE
#endif

#define TINYSERVE_SELECTOR_DEVICE_ABI_VERSION 1u
#define TINYSERVE_SCORE_PARAMETERS_MAX 256u /* bytes */

/* The kernel's one argument, by value: the generated tokens ("rows") of a step in one layer. All
 * pointers are to memory of the device; the kernel may read what is named here, and write `scores`.
 * A later version has more fields at the end.
 *
 * The launch has (pages_max / block_pages, rounded up; kv_heads; rows) blocks: block (x, y, z) is
 * asked for the pages x * block_pages and on of KV head y of row z, as far as
 * tinyserve_score_pages goes. Of other rows and pages nothing may be read or written. Launches are
 * recorded and replayed: whether and what a block computes must follow from what it reads.
 *
 * A page's score may be any number, infinities too; the largest are chosen, equal ones by the
 * lowest position. Where one is no number (NaN), or is not written, the row reads every page at
 * that KV head, which is counted as a failure of the selector. */
typedef struct tinyserve_score_in {
  uint32_t struct_size;
  uint32_t layer;
  uint32_t rows, kv_heads;
  uint32_t group;             /* query heads that share a KV head */
  uint32_t head_dim;          /* channels */
  uint32_t record_kinds;      /* of TINYSERVE_NEEDS_BOX and _MOMENTS, those that a record holds */
  uint32_t record_channels;   /* head_dim rounded up to 16; the padding holds zeros */
  uint32_t pages_max;         /* no row is asked for more */
  uint32_t table_pages;       /* columns of tables */
  uint32_t first_page;        /* of the candidates, counted from the sequence's first page */
  float scale;                /* logit = scale * q.k */
  const float* q;             /* [rows][kv_heads][group][head_dim], after RoPE, without the scale */
  const uint32_t* tokens;     /* [rows] before and at the query's; 0: the row is not asked */
  const uint32_t* candidates; /* [rows] pages; 0: there is nothing to choose */
  const uint32_t* tables;     /* [..][table_pages] of a sequence: its pages' indices into records */
  const uint32_t* table_of;   /* [rows] the row's place in tables */
  /* Records of full pages: tinyserve_score_record. */
  const uint8_t* records;
  uint64_t record_head_stride, record_extent_stride; /* bytes */
  uint32_t record_extent_shift, record_bytes;
  float* scores;                                           /* [rows][kv_heads][pages_max] */
  uint64_t parameters[TINYSERVE_SCORE_PARAMETERS_MAX / 8]; /* as the entry wrote them */
} tinyserve_score_in;

/* How many pages a row is asked for. */
static inline TINYSERVE_ON_DEVICE uint32_t tinyserve_score_pages(const tinyserve_score_in* in,
                                                                 uint32_t row) {
  return in->tokens[row] == 0 ? 0 : in->candidates[row];
}

/* The record of a candidate, from 0 on: its box or its moments, two rows of record_channels f16, or
 * both in this order. 16-byte aligned. */
static inline TINYSERVE_ON_DEVICE const uint16_t* tinyserve_score_record(
    const tinyserve_score_in* in, uint32_t row, uint32_t kv_head, uint32_t page) {
  const uint32_t index =
      in->tables[(uint64_t)in->table_of[row] * in->table_pages + in->first_page + page];
  const uint32_t in_extent = index & ((1u << in->record_extent_shift) - 1u);
  return (const uint16_t*)(in->records + kv_head * in->record_head_stride +
                           (uint64_t)(index >> in->record_extent_shift) * in->record_extent_stride +
                           (uint64_t)in_extent * in->record_bytes);
}

/* tinyserve_half for kernels. */
static inline TINYSERVE_ON_DEVICE float tinyserve_score_half(uint16_t half) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  return tinyserve_half(half);
#endif
}

typedef struct tinyserve_selector_device_v1 {
  uint32_t abi_version; /* TINYSERVE_SELECTOR_DEVICE_ABI_VERSION */
  uint32_t struct_size; /* sizeof(tinyserve_selector_device_v1) */
  /* Code of the kernel: a fatbin or cubin as nvcc makes them, or PTX, which ends with a zero byte.
   * It is read while the process lives. */
  const void* image;
  uint64_t image_bytes;
  const char* kernel;     /* extern "C" __global__ void kernel(tinyserve_score_in in) */
  uint32_t block_threads; /* a multiple of 32, at most 1024 */
  uint32_t block_pages;   /* that a block scores, at least 1 */
  uint32_t shared_bytes;  /* of dynamic shared memory of a block, at most 49152 */
  /* Writes what the kernel gets as `parameters`, from the options that `open` was given. 0: done,
   * else a message. Null: zeros. */
  int (*parameters)(void* self, uint64_t parameters[TINYSERVE_SCORE_PARAMETERS_MAX / 8],
                    tinyserve_error* error);
} tinyserve_selector_device_v1;

#ifdef __cplusplus
}
#endif

#endif  // TINYSERVE_PLUGIN_DEVICE_H_
