// Runs a CUDA kernel on a CPU, for tests. Blocks run one after another; the threads of a block are
// fibers that run until they wait at a barrier. Without a barrier that is needed, a thread reads what
// others have not written yet, and the result is wrong.
#ifndef MODELSAT_CUDA_EMULATION_H
#define MODELSAT_CUDA_EMULATION_H

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

struct Index { int x; };

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

struct Barrier {
  int waiting = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

inline std::vector<Fiber>* fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline int current, threads;
inline Barrier block;
inline std::vector<Barrier> warps;
inline std::vector<double> exchanged;

inline void wait(Barrier& barrier, int size) {
  const int generation = barrier.generation;
  if (++barrier.waiting == size) {
    barrier.waiting = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation)
    swapcontext(&(*fibers)[current].context, &scheduler);
}

inline void start() {
  body();
  (*fibers)[current].done = true;
}

}  // namespace emulation

inline Index threadIdx, blockIdx;

inline void __syncthreads() { emulation::wait(emulation::block, emulation::threads); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  using namespace emulation;
  const int self = current;
  Barrier& warp = warps[self / kWarp];
  exchanged[self] = double(value);
  wait(warp, kWarp);
  const T other = T(exchanged[self ^ step]);
  wait(warp, kWarp);
  return other;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline void emulate(int blocks, int threads_of_block, std::function<void()> kernel) {
  using namespace emulation;
  body = std::move(kernel);
  threads = threads_of_block;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::vector<Fiber> own(threads);
    fibers = &own;
    block = {};
    warps.assign(threads / kWarp, {});
    exchanged.assign(threads, 0.0);
    for (Fiber& fiber : own) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, start, 0);
    }
    for (bool running = true; running;) {
      running = false;
      for (int i = 0; i < threads; ++i) {
        if (own[i].done) continue;
        running = true;
        current = threadIdx.x = i;
        swapcontext(&scheduler, &own[i].context);
      }
    }
  }
}

#endif
