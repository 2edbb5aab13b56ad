// Runs every path of the forward pass on random shapes, in several threads and from several callers, with
// buffers of exact size. Results must be the same bit by bit for every number of threads, and near those of
// plain loops. Built with sanitizers by .ci/sanitize, and for Arm by .ci/arm.

#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

using Random = std::mt19937;
constexpr double kTolerance = 0.005;  // of the results' length

struct Sizes {
  int width, layers, heads, kv_heads, head_width, inner, prompt, positions, vocabulary;
};

// A weights file (weights.h) of random numbers. right: with the sums of columns that int8 weights have.
class File {
 public:
  File(Random& random, const Sizes& s, bool int8, bool right) : random_(random), int8_(int8), right_(right) {
    const int padded = (s.width + 63) / 64 * 64, mixed = (s.heads * s.head_width + 63) / 64 * 64;
    const int32_t sizes[] = {s.width,      padded,  s.layers, s.heads,     s.kv_heads,
                             s.head_width, s.inner, s.prompt, s.positions, s.vocabulary};
    const uint32_t start[] = {1, int8 ? 0u : 1u}, end[] = {0};
    const float eps = 1e-5f;
    add("MSATFWD", 8);
    add(start, sizeof start);
    add(sizes, sizeof sizes);
    add(&eps, sizeof eps);
    add(end, sizeof end);
    numbers(s.vocabulary * padded);
    if (int8) floats(s.vocabulary, 0.02f);
    std::vector<int32_t> prompt;
    for (int i = 0; i < s.prompt; ++i) prompt.push_back(i % s.vocabulary);
    section(prompt.data(), prompt.size() * sizeof(int32_t));
    floats(s.positions * s.head_width / 2, 1);
    floats(s.positions * s.head_width / 2, 1);
    for (int layer = 0; layer < s.layers; ++layer) {
      floats(padded, 1);
      matrix((s.heads + 2 * s.kv_heads) * s.head_width, padded);
      matrix(padded, mixed);
      floats(padded, 1);
      matrix(2 * s.inner, padded);
      matrix(padded, s.inner);
      floats(s.kv_heads * s.prompt * s.head_width, 1);
      floats(s.kv_heads * s.prompt * s.head_width, 1);
    }
    const int fd = mkstemp(name_.data());
    if (fd < 0 || write(fd, bytes_.data(), bytes_.size()) != static_cast<ssize_t>(bytes_.size())) abort();
    close(fd);
  }
  ~File() { unlink(name()); }
  const char* name() const { return name_.c_str(); }

