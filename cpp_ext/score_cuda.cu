// The scoring kernel on a GPU (score_cuda.h): one block per request, one warp per row.
//
// One block is enough: 1,000 rows of 576 halves are 1.2 MB, which one SM reads in microseconds while
// the forward pass takes milliseconds. In return, ordering needs no second launch and no atomics.

#include "score_cuda.h"

#include "score.h"
#include "sizes.h"

#ifdef MODELSAT_EMULATION
#include "cuda_emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include <math.h>

namespace {

constexpr int kWarp = 32, kWarps = 8, kThreads = kWarp * kWarps;
constexpr unsigned kAll = 0xffffffffu;

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

__device__ float widen(float value) { return value; }
__device__ float widen(Bfloat value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ float widen(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = (value.bits & 0x7fffu) << 13;
  if (rest >= 0x7c00u << 13) return __uint_as_float(sign | 0x7f800000u | rest);
  return __uint_as_float(sign | rest) * 0x1p112f;  // rebias 15 to 127; right for subnormals too
}

template <class Sum>
__device__ Sum warp_sum(Sum value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Returns <h, w> / sqrt(mean h^2 + eps), in every lane.
template <class Sum, class T>
__device__ Sum logit(const T* h, const float* w, int64_t width, float eps) {
  Sum dot = 0, square = 0;
  for (int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    const Sum x = widen(h[i]);
    dot += x * w[i];
    square += x * x;
  }
  dot = warp_sum(dot);
  square = warp_sum(square);
  return dot / sqrt(square / static_cast<Sum>(width) + eps);
}

// exp of a negative number only, which cannot overflow.
__device__ float sigmoid(float z) {
  const float e = expf(-fabsf(z));
  return (z < 0 ? e : 1.0f) / (1.0f + e);
}

// True if (a, row_a) ranks before (b, row_b). The smaller row wins ties; row -1 is empty.
__device__ bool before(float a, int row_a, float b, int row_b) {
  if (row_a < 0 || row_b < 0) return row_b < 0 && row_a >= 0;
  return a > b || (a == b && row_a < row_b);
}

__device__ void best_of_warp(float& value, int& row) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAll, value, step);
    const int other_row = __shfl_xor_sync(kAll, row, step);
    if (before(other, other_row, value, row)) value = other, row = other_row;
  }
}

struct Sizes { int64_t candidates, width, ranked; };
struct Readout { float eps, scale, offset; };

template <class T>
__global__ void rank(const T* hidden, Sizes n, const float* weight, Readout readout,
                     const uint8_t* allowed, const float* penalty, float* probability,
                     int32_t* order) {
  __shared__ float utility[MODELSAT_CUDA_MAX_CANDIDATES];  // NaN: not allowed, or ranked already
  __shared__ float best_value[kWarps];
  __shared__ int best_row[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t request = blockIdx.x, first = request * n.candidates;

  for (int64_t m = warp; m < n.candidates; m += kWarps) {
    const T* row = hidden + (first + m) * n.width;
    float z = logit<float>(row, weight, n.width, readout.eps);
    // The sums overflowed fp32, or the row holds NaN: repeat in fp64 (score.h). Same in all lanes.
    if (!isfinite(z) || z == 0) z = float(logit<double>(row, weight, n.width, readout.eps));
    const float p = sigmoid(readout.scale * z + readout.offset);
    if (lane == 0) {
      probability[first + m] = p;
      utility[m] = allowed[first + m] ? p - penalty[first + m] : NAN;
    }
  }
  __syncthreads();

  for (int64_t place = 0; place < n.ranked; ++place) {
    float value = 0;
    int row = -1;
    for (int64_t m = threadIdx.x; m < n.candidates; m += kThreads)
      if (!isnan(utility[m]) && before(utility[m], int(m), value, row)) value = utility[m], row = int(m);
    best_of_warp(value, row);
    if (lane == 0) best_value[warp] = value, best_row[warp] = row;
    __syncthreads();
    if (warp == 0) {
      value = best_value[lane % kWarps];
      row = best_row[lane % kWarps];
      best_of_warp(value, row);
      if (lane == 0) {
        order[request * n.ranked + place] = row;
        if (row >= 0) utility[row] = NAN;
      }
    }
    __syncthreads();
  }
}

template <class T>
__global__ void gather(const T* table, int64_t width, const int32_t* rows, T* out) {
  const T* from = table + rows[blockIdx.x] * width;
  T* to = out + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) to[i] = from[i];
}

}  // namespace

extern "C" int32_t modelsat_cuda_abi_version(void) { return MODELSAT_ABI_VERSION; }

extern "C" int modelsat_gather_cuda(const float* table, int64_t width, const int32_t* rows,
                                    int64_t count, float* out, void* stream) {
  if (width < 1 || count < 0 || count > INT32_MAX) return MODELSAT_BAD_SIZE;
  if (count == 0) return MODELSAT_OK;
  if (overflows(1, INT32_MAX, width, sizeof(float))) return MODELSAT_BAD_SIZE;
  if (!table || !rows || !out) return MODELSAT_NULL_POINTER;
#ifdef MODELSAT_EMULATION
  (void)stream;
  emulate(int(count), kThreads, [&] { gather(table, width, rows, out); });
  return MODELSAT_OK;
#else
  gather<<<int(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(table, width, rows, out);
  return cudaGetLastError() == cudaSuccess ? int(MODELSAT_OK) : int(MODELSAT_CUDA_LAUNCH_FAILED);
#endif
}

extern "C" int modelsat_rank_cuda(const void* hidden, int32_t dtype, int64_t batch,
                                  int64_t candidates, int64_t width, const float* weight,
                                  float eps, float scale, float offset,
                                  const uint8_t* allowed, const float* penalty, int64_t ranked,
                                  float* probability, int32_t* order, void* stream) {
  if (dtype < MODELSAT_FP32 || dtype > MODELSAT_BF16) return MODELSAT_BAD_DTYPE;
  if (batch < 0 || candidates < 0 || width < 1 || ranked < 0 ||
      candidates > MODELSAT_CUDA_MAX_CANDIDATES || batch > INT32_MAX)
    return MODELSAT_BAD_SIZE;
  if (batch == 0 || candidates == 0) return MODELSAT_OK;
  if (overflows(batch, candidates, width, sizeof(float)) ||
      overflows(batch, ranked, 1, sizeof(int32_t)))
    return MODELSAT_BAD_SIZE;
  if (!hidden || !weight || !allowed || !penalty || !probability || (ranked && !order))
    return MODELSAT_NULL_POINTER;
  const Sizes n{candidates, width, ranked};
  const Readout readout{eps, scale, offset};
  const auto launch = [&](auto* rows) {
#ifdef MODELSAT_EMULATION
    (void)stream;
    emulate(int(batch), kThreads, [&] {
      rank(rows, n, weight, readout, allowed, penalty, probability, order);
    });
    return MODELSAT_OK;
#else
    rank<<<int(batch), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        rows, n, weight, readout, allowed, penalty, probability, order);
    return cudaGetLastError() == cudaSuccess ? int(MODELSAT_OK) : int(MODELSAT_CUDA_LAUNCH_FAILED);
#endif
  };
  if (dtype == MODELSAT_FP16) return launch(static_cast<const Half*>(hidden));
  if (dtype == MODELSAT_BF16) return launch(static_cast<const Bfloat*>(hidden));
  return launch(static_cast<const float*>(hidden));
}
