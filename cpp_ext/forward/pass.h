// One pass: the rows that are computed together, and where their intermediate results are.
//
// Rows are the candidates of all requests (C of them, each request's null candidate first), then the
// tokens of all requests, without padding. Candidates come first because the last layer computes queries,
// attention and MLP for them alone: its rows are 0 to C. A request with more candidates than a pass holds
// takes several; the tokens, whose keys and values are kept for every layer, are in the first.
#ifndef MODELSAT_FORWARD_PASS_H
#define MODELSAT_FORWARD_PASS_H

#include "weights.h"

#include <cstdint>

namespace modelsat {

constexpr int kTile = 16;      // rows of a tile
constexpr int kRowChunk = 4;   // rows of a unit of element-wise work
constexpr int kMaxGroups = 15;  // of rows
constexpr int kNeverOwnRows = 1 << 30;

// Up to 16 rows of one request, all candidates or all tokens.
struct Tile {
  int row, rows;
  int key_block;  // of the request's first token
  int tokens;     // of the request, those that the last row sees; a token's row sees one less than the next
  bool candidates;
};

// Rows cut into groups, at least one for each thread: group g has rows row[g] to row[g + 1], and these
// tiles. No groups if threads are to share columns.
struct Groups {
  int count;
  int row[kMaxGroups + 1], tile[kMaxGroups + 1];
};

// Left operands of products: 16 rows by 64 bytes a tile, tiles of a row of tiles contiguous. int8: value
// * 127 / largest of the row + 128, with the row's scale largest / 127.
struct Operand {
  uint8_t* tiles;
  float* scale;
};

struct Pass {
  const Weights* weights;
  int rows, candidates;
  int threads;

  // For each row: its position, and what it is. slot: of a token, its place among keys and values.
  const int32_t* position;
  const int32_t* slot;
  const int64_t* token;           // of rows from `candidates` on
  const float* const* embedding;  // of candidates; null is zero

  const Tile* tiles;    // of candidates, then of tokens
  int candidate_tiles, all_tiles;
  Groups all_rows, candidate_rows;

  float* hidden;      // (rows, padded width)
  Operand normed;     // (rows, padded width)
  Operand mixed_operand;  // (rows, mixed width)
  Operand inner_operand;  // (rows, inner)
  float* mixed;       // (rows, mixed width)
  // (tiles of rows, inner / 16, 16 rows, 16), int8 only. A panel's results are stored to consecutive lines;
  // with rows of `inner` floats each line would be in another page (step 3).
  float* inner;
  char* queries;      // (heads, capacity, head width) elements of the path
  int64_t capacity;   // rows of `queries`
  float *own_keys, *own_values;  // (candidates, kv heads, head width)
  // Blocks of 32 slots, (layers, kv heads, blocks, 32, head width) elements in the path's order. Blocks of
  // the inquiry prompt come first, and each request begins a block.
  char *keys, *values;
  int64_t blocks;
};

// Keys or values of a head of a layer, in bytes from the start.
inline int64_t block_offset(const Pass& p, int element, int layer, int kv_head, int64_t block) {
  const Shape& s = p.weights->shape;
  const int64_t index = (int64_t{layer} * s.kv_heads + kv_head) * p.blocks + block;
  return index * kSlots * s.head_width * element;
}

// Of one thread. scores: (16, keys) floats. weights: as many elements of the path.
struct Scratch {
  float* scores;
  char* weights;
};

// A step of a pass; what its units are is said in layers.h.
enum class Kind {
  kNormAttention, kQkv, kAttend, kQuantizeMixed, kOut, kNormMlp, kUp, kQuantizeInner, kDown,
  kOwnKeys, kOwnRest, kProducts,
};

struct Step {
  Kind kind;
  int layer;
};

// The code for one instruction set and number format.
struct Path {
  const char* name;
  Number number;
  bool (*available)();
  int element;     // bytes of an element of queries, keys and values
  int own_rows;    // rows for each thread from which it keeps its own; see layers.h
  void (*enter)();
  void (*leave)();
  int (*units)(const Pass&, const Step&);
  void (*unit)(const Pass&, const Step&, int unit, const Scratch&);  // int: of units()
  void (*place_prompt)(const Pass&);  // puts the inquiry prompt's keys and values into their blocks
};

// Every path that this build has, best first.
extern const Path kAmxInt8, kAmxBf16, kAvx512Vnni, kAvx512Bf16, kAvx2Vnni, kAvx2;
extern const Path kNeonI8mm, kNeonDot;

}  // namespace modelsat

#endif