 private:
  void add(const void* data, size_t size) {
    const auto* from = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  void section(const void* data, size_t size) {
    bytes_.resize((bytes_.size() + 63) / 64 * 64);
    add(data, size);
  }
  void floats(int count, float size) {
    std::uniform_real_distribution<float> draw(-size, size);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = draw(random_);
    section(values.data(), values.size() * sizeof(float));
  }
  void numbers(int count) {  // of a matrix or the token table
    std::vector<int8_t> bytes;
    std::vector<uint16_t> halves;
    for (int i = 0; i < count; ++i) {
      const int value = static_cast<int>(random_() % 129) - 64;
      bytes.push_back(static_cast<int8_t>(value));
      const float small = static_cast<float>(value) * 0.002f;
      uint32_t bits;
      std::memcpy(&bits, &small, sizeof bits);
      halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
    if (int8_) {
      section(bytes.data(), bytes.size());
    } else {
      section(halves.data(), halves.size() * 2);
    }
  }
  void matrix(int columns, int inputs) {
    numbers(columns * inputs);
    if (!int8_) return;
    const size_t start = bytes_.size() - static_cast<size_t>(columns) * static_cast<size_t>(inputs);
    std::vector<int32_t> zeros(static_cast<size_t>(columns));  // wrong sums, but the same for all
    for (int column = 0; right_ && column < columns; ++column)
      for (int i = 0; i < inputs; ++i) {
        const int block = column / 32 * (inputs / 64) + i / 64;
        const int at = block * 2048 + column % 32 / 16 * 1024 + i % 64 / 4 * 64 + column % 16 * 4 + i % 4;
        zeros[static_cast<size_t>(column)] += 128 * static_cast<int8_t>(bytes_[start + static_cast<size_t>(at)]);
      }
    floats(columns, 0.002f);
    section(zeros.data(), zeros.size() * sizeof(int32_t));
  }

  Random& random_;
  const bool int8_, right_;
  std::vector<char> bytes_;
  std::string name_ = std::string(getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir) + "/forward-XXXXXX";
};

// One call with random requests; the same for the same seed.
std::vector<float> call(modelsat_forward* handle, const Sizes& s, unsigned seed) {
  Random random(seed);
  const size_t batch = 1 + random() % 4, width = static_cast<size_t>(s.width);
  std::vector<std::vector<int64_t>> tokens(batch), rows(batch);
  std::vector<std::vector<float>> p(batch), null_rows(batch, std::vector<float>(width));
  std::vector<modelsat_forward_request> requests;
  std::vector<float> table(7 * width), weight(width, 0.1f), results;
  for (float& value : table) value = static_cast<float>(random() % 1000) / 500 - 1;
  for (size_t i = 0; i < batch; ++i) {
    for (int k = 0; k < s.prompt; ++k) tokens[i].push_back(k % s.vocabulary);
    for (size_t k = random() % 70; k; --k) tokens[i].push_back(random() % static_cast<unsigned>(s.vocabulary));
    for (size_t k = random() % 40; k; --k) rows[i].push_back(random() % 7);
    p[i].resize(rows[i].size());
    requests.push_back({tokens[i].data(), static_cast<int64_t>(tokens[i].size()), table.data(), 7,
                        rows[i].data(), static_cast<int64_t>(rows[i].size()), p[i].data(),
                        null_rows[i].data(), nullptr});
  }
  const modelsat_forward_head head{weight.data(), 1e-5f, 1, 0};
  if (const int code = modelsat_forward_run(handle, requests.data(), static_cast<int64_t>(batch), &head)) {
    std::fprintf(stderr, "modelsat_forward_run returned %d\n", code);
    exit(1);
  }
  for (size_t i = 0; i < batch; ++i) {
    results.insert(results.end(), p[i].begin(), p[i].end());
    results.insert(results.end(), null_rows[i].begin(), null_rows[i].end());
  }
  return results;
}

void check(const char* path, const Sizes& s, const File& file, unsigned rounds) {
  std::vector<std::vector<float>> expected;
  for (const int threads : {1, 2, 3}) {
    modelsat_forward* handle;
    if (const int code = modelsat_forward_open(file.name(), path, threads, 0, &handle)) {
      std::fprintf(stderr, "modelsat_forward_open returned %d\n", code);
      exit(1);
    }
    // Sums of columns are wrong in int8 files, so that the test must find a difference there.
    const bool int8 = std::strstr(path, "bf16") == nullptr;
    if (modelsat_forward_test(handle) != (int8 ? MODELSAT_FORWARD_WRONG : MODELSAT_FORWARD_OK)) {
      std::fprintf(stderr, "%s: modelsat_forward_test does not tell right from wrong\n", path);
      exit(1);
    }
    const auto calls = [&](unsigned first, unsigned step) {
      for (unsigned seed = first; seed < rounds; seed += step) {
        const auto found = call(handle, s, seed);
        if (threads > 1 &&
            std::memcmp(found.data(), expected[seed].data(), found.size() * sizeof(float))) {
          std::fprintf(stderr, "%s: %d threads give another result, seed %u\n", path, threads, seed);
          exit(1);
        }
        if (threads == 1) expected.push_back(found);
      }
    };
    if (threads == 1) {
      calls(0, 1);
    } else {  // callers wait for each other
      std::thread even(calls, 0, 2), odd(calls, 1, 2);
      even.join();
      odd.join();
    }
    modelsat_forward_close(handle);
  }
  std::printf("%s: %u random calls\n", path, rounds);
}

modelsat_forward* open_right(const char* path, const File& file) {
  modelsat_forward* handle;
  if (modelsat_forward_open(file.name(), path, 2, 0, &handle) || modelsat_forward_test(handle)) {
    std::fprintf(stderr, "%s does not open, or does not pass its own test\n", path);
    exit(1);
  }
  return handle;
}

// Against plain loops, on other shapes than those of modelsat_forward_test. Rounding may differ by one
// step of an activation.
void compare(const char* path, const Sizes& s, const File& file, unsigned rounds) {
  modelsat_forward *fast = open_right(path, file), *plain = open_right("scalar", file);
  double worst = 0;
  for (unsigned seed = 0; seed < rounds; ++seed) {
    const auto found = call(fast, s, seed), expected = call(plain, s, seed);
    double error = 0, length = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += (found[i] - expected[i]) * (found[i] - expected[i]);
      length += expected[i] * expected[i];
    }
    worst = std::max(worst, std::sqrt(error / length));
  }
  modelsat_forward_close(fast);
  modelsat_forward_close(plain);
  std::printf("%s: within %.1e of plain loops\n", path, worst);
  if (!(worst <= kTolerance)) exit(1);
}

}  // namespace

int main() {
  Random random(1);
  const Sizes all[] = {{72, 2, 4, 2, 32, 64, 3, 120, 50}, {64, 1, 1, 1, 96, 128, 0, 120, 50}};
  const std::string names = modelsat_forward_paths();
  for (const Sizes& s : all) {
    const File int8(random, s, true, false), right(random, s, true, true), bf16(random, s, false, true);
    for (size_t from = 0, to; (to = names.find(' ', from)) != std::string::npos; from = to + 1) {
      const std::string path = names.substr(from, to - from);
      const bool is_int8 = path.find("bf16") == std::string::npos;
      check(path.c_str(), s, is_int8 ? int8 : bf16, 40);
      compare(path.c_str(), s, is_int8 ? right : bf16, 10);
    }
  }
  return 0;
}
