// Calls every instruction set of the kernel on random shapes and bits, with buffers of exact size, from
// several threads. Built with sanitizers by .ci/sanitize.

#include "score.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

using Random = std::mt19937;

// Random bits: they hold NaN, infinity, subnormals and the largest numbers.
std::vector<unsigned char> random_bytes(Random& random, size_t size) {
  std::vector<unsigned char> bytes(size);
  for (auto& byte : bytes) byte = static_cast<unsigned char>(random());
  return bytes;
}

void run(unsigned seed, int rounds) {
  Random random(seed);
  for (int round = 0; round < rounds; ++round) {
    const int32_t dtype = static_cast<int32_t>(random() % 3);
    const int64_t batch = random() % 4, candidates = random() % 9, width = 1 + random() % 70;
    const int64_t rows = batch * candidates;
    const size_t bytes = dtype == MODELSAT_FP32 ? 4 : 2;
    const auto hidden = random_bytes(random, static_cast<size_t>(rows * width) * bytes);
    std::vector<float> weight(static_cast<size_t>(width)), probability(static_cast<size_t>(rows));
    const auto bits = random_bytes(random, weight.size() * sizeof(float));
    std::memcpy(weight.data(), bits.data(), bits.size());
    const int code = modelsat_score(hidden.data(), dtype, batch, candidates, width, weight.data(),
                                    1e-5f, 1, 0, probability.data());
    if (code != MODELSAT_OK) {
      std::fprintf(stderr, "modelsat_score returned %d\n", code);
      std::exit(1);
    }
  }
}

}  // namespace

int main() {
  for (const char* isa : {"avx512f", "avx2", "neon", "scalar"}) {
    if (modelsat_score_set_isa(isa)) {
      std::printf("%s: not on this machine\n", isa);
      continue;
    }
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 3; ++seed) threads.emplace_back(run, seed, 300);
    for (int change = 0; change < 50; ++change) modelsat_score_set_isa(isa);
    for (auto& thread : threads) thread.join();
    std::printf("%s: 900 random shapes in 3 threads\n", isa);
  }
  return 0;
}
