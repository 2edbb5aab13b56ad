// CPU paths of the fused scoring kernel (score.h): one row template over a policy per instruction
// set, chosen at run time.

#include "score.h"

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

// For the rare row whose sums overflow fp32, or that holds NaN.
template <class T>
__attribute__((noinline, cold)) Sums add_up_wide(const T* h, const float* w, int64_t n) {
  Sums sums{0, 0};
  for (int64_t i = 0; i < n; ++i) step_one(sums.dot, sums.squares, h + i, w + i);
  return sums;
}

// A policy has Vec, of kLanes floats; kUnroll, the accumulators that hide the latency of an FMA;
// step(), which adds one Vec of products; and row(), compiled for its instruction set. The code
// they share is compiled for the baseline and becomes AVX code where row() inlines it, so step()
// takes vectors by reference: by value they have no ABI there.

template <int kCount>
INLINED float tree_sum(float* values) {
  if constexpr (kCount > 1) {
    for (int i = 0; i < kCount / 2; ++i) values[i] += values[i + kCount / 2];
    return tree_sum<kCount / 2>(values);
  }
  return values[0];
}

template <class Isa>
INLINED float total(const typename Isa::Vec (&sums)[Isa::kUnroll]) {
  float values[Isa::kLanes * Isa::kUnroll];
  std::memcpy(values, sums, sizeof values);
  return tree_sum<Isa::kLanes * Isa::kUnroll>(values);
}

template <class Isa, class T>
INLINED Sums add_up(const T* h, const float* w, int64_t n) {
  typename Isa::Vec dots[Isa::kUnroll] = {}, squares[Isa::kUnroll] = {};
  int64_t i = 0;
  for (; i + Isa::kLanes * Isa::kUnroll <= n; i += Isa::kLanes * Isa::kUnroll)
    for (int k = 0; k < Isa::kUnroll; ++k)
      Isa::step(dots[k], squares[k], h + i + k * Isa::kLanes, w + i + k * Isa::kLanes);
  for (; i + Isa::kLanes <= n; i += Isa::kLanes) Isa::step(dots[0], squares[0], h + i, w + i);

  float dot = total<Isa>(dots);
  float square = total<Isa>(squares);
  for (; i < n; ++i) step_one(dot, square, h + i, w + i);
  if (!std::isfinite(dot) || !std::isfinite(square)) return add_up_wide(h, w, n);
  return {dot, square};
}

struct Scalar {
  using Vec = float;
  static constexpr int kLanes = 1, kUnroll = 8;
  template <class T>
  static void step(Vec& dot, Vec& square, const T* h, const float* w) {
    step_one(dot, square, h, w);
  }
  template <class T>
  static Sums row(const void* h, const float* w, int64_t n) {
    return add_up<Scalar>(static_cast<const T*>(h), w, n);
  }
};

#if defined(__x86_64__)
struct Avx2 {
  using Vec = __m256;
  static constexpr int kLanes = 8, kUnroll = 4;
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
  AVX2 static Sums row(const void* h, const float* w, int64_t n) {
    return add_up<Avx2>(static_cast<const T*>(h), w, n);
  }
};

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16, kUnroll = 4;
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
  AVX512 static Sums row(const void* h, const float* w, int64_t n) {
    return add_up<Avx512>(static_cast<const T*>(h), w, n);
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
  static constexpr int kLanes = 4, kUnroll = 4;
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
  static Sums row(const void* h, const float* w, int64_t n) {
    return add_up<Neon>(static_cast<const T*>(h), w, n);
  }
};
#endif

bool always() { return true; }

struct Path {
  const char* name;
  bool (*available)();
  Sums (*row[3])(const void* h, const float* w, int64_t n);  // by dtype
};

constexpr Path kPaths[] = {  // best first
#if defined(__x86_64__)
    {"avx512f", has_avx512, {Avx512::row<float>, Avx512::row<Half>, Avx512::row<Bfloat>}},
    {"avx2", has_avx2, {Avx2::row<float>, Avx2::row<Half>, Avx2::row<Bfloat>}},
#elif defined(__aarch64__)
    {"neon", always, {Neon::row<float>, Neon::row<Half>, Neon::row<Bfloat>}},
#endif
    {"scalar", always, {Scalar::row<float>, Scalar::row<Half>, Scalar::row<Bfloat>}},
};

std::atomic<const Path*> chosen{nullptr};

// The best path where name is null; null where there is none of that name here.
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

double sigmoid(double z) {  // exp of a negative number only, so that it cannot overflow
  const double e = std::exp(-std::fabs(z));
  return (z < 0 ? e : 1.0) / (1.0 + e);
}

}  // namespace

extern "C" int modelsat_score(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                              int64_t variants, int64_t width, const float* weight, float eps,
                              float scale, float offset, float* probability) noexcept {
  if (dtype < MODELSAT_FP32 || dtype > MODELSAT_BF16) return MODELSAT_BAD_DTYPE;
  if (batch < 0 || candidates < 0 || variants < 1 || width < 1) return MODELSAT_BAD_SIZE;
  if (batch == 0 || candidates == 0) return MODELSAT_OK;
  if (!hidden || !weight || !probability) return MODELSAT_NULL_POINTER;

  const auto row = current().row[dtype];
  const int64_t stride = width * (dtype == MODELSAT_FP32 ? 4 : 2);
  const char* h = static_cast<const char*>(hidden);
  for (int64_t i = 0; i < batch * candidates; ++i) {
    double total = 0;
    for (int64_t v = 0; v < variants; ++v, h += stride) {
      const Sums sums = row(h, weight, width);
      const double logit = sums.dot / std::sqrt(sums.squares / static_cast<double>(width) + eps);
      total += sigmoid(scale * logit + offset);
    }
    probability[i] = static_cast<float>(total / static_cast<double>(variants));
  }
  return MODELSAT_OK;
}

extern "C" const char* modelsat_score_isa(void) noexcept { return current().name; }

extern "C" int modelsat_score_set_isa(const char* name) noexcept {
  const Path* path = find(name);
  if (!path) return 1;
  chosen.store(path, std::memory_order_relaxed);
  return 0;
}
