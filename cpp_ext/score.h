/* The fused scoring kernel's C ABI: residual-stream rows in, success probabilities out.
 *
 * For row h of candidate m under variant v, with w = gain * (w_yes - w_no) folded beforehand:
 *
 *     logit = <h, w> / sqrt(mean(h^2) + eps)          RMSNorm: Zhang & Sennrich, 2019
 *     p     = mean over v of sigmoid(scale * logit + offset)    Pr('Yes'): Model-SAT, AAAI 2025
 *
 * Thread-safe; keeps no memory, starts no thread, throws nothing.
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

enum { MODELSAT_FP32 = 0, MODELSAT_FP16 = 1, MODELSAT_BF16 = 2 };

enum {
  MODELSAT_OK = 0,
  MODELSAT_NULL_POINTER = 1,
  MODELSAT_BAD_DTYPE = 2,
  MODELSAT_BAD_SIZE = 3, /* batch or candidates < 0, variants or width < 1 */
};

/* hidden is (batch, candidates, variants, width) row-major in `dtype`, weight (width), probability
 * (batch, candidates); each aligned to its element. Sums are fp32, and are redone in fp64 for a row
 * on which they overflow. A row holding NaN or infinity makes its own candidate NaN and no other.
 * Sizes and dtype are checked first; pointers are not looked at where batch * candidates is 0. */
int modelsat_score(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                   int64_t variants, int64_t width, const float* weight, float eps, float scale,
                   float offset, float* probability) MODELSAT_NOEXCEPT;

/* The path in use: "avx512f", "avx2", "neon" or "scalar". Never null, never freed. */
const char* modelsat_score_isa(void) MODELSAT_NOEXCEPT;

/* Forces a path for the whole process (a hook for tests), or with null the best one again.
 * Returns 0, or 1 and changes nothing where this CPU or build lacks the path. */
int modelsat_score_set_isa(const char* name) MODELSAT_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
