/* C ABI of the fused scoring kernel: residual-stream rows in, success probabilities out.
 *
 * For the row h of a candidate, with w = gain * (w_yes - w_no) folded beforehand:
 *
 *     logit = <h, w> / sqrt(mean(h^2) + eps)          RMSNorm: Zhang & Sennrich, 2019
 *     p     = sigmoid(scale * logit + offset)         Pr('Yes'): Model-SAT, AAAI 2025
 *
 * Thread-safe. Allocates nothing, starts no thread and throws nothing.
 */
#ifndef MODELSAT_SCORE_H
#define MODELSAT_SCORE_H

#include <stdint.h>

#ifdef __cplusplus
#define MODELSAT_NOEXCEPT noexcept
extern "C" {
#else
#define MODELSAT_NOEXCEPT
#endif

/* Raised with every change of a signature below or in score_cuda.h. */
enum { MODELSAT_ABI_VERSION = 2 };

enum { MODELSAT_FP32 = 0, MODELSAT_FP16 = 1, MODELSAT_BF16 = 2 };

enum {
  MODELSAT_OK = 0,
  MODELSAT_NULL_POINTER = 1,
  MODELSAT_BAD_DTYPE = 2,
  MODELSAT_BAD_SIZE = 3, /* batch or candidates < 0, width < 1, or more bytes than int64 holds */
};

/* The MODELSAT_ABI_VERSION that the library was built with. */
int32_t modelsat_abi_version(void) MODELSAT_NOEXCEPT;

/* hidden is (batch, candidates, width) row-major in `dtype`, weight (width), probability (batch,
 * candidates), each aligned to its element. Sums are fp32, and are repeated in fp64 for a row in
 * which they overflow. NaN or infinity in a row makes its own probability NaN and no other.
 * dtype and sizes are checked first; if batch * candidates is 0, the pointers are not read. */
int modelsat_score(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                   int64_t width, const float* weight, float eps, float scale, float offset,
                   float* probability) MODELSAT_NOEXCEPT;

/* The instruction set in use: "avx512f", "avx2", "neon" or "scalar". A static string. */
const char* modelsat_score_isa(void) MODELSAT_NOEXCEPT;

/* Selects an instruction set for the whole process, for tests; null selects the best one again.
 * Returns 0, or 1 without any change if this CPU or build lacks the instruction set. */
int modelsat_score_set_isa(const char* name) MODELSAT_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
