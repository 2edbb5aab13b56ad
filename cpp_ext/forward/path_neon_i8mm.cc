// The path for Arm CPUs with matrix products of bytes (Armv8.6).

#include "cpu.h"
#include "layers.h"
#include "product_neon.h"

namespace modelsat {
namespace {

using All = Layers<NeonMatrixProduct, FloatAttention>;
void nothing() {}

}  // namespace

// Threads share columns, as on AVX2. Its products ran under emulation alone.
const Path kNeonI8mm = {
    "neon-i8mm", Number::kInt8, has_neon_i8mm, sizeof(float), kNeverOwnRows, nothing, nothing, All::units,
    All::unit, All::place_prompt};

}  // namespace modelsat
