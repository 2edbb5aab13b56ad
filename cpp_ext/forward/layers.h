// The steps of a pass, for one product policy and one attention policy.
//
// A layer of many rows is cut in one of two ways:
//
// - Shared: all threads work on all rows and share the columns of each matrix, so that a thread reads its
//   share of the weights once. Nine steps a layer, and rows cross between cores at every one.
// - Owned: each thread has rows of its own and reads all weights. Two steps a layer, because only keys and
//   values cross between cores. Better where products are fast along with that traffic (Path::own_rows).
#ifndef MODELSAT_FORWARD_LAYERS_H
#define MODELSAT_FORWARD_LAYERS_H

#include "attention.h"
#include "product.h"

namespace modelsat {
namespace {

template <class Product, class Attention>
class Layers {
 public:
  static int units(const Pass& p, const Step& step) {
    const Shape& s = p.weights->shape;
    const bool last = step.layer == s.layers - 1;
    const int rows = last ? p.candidates : p.rows;
    switch (step.kind) {
      case Kind::kNormAttention: return chunks(p.rows);
      case Kind::kQkv: return s.qkv_columns() / kPanel;
      case Kind::kAttend: return (last ? p.candidate_tiles : p.all_tiles) * s.heads;
      case Kind::kQuantizeMixed:
      case Kind::kNormMlp:
      case Kind::kQuantizeInner: return chunks(rows);
      case Kind::kOut:
      case Kind::kDown: return s.padded_width / kPanel;
      case Kind::kUp: return 2 * s.inner / kPanel;
      case Kind::kOwnKeys: return p.all_rows.count;
      case Kind::kOwnRest: return (last ? p.candidate_rows : p.all_rows).count;
      case Kind::kProducts: return products_before(s, 4);
    }
    return 0;
  }

  static void unit(const Pass& p, const Step& step, int unit, const Scratch& scratch) {
    const Shape& s = p.weights->shape;
    const int layer = step.layer;
    const bool last = layer == s.layers - 1;
    const int rows = last ? p.candidates : p.rows;
    const int first = unit * kRowChunk;
    switch (step.kind) {
      case Kind::kNormAttention:
        return norm_attention(p, layer, first, least(first + kRowChunk, p.rows));
      case Kind::kQkv: return qkv(p, layer, unit, p.threads, 0, p.rows);
      case Kind::kAttend:  // the tiles of the last tokens see most keys, and come first
        return attend<Attention>(p, layer, p.tiles[units(p, step) / s.heads - 1 - unit / s.heads],
                                 unit % s.heads, scratch);
      case Kind::kQuantizeMixed: return quantize_mixed(p, first, least(first + kRowChunk, rows));
      case Kind::kOut: return out(p, layer, unit, p.threads, 0, rows);
      case Kind::kNormMlp: return norm_mlp(p, layer, first, least(first + kRowChunk, rows));
      case Kind::kUp: return up(p, layer, unit, p.threads, 0, rows);
      case Kind::kQuantizeInner: return quantize_inner(p, first, least(first + kRowChunk, rows));
      case Kind::kDown: return down(p, layer, unit, p.threads, 0, rows);
      case Kind::kOwnKeys: return own_keys(p, layer, unit);
      case Kind::kOwnRest: return own_rest(p, layer, unit, scratch);
      case Kind::kProducts: return product_alone(p, layer, unit, rows);
    }
  }

  static void place_prompt(const Pass& p) {
    const Shape& s = p.weights->shape;
    for (int layer = 0; layer < s.layers; ++layer)
      for (int head = 0; head < s.kv_heads; ++head)
        for (int i = 0; i < s.prompt; ++i) {
          const Layer& w = p.weights->layers[layer];
          const int64_t from = (int64_t{head} * s.prompt + i) * s.head_width;
          for (int dim = 0; dim < s.head_width; dim += kLanes) {
            Attention::put_key(block(p, p.keys, layer, head, i), i % kSlots, dim, s.head_width,
                               load(w.keys + from + dim));
            Attention::put_value(block(p, p.values, layer, head, i), i % kSlots, dim, s.head_width,
                                 load(w.values + from + dim));
          }
        }
  }

 private:
  using Element = typename Attention::Element;
  static constexpr Number kNumber = Product::kNumber;
  static constexpr int kHalf = kVectors / 2;  // vectors of 16 columns

  static int least(int a, int b) { return a < b ? a : b; }
  static int chunks(int rows) { return (rows + kRowChunk - 1) / kRowChunk; }

  static INLINED Element* block(const Pass& p, char* base, int layer, int kv_head, int slot) {
    return reinterpret_cast<Element*>(
        base + block_offset(p, sizeof(Element), layer, kv_head, slot / kSlots));
  }

  // The panel that a thread reads after `panel` of m if it takes every stride-th, or else the first of `then`.
  static INLINED const uint8_t* following(const Matrix& m, int panel, int stride, const Matrix& then) {
    const int next = panel + stride;
    return next < m.columns / kPanel ? panel_of(m, next, kNumber) : then.panels;
  }

