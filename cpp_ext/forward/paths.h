// The paths of this build, and the choice among them.
#ifndef MODELSAT_FORWARD_PATHS_H
#define MODELSAT_FORWARD_PATHS_H

#include "pass.h"

namespace modelsat {

constexpr const char* kScalar = "scalar";  // reference.h; for either number, never chosen by itself

// The path of this name for `number`, or the best one if name is null; null if there is none that this
// CPU can run.
const Path* find_path(const char* name, Number number);

// The names of the paths that this CPU can run, best first, separated by spaces; ends with kScalar.
const char* path_names();

}  // namespace modelsat

#endif
