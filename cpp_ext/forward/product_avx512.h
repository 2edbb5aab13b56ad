// AVX-512: 8 rows by 32 columns in 16 registers of sums.
//
// VPDPBUSD adds 4 products of bytes to each of 16 sums, VPDPBF16PS 2 of bf16. For 64 bytes of depth a row
// of registers needs 2 loads of B and 8 broadcasts of A for 16 products, so that products are the limit
// on CPUs with two units for them.
#ifndef MODELSAT_FORWARD_PRODUCT_AVX512_H
#define MODELSAT_FORWARD_PRODUCT_AVX512_H

#include "product.h"

namespace modelsat {
namespace {

template <Number kWeights>
struct Avx512Product {
  static constexpr Number kNumber = kWeights;

  static INLINED __m512i step(__m512i sum, __m512i a, __m512i b) {
    if constexpr (kNumber == Number::kInt8) return _mm512_dpbusd_epi32(sum, a, b);
#if defined(__AVX512BF16__)
    else
      return _mm512_castps_si512(_mm512_dpbf16_ps(
          _mm512_castsi512_ps(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#endif
  }

  template <class Done>
  static INLINED void panel(const uint8_t* a, int rows, int blocks, const uint8_t* b,
                            const uint8_t* next, bool /*back*/, const Done& done) {
    constexpr int kRows = 8;
    alignas(64) int32_t sums[kRows * kPanel];
    for (int row = 0; row < rows; row += kRows) {
      __m512i c[kRows][2];
      for (int i = 0; i < kRows; ++i) c[i][0] = c[i][1] = _mm512_setzero_si512();
      const uint8_t* from = a + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
      for (int k = 0; k < blocks; ++k) {
        const uint8_t *a_block = from + k * kTileBytes, *b_block = b + k * kBlockBytes;
        // 32 lines of a block for 4 rounds of 8 rows each
        _mm_prefetch(reinterpret_cast<const char*>(next) + k * kBlockBytes + row / kRows % 32 * 64,
                     _MM_HINT_T1);
        for (int q = 0; q < 16; ++q) {
          const __m512i left = _mm512_load_si512(b_block + q * 64);
          const __m512i right = _mm512_load_si512(b_block + kTileBytes + q * 64);
#pragma GCC unroll 8
          for (int i = 0; i < kRows; ++i) {
            int32_t group;
            std::memcpy(&group, a_block + i * 64 + q * 4, sizeof group);
            const __m512i x = _mm512_set1_epi32(group);
            c[i][0] = step(c[i][0], x, left);
            c[i][1] = step(c[i][1], x, right);
          }
        }
      }
      for (int i = 0; i < kRows; ++i) {
        _mm512_store_si512(sums + i * kPanel, c[i][0]);
        _mm512_store_si512(sums + i * kPanel + 16, c[i][1]);
      }
      for (int i = 0; i < kRows && row + i < rows; ++i) done(row + i, sums + i * kPanel);
    }
  }
};

}  // namespace
}  // namespace modelsat

#endif
