// Memory for the intermediate results of passes; it grows with the largest pass and is kept.
#ifndef MODELSAT_FORWARD_WORKSPACE_H
#define MODELSAT_FORWARD_WORKSPACE_H

#include "pages.h"
#include "pass.h"

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

namespace modelsat {

class Workspace {
 public:
  Workspace(const Weights& weights, const Path& path, int threads)
      : weights_(weights), path_(path) {
    scratch.resize(static_cast<size_t>(threads));
  }

  // Makes room for a pass, and sets its pointers. blocks: of keys, the inquiry prompt's included;
  // request_blocks: of the longest request alone. Without memory for it, a smaller pass may still have room.
  void reserve(Pass& pass, int64_t rows, int64_t candidates, int64_t blocks, int64_t request_blocks) {
    const Sizes needed{round_up(rows + kPadding, 128), round_up(candidates, 128), round_up(blocks, 16),
                       weights_.shape.prompt_blocks() + round_up(request_blocks, 4), weights_.shape.layers};
    const Sizes larger{std::max(sizes_.rows, needed.rows), std::max(sizes_.candidates, needed.candidates),
                       std::max(sizes_.blocks, needed.blocks), std::max(sizes_.seen, needed.seen),
                       needed.layers};
    if (larger == sizes_) {
      place(pass, sizes_);
      return;
    }
    sizes_ = {};
    const int64_t bytes = place(pass, larger);
    if (!memory_.replace(static_cast<size_t>(bytes))) throw std::bad_alloc();
    place(pass, larger);
    path_.place_prompt(pass);
    sizes_ = larger;
  }

  std::vector<Scratch> scratch;  // of each thread

 private:
  static constexpr int kPadding = 32;  // rows that a kernel may read beyond the last

  // seen: blocks of keys that a row may see. layers: of which keys are kept; the test at start has fewer.
  struct Sizes {
    int64_t rows, candidates, blocks, seen, layers;
    bool operator==(const Sizes&) const = default;
  };

  static int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

  // Sets the pointers of a pass of these sizes, one array after the other; returns the bytes of all. Rows of
  // padding are read and never written, so the memory must be zeroed.
  int64_t place(Pass& pass, const Sizes& n) {
    const Shape& s = weights_.shape;
    const int64_t number = s.number == Number::kInt8 ? 1 : 2;  // bytes of an element of an operand
    int64_t at = 0;
    const auto next = [&](auto*& pointer, int64_t bytes) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
          reinterpret_cast<uintptr_t>(memory_.get()) + static_cast<uintptr_t>(at));
      at += round_up(bytes, 64);
      at += memory_.guard(at);
    };
    const auto operand = [&](Operand& a, int64_t width) {
      next(a.tiles, n.rows * width * number);
      next(a.scale, n.rows * 4);
    };
    next(pass.hidden, n.rows * s.padded_width * 4);
    next(pass.mixed, n.rows * s.mixed_width() * 4);
    operand(pass.normed, s.padded_width);
    operand(pass.mixed_operand, s.mixed_width());
    operand(pass.inner_operand, s.inner);
    next(pass.inner, s.number == Number::kInt8 ? n.rows * s.inner * 4 : 0);
    next(pass.queries, (n.rows * s.heads + kTile) * s.head_width * path_.element);
    next(pass.own_keys, n.candidates * s.kv_heads * s.head_width * 4);
    next(pass.own_values, n.candidates * s.kv_heads * s.head_width * 4);
    for (Scratch& each : scratch) {
      next(each.scores, kTile * n.seen * kSlots * 4);
      next(each.weights, kTile * n.seen * kSlots * path_.element);
    }
    const int64_t cache = int64_t{s.layers} * s.kv_heads * n.blocks * kSlots * s.head_width * path_.element;
    next(pass.keys, cache);
    next(pass.values, cache);
    pass.capacity = n.rows;
    pass.blocks = n.blocks;
    return at;
  }

  const Weights& weights_;
  const Path& path_;
  Sizes sizes_{};  // that the memory has room for, with the inquiry prompt in its blocks
  Pages memory_;
};

}  // namespace modelsat

#endif
