// The forward pass in plain loops, a row at a time: what every path is compared with, and a description of
// what they compute. Numbers are rounded as in the paths (bytes or bf16 at every product); sums are exact
// or in double precision.
#ifndef MODELSAT_FORWARD_REFERENCE_H
#define MODELSAT_FORWARD_REFERENCE_H

#include "weights.h"

#include <cstdint>
#include <vector>

namespace modelsat {

// Rows before the final norm of `embeddings` (null: zero) after tokens (length), the inquiry prompt
// included: (embeddings, D).
std::vector<std::vector<float>> reference_rows(const Weights& weights, const int64_t* tokens,
                                               int64_t length,
                                               const std::vector<const float*>& embeddings);

}  // namespace modelsat

#endif
