// What this CPU and the operating system allow (cpu.h), from CPUID or from Linux's auxiliary vector:
// compilers differ in the names that __builtin_cpu_supports knows.

#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace modelsat {

#if defined(__x86_64__)
namespace {

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf() = default;
  Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool bit(unsigned word, int index) { return word >> index & 1; }

// Whether the operating system saves these registers at a switch of threads.
bool saves(uint64_t state) {
  if (!bit(Leaf(1, 0).c, 27)) return false;  // OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t{high} << 32 | low) & state) == state;
}

constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;

// Leaf 7, subleaf 1. Without the check, some hypervisors would answer with subleaf 0.
Leaf extended() { return Leaf(7, 0).a >= 1 ? Leaf(7, 1) : Leaf(); }

bool has_avx512() {  // F, DQ, BW, VL
  const unsigned b = Leaf(7, 0).b;
  return has_avx2() && saves(kZmm) && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
}

// Linux gives a process the tiles' 8 KB of state only if it asks, and may refuse (seccomp, old kernels).
bool granted_tiles() {
  constexpr long kArchReqXcompPerm = 0x1023, kXtileData = 18;
  static const bool granted =
      saves(kTiles) && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXtileData) == 0;
  return granted;
}

// Both paths are compiled with AVX-512 VNNI and bf16 too, and attention is in bf16 tiles: a hypervisor may
// hide any of them.
bool has_amx() {
  const unsigned d = Leaf(7, 0).d;
  return has_avx512_vnni() && has_avx512_bf16() && bit(d, 24) && bit(d, 22) && granted_tiles();
}

}  // namespace

bool has_avx2() {
  const unsigned c = Leaf(1, 0).c;
  return saves(kYmm) && bit(c, 12) && bit(c, 28) && bit(c, 29) && bit(Leaf(7, 0).b, 5);  // FMA, AVX, F16C
}
bool has_avx2_vnni() { return has_avx2() && bit(extended().a, 4); }
bool has_avx512_vnni() { return has_avx512() && bit(Leaf(7, 0).c, 11); }
bool has_avx512_bf16() { return has_avx512() && bit(extended().a, 5); }
bool has_amx_int8() { return bit(Leaf(7, 0).d, 25) && has_amx(); }
bool has_amx_bf16() { return has_amx(); }
#else
bool has_avx2() { return false; }
bool has_avx2_vnni() { return false; }
bool has_avx512_vnni() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx_int8() { return false; }
bool has_amx_bf16() { return false; }
#endif

#if defined(__aarch64__) && defined(__linux__)
bool has_neon_i8mm() { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
bool has_neon_dot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
#else
bool has_neon_i8mm() { return false; }
bool has_neon_dot() { return false; }
#endif

}  // namespace modelsat
