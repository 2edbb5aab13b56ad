// Rows of floats into left operands of products: RMS norm and quantization in one pass over memory.
#ifndef MODELSAT_FORWARD_NORM_H
#define MODELSAT_FORWARD_NORM_H

#include "pass.h"
#include "vec.h"

namespace modelsat {
namespace {

constexpr float kLeastLargest = 1e-9f;  // a row of zeros has no scale

INLINED uint8_t* operand_row(const Operand& a, int row, int blocks) {
  return a.tiles + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
}

// Stores values (n) as a row of `a`: bytes around 128 over the row's largest magnitude, or bf16.
template <Number kNumber>
INLINED void put_row(const Operand& a, int row, const float* values, int n, float largest_value) {
  if constexpr (kNumber == Number::kBf16) {
    uint8_t* to = operand_row(a, row, n / 32);
    for (int block = 0; block < n / 32; ++block)
      for (int i = 0; i < 32; i += kLanes)
        *reinterpret_cast<Halves*>(to + block * kTileBytes + 2 * i) =
            to_bf16(load(values + block * 32 + i));
  } else {
    if (!(largest_value > kLeastLargest)) largest_value = kLeastLargest;
    a.scale[row] = largest_value / 127;
    const Floats factor = broadcast(127 / largest_value);
    uint8_t* to = operand_row(a, row, n / 64);
    for (int block = 0; block < n / 64; ++block)
      for (int i = 0; i < 64; i += kLanes) {
        const Floats x = load(values + block * 64 + i) * factor + 12582912.0f;  // see exponential()
        const Ints rounded = reinterpret_cast<Ints>(x) - (0x4b400000 - 128);
        *reinterpret_cast<Bytes*>(to + block * kTileBytes + i) =
            __builtin_convertvector(rounded, Bytes);
      }
  }
}

// Quantizes values (n), a multiple of 64.
template <Number kNumber>
INLINED void quantize_row(const Operand& a, int row, const float* values, int n) {
  Floats most[4] = {};
  if constexpr (kNumber == Number::kInt8)
    for (int i = 0; i < n; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j)
        most[j] = larger(most[j], magnitude(load(values + i + j * kLanes)));
  put_row<kNumber>(a, row, values, n,
                   largest(larger(larger(most[0], most[1]), larger(most[2], most[3]))));
}

// RMSNorm (Zhang & Sennrich, 2019) of x (padded width) with `gain`, quantized. `scratch` holds a row.
template <Number kNumber>
INLINED void norm_row(const Operand& a, int row, const float* x, const float* gain, const Shape& s,
                      float* scratch) {
  Floats squares[4] = {};
  for (int i = 0; i < s.padded_width; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const Floats v = load(x + i + j * kLanes);
      squares[j] += v * v;
    }
  const float square = total((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const Floats factor = broadcast(1 / __builtin_sqrtf(square / static_cast<float>(s.width) + s.eps));
  Floats most[2] = {};
  for (int i = 0; i < s.padded_width; i += 2 * kLanes)
    for (int j = 0; j < 2; ++j) {
      const int at = i + j * kLanes;
      const Floats y = load(x + at) * factor * load(gain + at);
      store(scratch + at, y);
      most[j] = larger(most[j], magnitude(y));
    }
  put_row<kNumber>(a, row, scratch, s.padded_width, largest(larger(most[0], most[1])));
}

// The residual stream's first value: a candidate's embedding (null: zero), or a token's row of the table.
INLINED void embed_row(const Pass& p, int row, float* hidden) {
  const Weights& w = *p.weights;
  const Shape& s = w.shape;
  if (row < p.candidates) {
    const float* from = p.embedding[row];
    const auto bytes = static_cast<size_t>(s.width) * sizeof(float);
    std::memset(hidden, 0, static_cast<size_t>(s.padded_width) * sizeof(float));
    if (from) std::memcpy(hidden, from, bytes);
    return;
  }
  const int64_t token = p.token[row - p.candidates], at = token * s.padded_width;
  if (w.table_bf16) {
    for (int i = 0; i < s.padded_width; i += kLanes)
      store(hidden + i, from_bf16(w.table_bf16 + at + i));
  } else {
    const Floats scale = broadcast(w.table_scale[token]);
    for (int i = 0; i < s.padded_width; i += kLanes)
      store(hidden + i, from_int8(w.table_int8 + at + i) * scale);
  }
}

}  // namespace
}  // namespace modelsat

#endif
