// Attention in bf16 tiles (attention.h). Keys: (2 tiles of 16 keys, H / 2 pairs, 16 keys, 2) in a block.
// Values: (H / 16, 16 pairs of slots, 16, 2).
#ifndef MODELSAT_FORWARD_ATTENTION_AMX_H
#define MODELSAT_FORWARD_ATTENTION_AMX_H

#include "attention.h"

namespace modelsat {
namespace {

struct AmxAttention {
  using Element = uint16_t;

  static INLINED void put_query(Element* to, Floats x) {
    *reinterpret_cast<Halves*>(to) = to_bf16(x);
  }
  static INLINED void put_key(Element* block, int slot, int dim, int width, Floats x) {
    alignas(64) uint32_t pairs[kLanes / 2];
    const Halves halves = to_bf16(x);
    std::memcpy(pairs, &halves, sizeof pairs);
    Element* to = block + (slot / 16 * width / 2 + dim / 2) * 32 + slot % 16 * 2;
    for (int i = 0; i < kLanes / 2; ++i) std::memcpy(to + i * 32, pairs + i, sizeof *pairs);
  }
  static INLINED void put_value(Element* block, int slot, int dim, int /*width*/, Floats x) {
    const Halves halves = to_bf16(x);
    Element* to = block + dim / 16 * 512 + slot / 2 * 32 + dim % 16 * 2 + slot % 2;
    for (int i = 0; i < kLanes; ++i) to[i * 2] = halves[i];
  }

  static INLINED void scores(const Element* q, const Element* keys, int width, float* s, int ld) {
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    for (int i = 0; i < width; i += 32) {
      _tile_loadd(6, q + i, 2 * width);
      _tile_loadd(4, keys + i * 16, 64);
      _tile_dpbf16ps(0, 6, 4);
      _tile_loadd(5, keys + (width + i) * 16, 64);
      _tile_dpbf16ps(1, 6, 5);
    }
    _tile_stored(0, s, 4 * ld);
    _tile_stored(1, s + 16, 4 * ld);
  }

  // 32 of the H dims at a time: 64 would take four sums, and as long.
  static INLINED void mix(const Element* w, int ld, const Part<Element>* parts, int width, float* o) {
    __asm__ volatile("" ::: "memory");
    for (int dim = 0; dim < width; dim += 32) {
      _tile_zero(0);
      _tile_zero(1);
      for (int i = 0, at = 0; i < 2; ++i)
        for (int block = 0; block < parts[i].blocks; ++block, at += kSlots) {
          const Element* v = parts[i].values + static_cast<int64_t>(block) * kSlots * width + dim * 32;
          _tile_loadd(6, w + at, 2 * ld);
          _tile_loadd(4, v, 64);
          _tile_dpbf16ps(0, 6, 4);
          _tile_loadd(5, v + 512, 64);
          _tile_dpbf16ps(1, 6, 5);
        }
      _tile_stored(0, o + dim, 4 * width);
      _tile_stored(1, o + dim + 16, 4 * width);
    }
  }
};

}  // namespace
}  // namespace modelsat

#endif