  static INLINED float* hidden(const Pass& p, int row) {
    return p.hidden + int64_t{row} * p.weights->shape.padded_width;
  }

  // The first 16 inner units of a row; the next 16 are 16 rows of 16 further on, see Pass::inner.
  static INLINED float* inner_of(const Pass& p, int row) {
    return p.inner + int64_t{row / kTile} * kTile * p.weights->shape.inner + row % kTile * 16;
  }

  static void norm_attention(const Pass& p, int layer, int first, int end) {
    for (int row = first; row < end; ++row) {
      if (layer == 0) embed_row(p, row, hidden(p, row));
      norm_row<kNumber>(p.normed, row, hidden(p, row), p.weights->layers[layer].attention_gain,
                        p.weights->shape);
    }
  }

  static void norm_mlp(const Pass& p, int layer, int first, int end) {
    for (int row = first; row < end; ++row)
      norm_row<kNumber>(p.normed, row, hidden(p, row), p.weights->layers[layer].mlp_gain,
                        p.weights->shape);
  }

  // A panel of queries, keys or values. Panels of queries and keys hold dims i and i + H/2, 16 of each, so
  // that rotary embedding (Su et al., 2021) is done on the sums. The last layer needs queries of candidates.
  static void qkv(const Pass& p, int layer, int panel, int stride, int first, int end) {
    const Shape& s = p.weights->shape;
    const Layer& w = p.weights->layers[layer];
    const int width = s.head_width, half = width / 2;
    const int head = panel / (width / kPanel), part = panel % (width / kPanel);
    const uint8_t* next = following(w.qkv, panel, stride, w.out);
    const auto rotate = [&](int row, const Floats* x, auto put) __attribute__((always_inline)) {
      const int dim = 16 * part;
      const int64_t at = int64_t{p.position[row]} * half + dim;
      for (int v = 0; v < kHalf; ++v) {
        const Floats cosine = load(p.weights->cosine + at + v * kLanes);
        const Floats sine = load(p.weights->sine + at + v * kLanes);
        const Floats a = x[v], b = x[v + kHalf];
        put(dim + v * kLanes, a * cosine - b * sine);
        put(dim + half + v * kLanes, b * cosine + a * sine);
      }
    };
    if (head < s.heads) {
      auto* queries = reinterpret_cast<Element*>(p.queries) + head * p.capacity * width;
      const int rows = layer == s.layers - 1 ? least(end, p.candidates) : end;
      multiply<Product>(w.qkv, panel, next, p.normed, first, rows,
                        [&](int row, const Floats* x) __attribute__((always_inline)) {
                          Element* to = queries + int64_t{row} * width;
                          rotate(row, x, [&](int dim, Floats y) __attribute__((always_inline)) {
                            Attention::put_query(to + dim, y);
                          });
                        });
    } else if (head < s.heads + s.kv_heads) {
      const int kv = head - s.heads;
      multiply<Product>(
          w.qkv, panel, next, p.normed, first, end,
          [&](int row, const Floats* x) __attribute__((always_inline)) {
            if (row < p.candidates) {
              float* to = p.own_keys + (int64_t{row} * s.kv_heads + kv) * width;
              rotate(row, x, [&](int dim, Floats y) __attribute__((always_inline)) {
                store(to + dim, y);
              });
            } else {
              const int slot = p.slot[row];
              Element* to = block(p, p.keys, layer, kv, slot);
              rotate(row, x, [&](int dim, Floats y) __attribute__((always_inline)) {
                Attention::put_key(to, slot % kSlots, dim, width, y);
              });
            }
          });
    } else {
      const int kv = head - s.heads - s.kv_heads;
      multiply<Product>(
          w.qkv, panel, next, p.normed, first, end,
          [&](int row, const Floats* x) __attribute__((always_inline)) {
            const int dim = part * kPanel;
            if (row < p.candidates) {
              float* to = p.own_values + (int64_t{row} * s.kv_heads + kv) * width + dim;
              for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, x[v]);
            } else {
              const int slot = p.slot[row];
              Element* to = block(p, p.values, layer, kv, slot);
              for (int v = 0; v < kVectors; ++v)
                Attention::put_value(to, slot % kSlots, dim + v * kLanes, width, x[v]);
            }
          });
    }
  }

  static void quantize_mixed(const Pass& p, int first, int end) {
    const int width = p.weights->shape.mixed_width();
    for (int row = first; row < end; ++row) {
      const float* from = p.mixed + int64_t{row} * width;
      quantize_row<kNumber>(p.mixed_operand, row, width,
                            [&](int i) __attribute__((always_inline)) { return load(from + i); });
    }
  }

  // Adds a product to 32 columns of the residual stream.
  static INLINED void add(const Pass& p, const Matrix& m, int panel, const uint8_t* next,
                          const Operand& a, int first, int end) {
    multiply<Product>(m, panel, next, a, first, end,
                      [&](int row, const Floats* x) __attribute__((always_inline)) {
                        float* to = hidden(p, row) + panel * kPanel;
                        for (int v = 0; v < kVectors; ++v)
                          store(to + v * kLanes, load(to + v * kLanes) + x[v]);
                      });
  }

