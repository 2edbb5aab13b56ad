// Rows of floats into left operands of products: RMS norm and quantization in one pass over memory.
#ifndef MODELSAT_FORWARD_NORM_H
#define MODELSAT_FORWARD_NORM_H

#include "pass.h"
#include "vec.h"

namespace modelsat {
namespace {

constexpr int kMaxInner = 1 << 17;  // as weights.cc bounds it
constexpr float kLeastLargest = 1e-9f;  // a row of zeros has no scale

INLINED uint8_t* operand_row(const Operand& a, int row, int blocks) {
  return a.tiles + static_cast<int64_t>(row / kTile) * blocks * kTileBytes + row % kTile * 64;
}

// Stores load_at(i) * factor of i in [0, n), a multiple of 64, as a row of `a`: bytes around 128
// over the row's largest magnitude, or bf16. most: the largest magnitude of load_at(i).
template <Number kNumber, class Load>
INLINED void put_row(const Operand& a, int row, int n, float most, float factor, const Load& load_at) {
  if constexpr (kNumber == Number::kBf16) {
    uint8_t* to = operand_row(a, row, n / 32);
    for (int block = 0; block < n / 32; ++block)
      for (int i = 0; i < 32; i += kLanes)
        *reinterpret_cast<Halves*>(to + block * kTileBytes + 2 * i) =
            to_bf16(load_at(block * 32 + i) * factor);
  } else {
    float largest_value = most * factor;
    if (!(largest_value > kLeastLargest)) largest_value = kLeastLargest;
    a.scale[row] = largest_value / 127;
    const Floats steps = broadcast(factor * (127 / largest_value));
    uint8_t* to = operand_row(a, row, n / 64);
    for (int block = 0; block < n / 64; ++block)
      for (int i = 0; i < 64; i += kLanes) {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const Floats x = load_at(block * 64 + i) * steps + 12582912.0f;
        const Ints rounded = reinterpret_cast<Ints>(x) - (0x4b400000 - 128);
        *reinterpret_cast<Bytes*>(to + block * kTileBytes + i) =
            __builtin_convertvector(rounded, Bytes);
      }
  }
}

// Quantizes load_at(i) of i in [0, n).
template <Number kNumber, class Load>
INLINED void quantize_row(const Operand& a, int row, int n, const Load& load_at) {
  Floats most[4] = {};
  if constexpr (kNumber == Number::kInt8)
    for (int i = 0; i < n; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) most[j] = larger(most[j], magnitude(load_at(i + j * kLanes)));
  put_row<kNumber>(a, row, n, largest(larger(larger(most[0], most[1]), larger(most[2], most[3]))), 1,
                   load_at);
}

// Walsh-Hadamard transform of load_at(i) of i in [0, n) into `to`, of every `mix` runs of 16 values: those that
// are 1, 2, ... runs apart are added and subtracted. It spreads a single large value, which would take the
// precision of all others, over `mix` of them (Ashkboos et al., 2024); the file's matrix undoes it. mix: a power
// of 4. Returns the largest magnitude.
template <class Load>
INLINED float mix_row(float* to, int n, int mix, const Load& load_at) {
  Floats most[4] = {};
  const auto stage = [&](int apart, const auto& load_from) __attribute__((always_inline)) {
    for (int block = 0; block < n; block += 4 * apart)
      for (int i = block; i < block + apart; i += kLanes) {
        const Floats a = load_from(i), b = load_from(i + apart);
        const Floats c = load_from(i + 2 * apart), d = load_from(i + 3 * apart);
        const Floats mixed[] = {(a + b) + (c + d), (a - b) + (c - d), (a + b) - (c + d), (a - b) - (c - d)};
        for (int j = 0; j < 4; ++j) {
          store(to + i + j * apart, mixed[j]);
          most[j] = larger(most[j], magnitude(mixed[j]));
        }
      }
  };
  if (mix == 1)
    for (int i = 0; i < n; i += kLanes) {
      store(to + i, load_at(i));
      most[0] = larger(most[0], magnitude(load_at(i)));
    }
  else
    stage(16, load_at);
  for (int apart = 64; apart < 16 * mix; apart *= 4) {
    for (Floats& each : most) each = Floats{};
    stage(apart, [&](int i) __attribute__((always_inline)) { return load(to + i); });
  }
  return largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
}

// mix_row and put_row.
INLINED void put_mixed_row(const Operand& a, int row, int n, int mix, float factor, const auto& load_at) {
  alignas(64) float mixed[kMaxInner];
  const float most = mix_row(mixed, n, mix, load_at);
  put_row<Number::kInt8>(a, row, n, most, factor,
                         [&](int i) __attribute__((always_inline)) { return load(mixed + i); });
}

// RMSNorm (Zhang & Sennrich, 2019) of x (padded width) with `gain`, mixed and quantized.
template <Number kNumber>
INLINED void norm_row(const Operand& a, int row, const float* x, const float* gain, const Shape& s) {
  Floats squares[4] = {};
  for (int i = 0; i < s.padded_width; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const Floats v = load(x + i + j * kLanes);
      squares[j] += v * v;
    }
  const float square = total((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const float factor = 1 / __builtin_sqrtf(square / static_cast<float>(s.width) + s.eps);
  const auto load_at = [&](int i) __attribute__((always_inline)) { return load(x + i) * load(gain + i); };
  if constexpr (kNumber == Number::kInt8)
    put_mixed_row(a, row, s.padded_width, s.norm_mix, factor, load_at);
  else
    put_row<kNumber>(a, row, s.padded_width, 0, factor, load_at);
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
