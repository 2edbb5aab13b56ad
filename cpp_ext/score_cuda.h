/* The scoring kernel on a GPU: rows, probabilities and the order of the candidates in one launch.
 *
 * Probabilities are those of score.h. Then, of each request, the candidates that may be chosen are
 * ordered by utility = probability - penalty, ties by the smaller number; one that is NaN is never
 * chosen. The penalty (cost sensitivity x cost / dearest cost) and everything that is not plain
 * arithmetic on it stay in engine/routing/ranking.py.
 *
 * Compiled for sm_80, 86, 89, 90 and 120 and emulated on a CPU (cuda_emulation.h); not yet run on a
 * GPU.
 */
#ifndef MODELSAT_SCORE_CUDA_H
#define MODELSAT_SCORE_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MODELSAT_CUDA_MAX_CANDIDATES = 4096, MODELSAT_CUDA_LAUNCH_FAILED = 4 };

/* hidden, weight, probability: as score.h, on the device. allowed (batch, candidates): 0 leaves a
 * candidate out of the order. penalty (batch, candidates). order (batch, ranked): candidate numbers,
 * -1 where fewer are left. stream: a cudaStream_t. Returns score.h's codes, or LAUNCH_FAILED; the
 * work itself ends when the stream says so. */
int modelsat_rank_cuda(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                       int64_t variants, int64_t width, const float* weight, float eps, float scale,
                       float offset, const uint8_t* allowed, const float* penalty, int64_t ranked,
                       float* probability, int32_t* order, void* stream);

/* out (count, width) = the rows of table (..., width) that `rows` (count) names; all on the device.
 * Row numbers are not checked. Returns as above. */
int modelsat_gather_cuda(const float* table, int64_t width, const int32_t* rows, int64_t count,
                         float* out, void* stream);

#ifdef __cplusplus
}
#endif

#endif
