// The fused scoring kernel on CPUs (score.h): one template over a policy per instruction set, which
// is chosen at run time.

#include "score.h"
#include "sizes.h"

#include <atomic>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f")))
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#define INLINED inline __attribute__((always_inline))

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };
struct Sums { double dot, squares; };

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline float widen(Bfloat value) { return from_bits(uint32_t{value.bits} << 16); }
inline float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t rest = (value.bits & 0x7fffu) << 13;
  if (rest >= 0x7c00u << 13) return from_bits(sign | 0x7f800000u | rest);  // infinity and NaN
  return from_bits(sign | rest) * 0x1p112f;  // rebias 15 to 127; right for subnormals too
}

template <class Sum, class T>
INLINED void step_one(Sum& dot, Sum& square, const T* h, const float* w) {
  const Sum x = widen(*h);
  dot += x * *w;
  square += x * x;
}

// Used for the rare row whose sums overflow fp32 or that holds NaN.
template <class T>
__attribute__((noinline, cold)) Sums add_up_wide(const T* h, const float* w, int64_t n) {
  Sums sums{0, 0};
  for (int64_t i = 0; i < n; ++i) step_one(sums.dot, sums.squares, h + i, w + i);
  return sums;
}

// A policy has Vec, which holds kLanes floats; step(), which adds one Vec of products; and rows(),
// which is compiled for its instruction set. The shared code is compiled for the baseline and becomes
// AVX code when rows() inlines it. step() takes vectors by reference, because the baseline has no ABI
// for passing them by value.

constexpr int kBlock = 4;  // rows at a time, to hide the latency of FMA and share each load of w

template <int kCount>
INLINED float tree_sum(float* values) {
  if constexpr (kCount > 1) {
    for (int i = 0; i < kCount / 2; ++i) values[i] += values[i + kCount / 2];
    return tree_sum<kCount / 2>(values);
  }
  return values[0];
}

template <class Isa>
INLINED float total(const typename Isa::Vec& sum) {
  float values[Isa::kLanes];
  std::memcpy(values, &sum, sizeof values);
  return tree_sum<Isa::kLanes>(values);
}

// The sums of a row are added in the same order for every kRows, so that a probability does not
// depend on the other candidates.
template <class Isa, class T, int kRows>
INLINED void add_up(const T* h, const float* w, int64_t n, Sums* sums) {
  typename Isa::Vec dots[kRows] = {}, squares[kRows] = {};
  int64_t i = 0;
  for (; i + Isa::kLanes <= n; i += Isa::kLanes)
    for (int r = 0; r < kRows; ++r) Isa::step(dots[r], squares[r], h + r * n + i, w + i);
  for (int r = 0; r < kRows; ++r) {
    float dot = total<Isa>(dots[r]);
    float square = total<Isa>(squares[r]);
    for (int64_t k = i; k < n; ++k) step_one(dot, square, h + r * n + k, w + k);
    sums[r] = {dot, square};
    if (!std::isfinite(dot) || !std::isfinite(square)) sums[r] = add_up_wide(h + r * n, w, n);
  }
}

template <class Isa, class T>
INLINED void add_up_all(const void* hidden, const float* w, int64_t n, int count, Sums* sums) {
  const T* h = static_cast<const T*>(hidden);
  int r = 0;
  for (; r + kBlock <= count; r += kBlock) add_up<Isa, T, kBlock>(h + r * n, w, n, sums + r);
  for (; r < count; ++r) add_up<Isa, T, 1>(h + r * n, w, n, sums + r);
}

struct Scalar {
  static constexpr int kLanes = 8;
  struct Vec { float lane[kLanes]; };
  template <class T>
  static void step(Vec& dot, Vec& square, const T* h, const float* w) {
    for (int k = 0; k < kLanes; ++k) step_one(dot.lane[k], square.lane[k], h + k, w + k);
  }
  template <class T>
  static void rows(const void* h, const float* w, int64_t n, int count, Sums* sums) {
    add_up_all<Scalar, T>(h, w, n, count, sums);
  }
};

#if defined(__x86_64__)
struct Avx2 {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  AVX2 static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  AVX2 static Vec load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  AVX2 static Vec load(const Bfloat* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  template <class T>
  AVX2 static void step(Vec& dot, Vec& square, const T* h, const float* w) {
    const Vec x = load(h);
    dot = _mm256_fmadd_ps(x, load(w), dot);
    square = _mm256_fmadd_ps(x, x, square);
  }
  template <class T>
  AVX2 static void rows(const void* h, const float* w, int64_t n, int count, Sums* sums) {
    add_up_all<Avx2, T>(h, w, n, count, sums);
  }
};

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  // maskz_ with every lane: GCC 12 warns of the plain forms' undefined source (its bug 105593).
  static constexpr __mmask16 kAll = 0xffff;
  AVX512 static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  AVX512 static Vec load(const Half* p) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  AVX512 static Vec load(const Bfloat* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m512i low = _mm512_maskz_cvtepu16_epi32(kAll, bits);
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, low, 16));
  }
  template <class T>
  AVX512 static void step(Vec& dot, Vec& square, const T* h, const float* w) {
    const Vec x = load(h);
    dot = _mm512_fmadd_ps(x, load(w), dot);
    square = _mm512_fmadd_ps(x, x, square);
  }
  template <class T>
  AVX512 static void rows(const void* h, const float* w, int64_t n, int count, Sums* sums) {
    add_up_all<Avx512, T>(h, w, n, count, sums);
  }
};

bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
bool has_avx2() {  // F16C from CPUID: not every compiler's __builtin_cpu_supports knows the name
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (ecx & bit_F16C);
}
#elif defined(__aarch64__)
struct Neon {
  using Vec = float32x4_t;
  static constexpr int kLanes = 4;
  static Vec load(const float* p) { return vld1q_f32(p); }
  static Vec load(const Half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
  }
  static Vec load(const Bfloat* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
  }
  template <class T>
  static void step(Vec& dot, Vec& square, const T* h, const float* w) {
    const Vec x = load(h);
    dot = vfmaq_f32(dot, x, load(w));
    square = vfmaq_f32(square, x, x);
  }
  template <class T>
  static void rows(const void* h, const float* w, int64_t n, int count, Sums* sums) {
    add_up_all<Neon, T>(h, w, n, count, sums);
  }
};
#endif

bool always() { return true; }

struct Path {  // the code for one instruction set
  const char* name;
  bool (*available)();
  void (*rows[3])(const void* h, const float* w, int64_t n, int count, Sums* sums);  // by dtype
};

constexpr Path kPaths[] = {  // best first
#if defined(__x86_64__)
    {"avx512f", has_avx512, {Avx512::rows<float>, Avx512::rows<Half>, Avx512::rows<Bfloat>}},
    {"avx2", has_avx2, {Avx2::rows<float>, Avx2::rows<Half>, Avx2::rows<Bfloat>}},
#elif defined(__aarch64__)
    {"neon", always, {Neon::rows<float>, Neon::rows<Half>, Neon::rows<Bfloat>}},
#endif
    {"scalar", always, {Scalar::rows<float>, Scalar::rows<Half>, Scalar::rows<Bfloat>}},
};

std::atomic<const Path*> chosen{nullptr};

// Returns the best path if name is null, and null if this CPU or build lacks the named one.
const Path* find(const char* name) {
  for (const Path& path : kPaths)
    if ((!name || !std::strcmp(name, path.name)) && path.available()) return &path;
  return nullptr;
}

const Path& current() {
  const Path* path = chosen.load(std::memory_order_relaxed);
  if (!path) chosen.store(path = find(nullptr), std::memory_order_relaxed);
  return *path;
}

constexpr int kChunk = 64;  // rows whose sums are kept

double sigmoid(double z) {  // exp of a negative number only, which cannot overflow
  const double e = std::exp(-std::fabs(z));
  return (z < 0 ? e : 1.0) / (1.0 + e);
}

}  // namespace

extern "C" int modelsat_score(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                              int64_t width, const float* weight, float eps, float scale,
                              float offset, float* probability) noexcept {
  if (dtype < MODELSAT_FP32 || dtype > MODELSAT_BF16) return MODELSAT_BAD_DTYPE;
  const int64_t bytes = dtype == MODELSAT_FP32 ? 4 : 2;
  if (batch < 0 || candidates < 0 || width < 1) return MODELSAT_BAD_SIZE;
  if (batch == 0 || candidates == 0) return MODELSAT_OK;
  if (overflows(batch, candidates, width, bytes)) return MODELSAT_BAD_SIZE;
  if (!hidden || !weight || !probability) return MODELSAT_NULL_POINTER;

  const auto rows = current().rows[dtype];
  const char* h = static_cast<const char*>(hidden);
  Sums sums[kChunk];
  for (int64_t left = batch * candidates; left > 0; left -= kChunk) {
    const int count = static_cast<int>(left < kChunk ? left : kChunk);
    rows(h, weight, width, count, sums);
    h += count * width * bytes;
    for (int r = 0; r < count; ++r) {
      const double mean = sums[r].squares / static_cast<double>(width);
      const double logit = sums[r].dot / std::sqrt(mean + eps);
      *probability++ = static_cast<float>(sigmoid(scale * logit + offset));
    }
  }
  return MODELSAT_OK;
}

extern "C" int32_t modelsat_abi_version(void) noexcept { return MODELSAT_ABI_VERSION; }

extern "C" const char* modelsat_score_isa(void) noexcept { return current().name; }

extern "C" int modelsat_score_set_isa(const char* name) noexcept {
  const Path* path = find(name);
  if (!path) return 1;
  chosen.store(path, std::memory_order_relaxed);
  return 0;
}
