// Attention of up to 16 rows of one request with one head, under the mask of a tree: the inquiry prompt is
// shared by all requests, a token sees the tokens up to itself, and a candidate all tokens and itself.
//
// A candidate's own key and value are no part of the blocks: its score is a dot product, its value is
// added at the end. So the work for a candidate does not grow with the number of candidates.
//
// A policy (FloatAttention below, AmxAttention in attention_amx.h) has Element, the type in which queries,
// keys and values are kept, put_query(), put_key() and put_value(), which lay them out, and
//
//   scores(q, keys, H, s, ld)     16 queries (16, H) and a block of 32 keys: s (16, 32), rows ld apart
//   mix(w, ld, parts, H, o)       o (16, H) = weights (16, keys) times values, see Part
#ifndef MODELSAT_FORWARD_ATTENTION_H
#define MODELSAT_FORWARD_ATTENTION_H

#include "pass.h"
#include "vec.h"

namespace modelsat {
namespace {

constexpr int kMaxHeadWidth = 512;

// Consecutive blocks of keys and values: those of the inquiry prompt, or those of a request.
template <class Element>
struct Part {
  const Element *keys, *values;
  int blocks;
  int seen;  // keys that the last row sees; the weights of those after them are zeros
};

template <class Element>
INLINED Floats widen(const Element* p) {
  if constexpr (sizeof(Element) == 4) {
    return load(p);
  } else {
    return from_bf16(p);
  }
}

// The largest of `valid` scores, which need not be a multiple of a vector.
INLINED Floats largest_scores(Floats most, const float* scores, int valid) {
  for (int i = 0; i < valid; i += kLanes) {
    Floats x = load(scores + i);
    if (i + kLanes > valid) x = lane_numbers() < valid - i ? x : most;
    most = larger(most, x);
  }
  return most;
}

// Weights e^(score - most) of `valid` scores and zeros up to `end`; returns their sum by lanes.
template <class Attention>
INLINED Floats exponentials(const float* scores, int valid, int end, Floats most,
                            typename Attention::Element* weights) {
  Floats sum = {};
  for (int i = 0; i < end; i += kLanes) {
    Floats e = exponential(load(scores + i) - most);
    if (i + kLanes > valid) e = lane_numbers() < valid - i ? e : Floats{};
    sum += e;
    Attention::put_query(weights + i, e);
  }
  return sum;
}

template <class Attention>
INLINED void attend(const Pass& p, int layer, const Tile& tile, int head, const Scratch& scratch) {
  using Element = typename Attention::Element;
  const Shape& s = p.weights->shape;
  const int width = s.head_width, kv_head = head / (s.heads / s.kv_heads);
  const auto* queries = reinterpret_cast<const Element*>(p.queries) +
                        (head * p.capacity + tile.row) * width;
  Part<Element> parts[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t from = block_offset(p, sizeof(Element), layer, kv_head, i ? tile.key_block : 0);
    parts[i] = {reinterpret_cast<const Element*>(p.keys + from),
                reinterpret_cast<const Element*>(p.values + from),
                i ? (tile.tokens + kSlots - 1) / kSlots : s.prompt_blocks(),
                i ? tile.tokens : s.prompt};
  }
  const int first = parts[0].blocks * kSlots, ld = first + parts[1].blocks * kSlots;
  float* const scores = scratch.scores;
  auto* const weights = reinterpret_cast<Element*>(scratch.weights);
  for (int i = 0, at = 0; i < 2; ++i)
    for (int block = 0; block < parts[i].blocks; ++block, at += kSlots)
      Attention::scores(queries, parts[i].keys + static_cast<int64_t>(block) * kSlots * width, width,
                        scores + at, ld);

  const int64_t own = (int64_t{tile.row} * s.kv_heads + kv_head) * width;  // of candidates
  float own_weight[kTile] = {}, norm[kTile];
  for (int r = 0; r < tile.rows; ++r) {
    const float* row = scores + r * ld;
    const int visible = tile.candidates ? tile.tokens : tile.tokens - (tile.rows - 1 - r);
    Floats most = largest_scores(broadcast(-3e38f), row, s.prompt);
    most = largest_scores(most, row + first, visible);
    float own_score = -3e38f;
    if (tile.candidates) {
      const float* key = p.own_keys + own + int64_t{r} * s.kv_heads * width;
      Floats dot = {};
      for (int i = 0; i < width; i += kLanes) dot += widen(queries + r * width + i) * load(key + i);
      own_score = total(dot);
    }
    const float top = largest(larger(most, broadcast(own_score)));
    Floats sum = exponentials<Attention>(row, s.prompt, first, broadcast(top), weights + r * ld);
    sum += exponentials<Attention>(row + first, visible, ld - first, broadcast(top),
                                   weights + r * ld + first);
    float all = total(sum);
    if (tile.candidates) {
      own_weight[r] = exponential(broadcast(own_score - top))[0];
      all += own_weight[r];
    }
    norm[r] = 1 / all;
  }

  alignas(64) float mixed[kTile * kMaxHeadWidth];
  Attention::mix(weights, ld, parts, width, mixed);
  const int ld_out = s.mixed_width();
  for (int r = 0; r < tile.rows; ++r) {
    float* out = p.mixed + int64_t{tile.row + r} * ld_out + head * width;
    const float* value = p.own_values + own + int64_t{r} * s.kv_heads * width;
    for (int i = 0; i < width; i += kLanes) {
      Floats x = load(mixed + r * width + i);
      if (tile.candidates) x += load(value + i) * own_weight[r];
      store(out + i, x * norm[r]);
    }
  }
}

// In floats, for CPUs without AMX. Keys: (2 tiles, H, 16 keys) in a block. Values: (32 slots, H). A product of
// 8 x 32 sums needs 10 loads for 16 multiplications, and values of keys that no row sees are not read (step 6 of
// docs/explanation/performance.md): 1.3 of 10 ms at 130 rows with one thread and AVX-512.
struct FloatAttention {
  using Element = float;

