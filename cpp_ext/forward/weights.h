// The weights file: a backbone's matrices, packed once in the order in which every instruction set reads
// them.
//
// Numbers are little-endian, sections are aligned to 64 bytes and follow each other in this order:
//
//   header           see weights.cc
//   table            (vocabulary, width) int8 with (vocabulary) float scales, or bf16
//   prompt           (prompt) int32 tokens of the inquiry prompt
//   cosine, sine     (positions, head_width / 2) float
//   for each layer
//     gain           (width) float of the norm before attention
//     qkv            matrix: queries, scaled by H^-1/2, then keys, then values
//     out            matrix
//     gain           (width) float of the norm before the MLP
//     up             matrix: gate and up
//     down           matrix
//     keys, values   (kv_heads, prompt, head_width) float of the inquiry prompt
//
// A matrix of N columns (outputs) and K inputs is N / 32 panels. A panel is a sequence of blocks of 2 KB:
// two tiles of 16 columns, each (16 groups of inputs, 16 columns, inputs of a group), where a group is
// 4 inputs in int8 and 2 in bf16. That is the B operand of AMX, and also what VPDPBUSD, VPDPBF16PS and
// SDOT read. int8 matrices are followed by (N) float scales and (N) int32 sums of each column times 128.
// In int8, qkv, up and down are multiplied by the inverse of what mixes their inputs (mix_row of norm.h).
//
// Columns are ordered so that what belongs together is in one panel: columns i and i + H/2 of a head,
// which rotary embedding mixes (16 and 16 of them), and gate and up of 16 inner units. All sizes are
// padded with zeros: the kernels know no remainders.
#ifndef MODELSAT_FORWARD_WEIGHTS_H
#define MODELSAT_FORWARD_WEIGHTS_H

#include "pages.h"

#include <cstddef>
#include <cstdint>

namespace modelsat {

enum class Number : uint32_t { kInt8 = 0, kBf16 = 1 };

constexpr int kPanel = 32;         // columns of a panel
constexpr int kTileBytes = 1024;   // 16 rows of 64 bytes
constexpr int kBlockBytes = 2048;  // of a panel: two tiles
constexpr int kSlots = 32;         // keys of a block

struct Shape {
  Number number;
  int width;         // D, of the residual stream
  int padded_width;  // a multiple of 64
  int layers, heads, kv_heads;
  int head_width;  // H, padded to a multiple of 32
  int inner;       // F, of the MLP, padded to a multiple of 64
  int prompt;      // P, tokens of the inquiry prompt
  int positions, vocabulary;
  float eps;
  // int8 only: runs of 16 values of a row that are mixed (mix_row of norm.h) before `qkv` and `up`, and
  // before `down`; 1 for none.
  int norm_mix, inner_mix;

  int mixed_width() const { return (heads * head_width + 63) / 64 * 64; }
  int qkv_columns() const { return (heads + 2 * kv_heads) * head_width; }
  int block_inputs() const { return number == Number::kInt8 ? 64 : 32; }
  int prompt_blocks() const { return (prompt + kSlots - 1) / kSlots; }
};

struct Matrix {
  int columns, inputs;
  const uint8_t* panels;
  const float* scale;   // int8 only
  const int32_t* zero;  // int8 only: 128 times the sum of each column
};

struct Layer {
  const float *attention_gain, *mlp_gain;
  Matrix qkv, out, up, down;
  const float *keys, *values;
};

// An open file. layers: of shape.layers.
class Weights {
 public:
  Weights() = default;
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Returns a code of forward.h. share: use the mapped file, which all processes share, and which must
  // not be written or truncated meanwhile: a read beyond its end would end the process. Otherwise it is read
  // into huge pages.
  int open(const char* file, bool share);

  Shape shape{};
  const int8_t* table_int8 = nullptr;
  const float* table_scale = nullptr;
  const uint16_t* table_bf16 = nullptr;
  const int32_t* prompt = nullptr;
  const float *cosine = nullptr, *sine = nullptr;
  Layer* layers = nullptr;

 private:
  // The file's contents; null if they cannot be had in this way.
  const uint8_t* read_all(int fd);
  const uint8_t* map(int fd);

  const uint8_t* mapped_ = nullptr;
  size_t size_ = 0;
  Pages copy_;
};

}  // namespace modelsat

#endif