  static void out(const Pass& p, int layer, int panel, int stride, int first, int end) {
    const Layer& w = p.weights->layers[layer];
    add(p, w.out, panel, following(w.out, panel, stride, w.up), p.mixed_operand, first, end);
  }

  static void down(const Pass& p, int layer, int panel, int stride, int first, int end) {
    const Layer& w = p.weights->layers[layer];
    const bool last = layer == p.weights->shape.layers - 1;
    const Matrix& then = last ? w.down : p.weights->layers[layer + 1].qkv;
    add(p, w.down, panel, following(w.down, panel, stride, then), p.inner_operand, first, end);
  }

  // SiLU(gate) * up of 16 inner units: the panel holds gate and up of each.
  static void up(const Pass& p, int layer, int panel, int stride, int first, int end) {
    const Layer& w = p.weights->layers[layer];
    const int inner = p.weights->shape.inner, at = 16 * panel;
    multiply<Product>(
        w.up, panel, following(w.up, panel, stride, w.down), p.normed, first, end,
        [&](int row, const Floats* x) __attribute__((always_inline)) {
          for (int v = 0; v < kHalf; ++v) {
            const Floats gate = x[v];
            const Floats y = gate * x[v + kHalf] * inverse(1.0f + exponential(-gate));
            const int unit = at + v * kLanes;
            if constexpr (kNumber == Number::kBf16) {
              uint8_t* to = operand_row(p.inner_operand, row, inner / 32);
              *reinterpret_cast<Halves*>(to + unit / 32 * kTileBytes + unit % 32 * 2) = to_bf16(y);
            } else {
              store(inner_of(p, row) + panel * 16 * kTile + v * kLanes, y);
            }
          }
        });
  }

  static void quantize_inner(const Pass& p, int first, int end) {
    if constexpr (kNumber == Number::kInt8) {
      for (int row = first; row < end; ++row) {
        const Shape& s = p.weights->shape;
        const float* from = inner_of(p, row);
        put_mixed_row(p.inner_operand, row, s.inner, s.inner_mix, 1,
                      [&](int i) __attribute__((always_inline)) {
                        return load(from + i / 16 * 16 * kTile + i % 16);
                      });
      }
    }
  }

  static void own_keys(const Pass& p, int layer, int group) {
    const int first = p.all_rows.row[group], end = p.all_rows.row[group + 1];
    norm_attention(p, layer, first, end);
    const int panels = p.weights->shape.qkv_columns() / kPanel;
    for (int panel = 0; panel < panels; ++panel) qkv(p, layer, panel, 1, first, end);
  }

  static void own_rest(const Pass& p, int layer, int group, const Scratch& scratch) {
    const Shape& s = p.weights->shape;
    const Groups& groups = layer == s.layers - 1 ? p.candidate_rows : p.all_rows;
    const int first = groups.row[group], end = groups.row[group + 1];
    for (int tile = groups.tile[group]; tile < groups.tile[group + 1]; ++tile)
      for (int head = 0; head < s.heads; ++head)
        attend<Attention>(p, layer, p.tiles[tile], head, scratch);
    quantize_mixed(p, first, end);
    for (int i = 0; i < s.padded_width / kPanel; ++i) out(p, layer, i, 1, first, end);
    norm_mlp(p, layer, first, end);
    for (int i = 0; i < 2 * s.inner / kPanel; ++i) up(p, layer, i, 1, first, end);
    quantize_inner(p, first, end);
    for (int i = 0; i < s.padded_width / kPanel; ++i) down(p, layer, i, 1, first, end);
  }

  // Panels of the first `count` matrices of a layer.
  static int products_before(const Shape& s, int count) {
    const int panels[] = {s.qkv_columns() / kPanel, s.padded_width / kPanel, 2 * s.inner / kPanel,
                          s.padded_width / kPanel};
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += panels[i];
    return sum;
  }

  // A product of which nothing is done with the result.
  static void product_alone(const Pass& p, int layer, int unit, int rows) {
    const Shape& s = p.weights->shape;
    const Layer& w = p.weights->layers[layer];
    const Matrix* matrices[] = {&w.qkv, &w.out, &w.up, &w.down};
    int i = 0;
    while (unit >= products_before(s, i + 1)) ++i;
    const Matrix& m = *matrices[i];
    const int panel = unit - products_before(s, i);
    const bool all = i == 0 && panel >= s.heads * s.head_width / kPanel;
    const Operand& a = i == 3 ? p.inner_operand : i == 1 ? p.mixed_operand : p.normed;
    Product::panel(a.tiles, all ? p.rows : rows, blocks_of(m, kNumber), panel_of(m, panel, kNumber),
                   following(m, panel, p.threads, i < 3 ? *matrices[i + 1] : m), false,
                   [](int, const int32_t* c) __attribute__((always_inline)) {
                     __asm__ volatile("" ::"r"(c) : "memory");
                   });
  }
};

}  // namespace
}  // namespace modelsat

#endif
