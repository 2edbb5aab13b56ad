// Memory for the intermediate results of passes; it grows with the largest pass and is kept.
#ifndef MODELSAT_FORWARD_WORKSPACE_H
#define MODELSAT_FORWARD_WORKSPACE_H

#include "pass.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace modelsat {

// Zeroed memory in whole cache lines, because rows of padding are read and never written.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }

  // Makes room for `size` elements. What was there is lost if it grows, which it returns.
  bool reserve(int64_t size) {
    if (size <= size_) return false;
    std::free(data_);
    size_ = 0;
    const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
    size_ = size;
    return true;
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

class Workspace {
 public:
  Workspace(const Weights& weights, const Path& path, int threads)
      : weights_(weights), path_(path), threads_(threads) {
    scratch.resize(static_cast<size_t>(threads));
    scores_.resize(scratch.size());
    attention_.resize(scratch.size());
  }

  // Makes room for a pass, and sets its pointers. blocks: of keys, the inquiry prompt's included;
  // request_blocks: of the longest request alone. Without memory for it, a smaller pass may still have room.
  void reserve(Pass& pass, int64_t rows, int64_t candidates, int64_t blocks, int64_t request_blocks) {
    try {
      grow(pass, rows, candidates, blocks, request_blocks);
    } catch (const std::bad_alloc&) {
      rows_ = candidates_ = blocks_ = placed_ = 0;
      throw;
    }
  }

  std::vector<Scratch> scratch;  // of each thread

 private:
  static constexpr int kPadding = 32;  // rows that a kernel may read beyond the last

  void grow(Pass& pass, int64_t rows, int64_t candidates, int64_t blocks, int64_t request_blocks) {
    const Shape& s = weights_.shape;
    const int64_t bytes = s.number == Number::kInt8 ? 1 : 2;  // of an element of an operand
    if (rows + kPadding > rows_) rows_ = (rows + kPadding + 127) / 128 * 128;
    if (candidates > candidates_) candidates_ = (candidates + 127) / 128 * 128;
    hidden_.reserve(rows_ * s.padded_width);
    mixed_.reserve(rows_ * s.mixed_width());
    normed_.reserve(rows_ * s.padded_width * bytes);
    mixed_operand_.reserve(rows_ * s.mixed_width() * bytes);
    inner_operand_.reserve(rows_ * s.inner * bytes);
    normed_scale_.reserve(rows_);
    mixed_scale_.reserve(rows_);
    inner_scale_.reserve(rows_);
    if (s.number == Number::kInt8) inner_.reserve(rows_ * s.inner);
    queries_.reserve((rows_ * s.heads + kTile) * s.head_width * path_.element);
    own_keys_.reserve(candidates_ * s.kv_heads * s.head_width);
    own_values_.reserve(candidates_ * s.kv_heads * s.head_width);
    pass.hidden = hidden_.get();
    pass.mixed = mixed_.get();
    pass.normed = {normed_.get(), normed_scale_.get()};
    pass.mixed_operand = {mixed_operand_.get(), mixed_scale_.get()};
    pass.inner_operand = {inner_operand_.get(), inner_scale_.get()};
    pass.inner = inner_.get();
    pass.queries = queries_.get();
    pass.capacity = rows_;
    pass.own_keys = own_keys_.get();
    pass.own_values = own_values_.get();
    for (size_t i = 0; i < scratch.size(); ++i) {
      const int64_t keys = (s.prompt_blocks() + request_blocks) * kSlots;
      scores_[i].reserve(kTile * keys);
      attention_[i].reserve(kTile * keys * path_.element);
      scratch[i] = {scores_[i].get(), attention_[i].get()};
    }
    if (blocks > blocks_) blocks_ = (blocks + 15) / 16 * 16;
    const int64_t size = int64_t{s.layers} * s.kv_heads * blocks_ * kSlots * s.head_width * path_.element;
    if (keys_.reserve(size)) placed_ = 0;
    if (values_.reserve(size)) placed_ = 0;
    pass.keys = keys_.get();
    pass.values = values_.get();
    pass.blocks = blocks_;
    if (placed_ != blocks_) path_.place_prompt(pass);
    placed_ = blocks_;
  }

  const Weights& weights_;
  const Path& path_;
  const int threads_;
  int64_t rows_ = 0, candidates_ = 0, blocks_ = 0;
  int64_t placed_ = 0;  // `blocks_` when the inquiry prompt was placed, 0 if it has to be again
  Buffer<float> hidden_, mixed_, inner_, own_keys_, own_values_;
  Buffer<float> normed_scale_, mixed_scale_, inner_scale_;
  Buffer<uint8_t> normed_, mixed_operand_, inner_operand_;
  Buffer<char> queries_, keys_, values_;
  std::vector<Buffer<float>> scores_;
  std::vector<Buffer<char>> attention_;
};

}  // namespace modelsat

#endif
