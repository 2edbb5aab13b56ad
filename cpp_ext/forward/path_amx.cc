// Paths for CPUs with AMX: products and attention in tiles.

#include "attention_amx.h"
#include "cpu.h"
#include "layers.h"
#include "product_amx.h"

namespace modelsat {
namespace {

void enter() { configure_tiles(16, 16); }
void leave() { _tile_release(); }

template <Number kNumber>
using AmxLayers = Layers<AmxProduct<kNumber>, AmxAttention>;

template <Number kNumber>
constexpr Path path(const char* name, bool (*available)()) {
  using All = AmxLayers<kNumber>;
  return {name,  kNumber,    available, sizeof(AmxAttention::Element), 32, enter, leave,
          All::units, All::unit, All::place_prompt};
}

}  // namespace

const Path kAmxInt8 = path<Number::kInt8>("amx-int8", has_amx_int8);
const Path kAmxBf16 = path<Number::kBf16>("amx-bf16", has_amx_bf16);

}  // namespace modelsat
