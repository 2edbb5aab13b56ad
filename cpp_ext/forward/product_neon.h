// NEON: products of bytes, by dot products or by products of 2 x 8 bytes with 8 x 2.
#ifndef MODELSAT_FORWARD_PRODUCT_NEON_H
#define MODELSAT_FORWARD_PRODUCT_NEON_H

#include "product.h"

#include <arm_neon.h>

namespace modelsat {
namespace {

// 4 rows by 16 columns in 16 registers of sums, the two halves of a panel one after the other. SDOT adds 4
// products of signed bytes to each of 4 sums; activations are stored as x + 128, so 128 times the sum of a
// column's weights, which the caller subtracts, is added here once for all rows.
struct NeonDotProduct {
  static constexpr Number kNumber = Number::kInt8;
  static constexpr int kRows = 4, kWide = 4;  // kWide: vectors of 16 columns

  template <class Done>
  static INLINED void panel(const uint8_t* a, int rows, int blocks, const uint8_t* b,
                            const uint8_t* /*next*/, bool /*back*/, const Done& done) {
    alignas(16) int32_t sums[kRows * kPanel], offsets[kPanel];
    for (int half = 0; half < 2; ++half) column_sums(b + half * kTileBytes, blocks, offsets + half * 16);
    for (int row = 0; row < rows; row += kRows) {
      const uint8_t* from = a + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
      for (int half = 0; half < 2; ++half) {
        int32x4_t c[kRows][kWide];
        for (int v = 0; v < kWide; ++v) {
          c[0][v] = vld1q_s32(offsets + half * 16 + v * 4);
          for (int i = 1; i < kRows; ++i) c[i][v] = c[0][v];
        }
        for (int k = 0; k < blocks; ++k)
          for (int group = 0; group < 16; group += 4) {
            const uint8_t* b_group = b + k * kBlockBytes + half * kTileBytes + group * 64;
            int8x16_t x[kRows];
            for (int i = 0; i < kRows; ++i)
              x[i] = vreinterpretq_s8_u8(
                  veorq_u8(vld1q_u8(from + k * kTileBytes + i * 64 + group * 4), vdupq_n_u8(0x80)));
            step<0>(c, x, b_group);
            step<1>(c, x, b_group);
            step<2>(c, x, b_group);
            step<3>(c, x, b_group);
          }
        for (int i = 0; i < kRows; ++i)
          for (int v = 0; v < kWide; ++v) vst1q_s32(sums + i * kPanel + half * 16 + v * 4, c[i][v]);
      }
      for (int i = 0; i < kRows && row + i < rows; ++i) done(row + i, sums + i * kPanel);
    }
  }

 private:
  template <int kLane>
  static INLINED void step(int32x4_t (&c)[kRows][kWide], const int8x16_t (&x)[kRows], const uint8_t* b) {
    for (int v = 0; v < kWide; ++v) {
      const int8x16_t w = vld1q_s8(reinterpret_cast<const int8_t*>(b) + kLane * 64 + v * 16);
      for (int i = 0; i < kRows; ++i) c[i][v] = vdotq_laneq_s32(c[i][v], w, x[i], kLane);
    }
  }

  // 128 times the sum of the weights of each of 16 columns.
  static INLINED void column_sums(const uint8_t* b, int blocks, int32_t* out) {
    int32x4_t sum[kWide];
    for (int v = 0; v < kWide; ++v) sum[v] = vdupq_n_s32(0);
    for (int k = 0; k < blocks; ++k)
      for (int group = 0; group < 16; ++group)
        for (int v = 0; v < kWide; ++v) {
          const uint8_t* at = b + k * kBlockBytes + group * 64 + v * 16;
          const int8x16_t w = vld1q_s8(reinterpret_cast<const int8_t*>(at));
          sum[v] = vdotq_s32(sum[v], w, vdupq_n_s8(1));
        }
    for (int v = 0; v < kWide; ++v) vst1q_s32(out + v * 4, vshlq_n_s32(sum[v], 7));
  }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
// 8 rows by 8 columns in 16 registers of 2 x 2 sums. USMMLA takes 8 bytes of depth of two rows and of two
// columns: twice the products of a dot product, for two interleaved groups of weights.
struct NeonMatrixProduct {
  static constexpr Number kNumber = Number::kInt8;
  static constexpr int kRows = 8, kPairs = 4;  // kPairs: of rows, and of columns

  template <class Done>
  static INLINED void panel(const uint8_t* a, int rows, int blocks, const uint8_t* b,
                            const uint8_t* /*next*/, bool /*back*/, const Done& done) {
    alignas(16) int32_t sums[kRows * kPanel];
    for (int row = 0; row < rows; row += kRows) {
      const uint8_t* from = a + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
      for (int column = 0; column < kPanel; column += 8) {
        const uint8_t* columns = b + column / 16 * kTileBytes + column % 16 * 4;
        int32x4_t c[kPairs][kPairs];
        for (auto& pair : c)
          for (int j = 0; j < kPairs; ++j) pair[j] = vdupq_n_s32(0);
        for (int k = 0; k < blocks; ++k)
          for (int group = 0; group < 16; group += 2) {
            int8x16_t w[kPairs];
            for (int j = 0; j < kPairs; j += 2) {
              const uint8_t* at = columns + k * kBlockBytes + group * 64 + j * 8;
              const int32x4_t first = vreinterpretq_s32_u8(vld1q_u8(at));
              const int32x4_t second = vreinterpretq_s32_u8(vld1q_u8(at + 64));
              w[j] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
              w[j + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
            }
            for (int i = 0; i < kPairs; ++i) {
              const uint8_t* at = from + k * kTileBytes + i * 128 + group * 4;
              const uint8x16_t x = vcombine_u8(vld1_u8(at), vld1_u8(at + 64));
              for (int j = 0; j < kPairs; ++j) c[i][j] = vusmmlaq_s32(c[i][j], x, w[j]);
            }
          }
        for (int i = 0; i < kPairs; ++i)
          for (int j = 0; j < kPairs; ++j) {
            int32_t* to = sums + 2 * i * kPanel + column + 2 * j;
            vst1_s32(to, vget_low_s32(c[i][j]));
            vst1_s32(to + kPanel, vget_high_s32(c[i][j]));
          }
      }
      for (int i = 0; i < kRows && row + i < rows; ++i) done(row + i, sums + i * kPanel);
    }
  }
};
#endif

}  // namespace
}  // namespace modelsat

#endif
