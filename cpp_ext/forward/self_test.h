// Whether a path computes what plain loops compute: it may never have run on this kind of CPU.
#ifndef MODELSAT_FORWARD_SELF_TEST_H
#define MODELSAT_FORWARD_SELF_TEST_H

#include "forward.h"
#include "weights.h"

#include <functional>

namespace modelsat {

// Scores one request, and returns a code of forward.h.
using Score = std::function<int(const modelsat_forward_request&, const modelsat_forward_head&)>;

// Compares `score` with reference.h on the first layers of `weights`, whose shape is changed meanwhile: no
// other pass may run. Returns a code of forward.h.
int self_test(Weights& weights, const Score& score);

}  // namespace modelsat

#endif
