/* The scoring kernel on a GPU: probabilities and the order of the candidates in one launch.
 *
 * Probabilities are those of score.h. The allowed candidates of each request are then ordered by
 * utility = probability - penalty; ties go to the smaller number, and a NaN is left out. The penalty
 * (cost sensitivity x cost / highest cost) and everything beyond this arithmetic stay in
 * engine/routing/ranking.py.
 *
 * Compiled for sm_80, 86, 89, 90 and 120; tests emulate it on a CPU (cuda_emulation.h).
 */
#ifndef MODELSAT_SCORE_CUDA_H
#define MODELSAT_SCORE_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MODELSAT_CUDA_MAX_CANDIDATES = 4096, MODELSAT_CUDA_LAUNCH_FAILED = 4 };

/* The MODELSAT_ABI_VERSION that the library was built with. */
int32_t modelsat_cuda_abi_version(void);

/* hidden, weight, probability: as in score.h, on the device. allowed (batch, candidates): 0 leaves a
 * candidate out of the order. penalty (batch, candidates). order (batch, ranked): candidate numbers,
 * then -1 if fewer are allowed. stream: a cudaStream_t. Returns the codes of score.h, or
 * LAUNCH_FAILED; the results are ready once the stream has reached them. */
int modelsat_rank_cuda(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                       int64_t width, const float* weight, float eps, float scale, float offset,
                       const uint8_t* allowed, const float* penalty, int64_t ranked,
                       float* probability, int32_t* order, void* stream);

/* Copies the rows (count) of table (..., width) to out (count, width), all on the device. Row numbers
 * are not checked. Returns as above. */
int modelsat_gather_cuda(const float* table, int64_t width, const int32_t* rows, int64_t count,
                         float* out, void* stream);

#ifdef __cplusplus
}
#endif

#endif
