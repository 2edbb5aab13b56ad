// AVX2: 4 rows by 16 columns in 8 registers of sums, the two halves of a panel one after the other.
//
// With AVX-VNNI, VPDPBUSD adds 4 products of bytes to each of 8 sums. Without, VPMADDUBSW makes products of 16
// bits, of every second byte in turn, as a sum of two could saturate, and VPMADDWD adds pairs of those.
#ifndef MODELSAT_FORWARD_PRODUCT_AVX2_H
#define MODELSAT_FORWARD_PRODUCT_AVX2_H

#include "product.h"

namespace modelsat {
namespace {

struct Avx2Product {
  static constexpr Number kNumber = Number::kInt8;

  static INLINED __m256i step(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, a, b);
#else
    const __m256i ones = _mm256_set1_epi16(1), even = _mm256_set1_epi16(0xff);
    const __m256i first = _mm256_maddubs_epi16(_mm256_and_si256(a, even), b);
    const __m256i second = _mm256_maddubs_epi16(_mm256_andnot_si256(even, a), b);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(first, ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(second, ones));
#endif
  }

  template <class Done>
  static INLINED void panel(const uint8_t* a, int rows, int blocks, const uint8_t* b,
                            const uint8_t* /*next*/, bool /*back*/, const Done& done) {
    constexpr int kRows = 4;
    alignas(32) int32_t sums[kRows * kPanel];
    for (int row = 0; row < rows; row += kRows) {
      const uint8_t* from = a + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
      for (int half = 0; half < 2; ++half) {
        __m256i c[kRows][2];
        for (int i = 0; i < kRows; ++i) c[i][0] = c[i][1] = _mm256_setzero_si256();
        for (int k = 0; k < blocks; ++k) {
          const uint8_t* a_block = from + k * kTileBytes;
          const auto* b_block =
              reinterpret_cast<const __m256i*>(b + k * kBlockBytes + half * kTileBytes);
          for (int q = 0; q < 16; ++q) {
            const __m256i left = _mm256_load_si256(b_block + 2 * q);
            const __m256i right = _mm256_load_si256(b_block + 2 * q + 1);
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
              int32_t group;
              std::memcpy(&group, a_block + i * 64 + q * 4, sizeof group);
              const __m256i x = _mm256_set1_epi32(group);
              c[i][0] = step(c[i][0], x, left);
              c[i][1] = step(c[i][1], x, right);
            }
          }
        }
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < 2; ++j)
            _mm256_store_si256(
                reinterpret_cast<__m256i*>(sums + i * kPanel + half * 16 + j * 8), c[i][j]);
      }
      for (int i = 0; i < kRows && row + i < rows; ++i) done(row + i, sums + i * kPanel);
    }
  }
};

}  // namespace
}  // namespace modelsat

#endif
