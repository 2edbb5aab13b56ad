// The path for CPUs with AVX-512 VNNI.

#include "cpu.h"
#include "layers.h"
#include "product_avx512.h"

namespace modelsat {
namespace {

using All = Layers<Avx512Product<Number::kInt8>, FloatAttention>;
void nothing() {}

}  // namespace

// Threads share columns: with their products, reading all weights would cost more than rows that cross.
const Path kAvx512Vnni = {
    "avx512-vnni", Number::kInt8, has_avx512_vnni, sizeof(float), kNeverOwnRows, nothing, nothing, All::units,
    All::unit, All::place_prompt};

}  // namespace modelsat
