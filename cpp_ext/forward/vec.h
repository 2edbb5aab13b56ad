// Vectors of floats, as wide as the instruction set that the including file is compiled for.
//
// Files named path_*.cc are each compiled with flags of their own. What they include must be in an
// unnamed namespace: the linker keeps one copy of an inline function with a name, and might keep one that
// only some CPUs can run. For the same reason they use no containers of the standard library.
#ifndef MODELSAT_FORWARD_VEC_H
#define MODELSAT_FORWARD_VEC_H

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINED inline __attribute__((always_inline))

namespace modelsat {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Unaligned, because rows of candidates come from callers.
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

INLINED Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
INLINED void store(float* p, Floats x) { *reinterpret_cast<Floats*>(p) = x; }
INLINED Floats broadcast(float x) { return x - Floats{}; }
// b if either is NaN. GCC makes a comparison and a blend of a > b ? a : b.
#if defined(__AVX512F__)
INLINED Floats larger(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
INLINED Floats smaller(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#else
INLINED Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINED Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif
INLINED Floats magnitude(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff);
}

#if defined(__AVX512F__)
INLINED float total(Floats x) { return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x)); }
INLINED float largest(Floats x) { return _mm512_reduce_max_ps(reinterpret_cast<__m512>(x)); }
INLINED Floats rough_inverse(Floats x) {  // 14 bits
  return reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
}
#elif defined(__AVX2__)
INLINED __m128 lower(Floats x) { return _mm256_castps256_ps128(reinterpret_cast<__m256>(x)); }
INLINED __m128 upper(Floats x) { return _mm256_extractf128_ps(reinterpret_cast<__m256>(x), 1); }
INLINED float total(Floats x) {
  const __m128 four = _mm_add_ps(lower(x), upper(x));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return two[0] + two[1];
}
INLINED float largest(Floats x) {
  const __m128 four = _mm_max_ps(lower(x), upper(x));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return two[0] > two[1] ? two[0] : two[1];
}
INLINED Floats rough_inverse(Floats x) {  // 12 bits
  return reinterpret_cast<Floats>(_mm256_rcp_ps(reinterpret_cast<__m256>(x)));
}
#else
INLINED float total(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINED float largest(Floats x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
INLINED Floats rough_inverse(Floats x) { return 1.0f / x; }
#endif

// One step of Newton's method: 23 bits from 12.
INLINED Floats inverse(Floats x) {
  const Floats r = rough_inverse(x);
  return r * (2.0f - x * r);
}

// e^x to about 2e-6 for |x| <= 87, and e^+-87 beyond. With AVX-512 some 11 instructions instead of 18: step 1 of
// docs/explanation/performance.md.
INLINED Floats exponential(Floats x) {
  x = smaller(larger(x, broadcast(-87.0f)), broadcast(87.0f));
#if defined(__AVX512DQ__)
  // 2^n times a polynomial of degree 5 on [0, 1): its largest relative error is 7.5e-8.
  const Floats power = x * 1.44269504f;
  const Floats f = reinterpret_cast<Floats>(_mm512_reduce_ps(reinterpret_cast<__m512>(power), 1));
  Floats p = f * 1.8775767e-3f + 8.9893410e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  return reinterpret_cast<Floats>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(power)));
#else
  // 2^n times a polynomial of degree 5 on [-ln 2 / 2, ln 2 / 2]. Adding 1.5 * 2^23 rounds to an integer and
  // leaves it in the low bits.
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Ints n = reinterpret_cast<Ints>(shifted) - 0x4b400000;
  const Floats f = x - (shifted - 12582912.0f) * 0.693147180f;
  Floats p = f * 8.3333e-3f + 4.16666e-2f;
  p = p * f + 1.6666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + (n << 23));
#endif
}

// To the nearest bfloat16, ties to even.
INLINED Halves to_bf16(Floats x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  Words bits = reinterpret_cast<Words>(x);
  bits += 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector(bits >> 16, Halves);
#endif
}

INLINED Floats from_bf16(const uint16_t* p) {
  const auto bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16;
  return reinterpret_cast<Floats>(bits);
}

INLINED Floats from_int8(const int8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const SignedBytes*>(p), Floats);
}

// 0 to kLanes - 1.
INLINED Ints lane_numbers() {
  Ints x;
  for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

}  // namespace
}  // namespace modelsat

#endif
