// The path for Arm CPUs with dot products of bytes (Armv8.2).

#include "cpu.h"
#include "layers.h"
#include "product_neon.h"

namespace modelsat {
namespace {

using All = Layers<NeonDotProduct, FloatAttention>;
void nothing() {}

}  // namespace

// Threads share columns, as on AVX2. Its products ran under emulation alone.
const Path kNeonDot = {
    "neon-dot", Number::kInt8, has_neon_dot, sizeof(float), kNeverOwnRows, nothing, nothing, All::units,
    All::unit, All::place_prompt};

}  // namespace modelsat
