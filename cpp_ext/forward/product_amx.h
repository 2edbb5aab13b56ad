// AMX: blocks of 32 rows by 32 columns, four products of tiles for four loads.
//
// Tiles 0 to 3 are sums (rows x columns), 4 and 5 the two tiles of B, 6 and 7 two of A. A product takes 16
// cycles and 64 bytes of depth, so a block of 32 x 32 x 64 bytes takes at least 64 cycles; the four loads
// hide behind them. The sums of a block are finished by `done` between the products of the next one, and
// the next panel is fetched line by line meanwhile: without either, each would wait for the other.
//
// Cycles of a panel of 66 rows, K = 576: 1,330 by this count. Measured: 2,900 if A and B stay in the caches and
// nothing is done with the sums, 4,300 with SiLU, 7,300 with weights from beyond the second cache; 5,300 after
// steps 1 to 5 of docs/explanation/performance.md. Probably lines that are fetched ahead hold the first cache's
// fill buffers until they come, and tiles of A from the second cache wait for one. So every second panel takes
// the rows backwards and finds half of A in the first cache (step 5).
#ifndef MODELSAT_FORWARD_PRODUCT_AMX_H
#define MODELSAT_FORWARD_PRODUCT_AMX_H

#include "product.h"

namespace modelsat {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Sets the rows of tiles 0, 1 and 6 to `upper`, of 2, 3 and 7 to `lower`; all others have 16.
INLINED void configure_tiles(int upper, int lower) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[6] = static_cast<uint8_t>(upper);
  config.rows[2] = config.rows[3] = config.rows[7] = static_cast<uint8_t>(lower);
  // GCC's intrinsic does not say that it reads the structure, so stores to it would be dropped.
  __asm__ volatile("" ::"m"(config) : "memory");
  _tile_loadconfig(&config);
}

template <Number kWeights>
struct AmxProduct {
  static constexpr Number kNumber = kWeights;

  template <class Done>
  static INLINED void panel(const uint8_t* a, int rows, int blocks, const uint8_t* b,
                            const uint8_t* next, bool back, const Done& done) {
    alignas(64) int32_t sums[2][32 * kPanel];
    const int row_blocks = (rows + 31) / 32, lines = blocks * kBlockBytes / 64;
    const int lines_each = (lines + row_blocks * blocks - 1) / (row_blocks * blocks);
    const int rows_each = (32 + blocks - 1) / blocks;
    int line = 0, row = 0, end = 0;
    const int32_t* finished = sums[0];
    // Between the products of two blocks: fetch some of the next panel, finish some rows.
    const auto meanwhile = [&]() __attribute__((always_inline)) {
      for (int i = 0; i < lines_each && line < lines; ++i, ++line)
        _mm_prefetch(reinterpret_cast<const char*>(next) + 64 * line, _MM_HINT_T1);
      for (int i = 0; i < rows_each && row < end; ++i, ++row, finished += kPanel) done(row, finished);
    };
    for (int i = 0; i < row_blocks; ++i) {
      const int block = back ? row_blocks - 1 - i : i;
      const int left = rows - 32 * block;
      const bool tail = left < 32;
      int32_t* c = sums[i & 1];
      const uint8_t* upper = a + static_cast<int64_t>(block) * 2 * blocks * kTileBytes;
      const uint8_t* lower = upper + static_cast<int64_t>(blocks) * kTileBytes;
      if (tail) configure_tiles(left < 16 ? left : 16, left > 16 ? left - 16 : 1);
      __asm__ volatile("" ::: "memory");  // nor do the intrinsics of tiles say what they read
      _tile_zero(0);
      _tile_zero(1);
      if (left > 16) {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < blocks; ++k) {
          _tile_loadd(4, b + k * kBlockBytes, 64);
          _tile_loadd(6, upper + k * kTileBytes, 64);
          _tile_loadd(5, b + k * kBlockBytes + kTileBytes, 64);
          _tile_loadd(7, lower + k * kTileBytes, 64);
          if constexpr (kNumber == Number::kInt8) {
            _tile_dpbusd(0, 6, 4);
            _tile_dpbusd(1, 6, 5);
            _tile_dpbusd(2, 7, 4);
            _tile_dpbusd(3, 7, 5);
          } else {
            _tile_dpbf16ps(0, 6, 4);
            _tile_dpbf16ps(1, 6, 5);
            _tile_dpbf16ps(2, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
          }
          meanwhile();
        }
        _tile_stored(2, c + 16 * kPanel, 4 * kPanel);
        _tile_stored(3, c + 16 * kPanel + 16, 4 * kPanel);
      } else {
        for (int k = 0; k < blocks; ++k) {
          _tile_loadd(4, b + k * kBlockBytes, 64);
          _tile_loadd(6, upper + k * kTileBytes, 64);
          _tile_loadd(5, b + k * kBlockBytes + kTileBytes, 64);
          if constexpr (kNumber == Number::kInt8) {
            _tile_dpbusd(0, 6, 4);
            _tile_dpbusd(1, 6, 5);
          } else {
            _tile_dpbf16ps(0, 6, 4);
            _tile_dpbf16ps(1, 6, 5);
          }
          meanwhile();
        }
      }
      _tile_stored(0, c, 4 * kPanel);
      _tile_stored(1, c + 16, 4 * kPanel);
      if (tail) configure_tiles(16, 16);
      for (; row < end; ++row, finished += kPanel) done(row, finished);
      row = 32 * block;
      end = row + (tail ? left : 32);
      finished = c;
    }
    for (; row < end; ++row, finished += kPanel) done(row, finished);
  }
};

}  // namespace
}  // namespace modelsat

#endif
