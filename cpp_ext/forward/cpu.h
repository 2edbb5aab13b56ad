// What this CPU and the operating system allow.
#ifndef MODELSAT_FORWARD_CPU_H
#define MODELSAT_FORWARD_CPU_H

namespace modelsat {

bool has_amx_int8();  // asks the kernel for the tiles' state, once for the process
bool has_amx_bf16();
bool has_avx512_vnni();
bool has_avx512_bf16();
bool has_avx2_vnni();
bool has_avx2();
bool has_neon_i8mm();
bool has_neon_dot();

}  // namespace modelsat

#endif
