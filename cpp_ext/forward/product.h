// Products of quantized rows and a packed matrix, one panel of 32 columns at a time.
//
// A product policy (product_*.h) has kNumber and
//
//   panel(a, rows, blocks, b, next, back, done)     C (rows, 32) = A (rows, K) B (K, 32)
//
// a: rows in tiles, `blocks` tiles of 1 KB for each 16 rows. b: the panel, `blocks` blocks of 2 KB. next:
// the panel to fetch meanwhile, as large. back: take the last rows first, which the panel before has left in
// the first cache. done(row, c) is called for each row with its 32 sums (int32, or float with bf16), while
// the sums are in registers or the first cache.
#ifndef MODELSAT_FORWARD_PRODUCT_H
#define MODELSAT_FORWARD_PRODUCT_H

#include "norm.h"

namespace modelsat {
namespace {

constexpr int kVectors = kPanel / kLanes;  // of a panel's row

INLINED int blocks_of(const Matrix& m, Number number) {
  return m.inputs / (number == Number::kInt8 ? 64 : 32);
}

INLINED const uint8_t* panel_of(const Matrix& m, int panel, Number number) {
  return m.panels + static_cast<int64_t>(panel) * blocks_of(m, number) * kBlockBytes;
}

// Rows [first, last) of panel `panel` of m in floats: each(row, x) with x of kVectors. first is a multiple
// of 16. next: the panel that the thread reads after this one.
template <class Product, class Each>
INLINED void multiply(const Matrix& m, int panel, const uint8_t* next, const Operand& a, int first,
                      int last, const Each& each) {
  constexpr Number kNumber = Product::kNumber;
  if (first >= last) return;
  const int blocks = blocks_of(m, kNumber);
  Floats scale[kVectors] = {};
  Ints zero[kVectors] = {};
  if constexpr (kNumber == Number::kInt8)
    for (int v = 0; v < kVectors; ++v) {
      scale[v] = load(m.scale + panel * kPanel + v * kLanes);
      zero[v] = *reinterpret_cast<const Ints*>(m.zero + panel * kPanel + v * kLanes);
    }
  Product::panel(
      operand_row(a, first, blocks), last - first, blocks, panel_of(m, panel, kNumber), next, panel % 2,
      [&](int row, const int32_t* c) __attribute__((always_inline)) {
        Floats x[kVectors];
        for (int v = 0; v < kVectors; ++v)
          if constexpr (kNumber == Number::kInt8) {
            // Activations are stored as x + 128, so each sum holds 128 times the sum of its weights.
            const Ints sum = *reinterpret_cast<const Ints*>(c + v * kLanes) - zero[v];
            x[v] = __builtin_convertvector(sum, Floats) * (scale[v] * a.scale[first + row]);
          } else {
            x[v] = load(reinterpret_cast<const float*>(c) + v * kLanes);
          }
        each(first + row, x);
      });
}

}  // namespace
}  // namespace modelsat

#endif
