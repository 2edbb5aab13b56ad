// The path for CPUs with AVX2 and AVX-VNNI.

#include "cpu.h"
#include "layers.h"
#include "product_avx2.h"

namespace modelsat {
namespace {

using All = Layers<Avx2Product, FloatAttention>;
void nothing() {}

}  // namespace

// Threads share columns: with their products, reading all weights would cost more than rows that cross.
const Path kAvx2Vnni = {
    "avx2-vnni", Number::kInt8, has_avx2_vnni, sizeof(float), kNeverOwnRows, nothing, nothing, All::units,
    All::unit, All::place_prompt};

}  // namespace modelsat
