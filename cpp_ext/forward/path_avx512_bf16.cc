// The path for CPUs with AVX-512 bf16.

#include "cpu.h"
#include "layers.h"
#include "product_avx512.h"

namespace modelsat {
namespace {

using All = Layers<Avx512Product<Number::kBf16>, FloatAttention>;
void nothing() {}

}  // namespace

// Threads share columns: with their products, reading all weights would cost more than rows that cross.
const Path kAvx512Bf16 = {
    "avx512-bf16", Number::kBf16, has_avx512_bf16, sizeof(float), kNeverOwnRows, nothing, nothing, All::units,
    All::unit, All::place_prompt};

}  // namespace modelsat