  static INLINED void put_query(float* to, Floats x) { store(to, x); }
  static INLINED void put_key(float* block, int slot, int dim, int width, Floats x) {
    float* to = block + (slot / 16 * width + dim) * 16 + slot % 16;
    for (int i = 0; i < kLanes; ++i) to[i * 16] = x[i];
  }
  static INLINED void put_value(float* block, int slot, int dim, int width, Floats x) {
    store(block + slot * width + dim, x);
  }

  // c (16, columns) [+]= a (16, depth) b (depth, columns); columns is a multiple of 32. Rows of b are ldb
  // apart, and every 16 columns are `across` apart. Sums of 8 x 32 (AVX-512) or 4 x 16 stay in registers.
  template <bool kAdd>
  static INLINED void product(const float* a, int lda, const float* b, int ldb, int64_t across, float* c,
                              int ldc, int depth, int columns) {
    constexpr int kRows = kLanes == 16 ? 8 : 4, kWide = kLanes == 4 ? 4 : 2;
    for (int row = 0; row < kTile; row += kRows)
      for (int column = 0; column < columns; column += kWide * kLanes) {
        float* to = c + row * ldc + column;
        const float* from[kWide];
        for (int v = 0; v < kWide; ++v) {
          const int at = column + v * kLanes;
          from[v] = b + at / 16 * across + at % 16;
        }
        Floats sum[kRows][kWide] = {};
        if constexpr (kAdd)
          for (int i = 0; i < kRows; ++i)
            for (int v = 0; v < kWide; ++v) sum[i][v] = load(to + i * ldc + v * kLanes);
        for (int d = 0; d < depth; ++d) {
          Floats x[kWide];
          for (int v = 0; v < kWide; ++v) x[v] = load(from[v] + int64_t{d} * ldb);
#pragma GCC unroll 8
          for (int i = 0; i < kRows; ++i)
            for (int v = 0; v < kWide; ++v) sum[i][v] += x[v] * a[(row + i) * lda + d];
        }
        for (int i = 0; i < kRows; ++i)
          for (int v = 0; v < kWide; ++v) store(to + i * ldc + v * kLanes, sum[i][v]);
      }
  }

  static INLINED void scores(const float* q, const float* keys, int width, float* s, int ld) {
    product<false>(q, width, keys, 16, width * 16, s, ld, width, kSlots);
  }
  static INLINED void mix(const float* w, int ld, const Part<float>* parts, int width, float* o) {
    product<false>(w, ld, parts[0].values, width, 16, o, width, parts[0].seen, width);
    product<true>(w + parts[0].blocks * kSlots, ld, parts[1].values, width, 16, o, width, parts[1].seen,
                  width);
  }
};

}  // namespace
}  // namespace modelsat

#endif
