// Reads or maps, and checks a weights file (weights.h).

#include "weights.h"

#include "forward.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace modelsat {
namespace {

constexpr char kMagic[8] = {'M', 'S', 'A', 'T', 'F', 'W', 'D', '\0'};
constexpr uint32_t kVersion = 2;  // 1 mixed no rows

struct Header {
  char magic[8];
  uint32_t version, number;
  int32_t width, padded_width, layers, heads, kv_heads, head_width, inner, prompt, positions,
      vocabulary;
  float eps;
  int32_t inner_mix;  // 0 with version 1
};
static_assert(sizeof(Header) == 64);

bool within(int32_t value, int32_t low, int32_t high, int32_t multiple = 1) {
  return value >= low && value <= high && value % multiple == 0;
}

bool valid_mix(const Header& h) {
  if (h.version == 1) return h.inner_mix == 0;
  if (h.number == 1) return h.inner_mix == 1;
  return (h.inner_mix == 4 || h.inner_mix == 16) && h.inner % (16 * h.inner_mix) == 0;
}

bool valid(const Header& h) {
  return !std::memcmp(h.magic, kMagic, sizeof kMagic) && h.version >= 1 && h.version <= kVersion && h.number <= 1 &&
         within(h.width, 1, 1 << 15) && within(h.padded_width, h.width, h.width + 63, 64) &&
         within(h.layers, 1, 256) && within(h.heads, 1, 256) && within(h.kv_heads, 1, h.heads) &&
         h.heads % h.kv_heads == 0 && within(h.head_width, 32, 512, 32) &&
         within(h.inner, 64, 1 << 17, 64) && within(h.prompt, 0, 1 << 12) &&
         within(h.positions, h.prompt + 1, 1 << 20) && within(h.vocabulary, 1, 1 << 22) &&
         h.eps > 0 && h.eps < 1 && valid_mix(h);
}

// Hands out sections in order. Sizes are below 2^62, because those of a header are bounded.
class Sections {
 public:
  Sections(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  template <class T>
  const T* take(size_t count) {
    at_ = (at_ + 63) / 64 * 64;
    const size_t from = at_;
    at_ += count * sizeof(T);
    return at_ <= size_ ? reinterpret_cast<const T*>(data_ + from) : nullptr;
  }
  Matrix matrix(int columns, int inputs, Number number) {
    const auto n = static_cast<size_t>(columns), k = static_cast<size_t>(inputs);
    if (number == Number::kBf16) return {columns, inputs, take<uint8_t>(2 * n * k), nullptr, nullptr};
    const auto* panels = take<uint8_t>(n * k);
    const auto* scale = take<float>(n);
    return {columns, inputs, panels, scale, take<int32_t>(n)};
  }
  bool complete() const { return at_ == size_; }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

}  // namespace

Weights::~Weights() {
  delete[] layers;
  if (mapped_) munmap(const_cast<uint8_t*>(mapped_), size_);
}

const uint8_t* Weights::read_all(int fd) {
  uint8_t* const copy = copy_.replace(size_);
  if (!copy) return nullptr;
  for (size_t at = 0; at < size_;) {
    const ssize_t count = ::read(fd, copy + at, size_ - at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return nullptr;
    at += static_cast<size_t>(count);
  }
  return copy;
}

const uint8_t* Weights::map(int fd) {
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return nullptr;
  mapped_ = static_cast<const uint8_t*>(mapped);
  return mapped_;
}

int Weights::open(const char* file, bool share) {
  const int fd = ::open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return MODELSAT_FORWARD_BAD_FILE;
  struct stat about;
  const uint8_t* data = nullptr;
  if (!fstat(fd, &about) && about.st_size >= static_cast<off_t>(sizeof(Header))) {
    size_ = static_cast<size_t>(about.st_size);
    if (!share) data = read_all(fd);
    if (!copy_.get()) data = map(fd);  // also where there is no memory for a copy
  }
  ::close(fd);
  if (!data) return MODELSAT_FORWARD_BAD_FILE;

  Sections sections(data, size_);
  Header h;
  std::memcpy(&h, sections.take<Header>(1), sizeof h);
  if (!valid(h)) return MODELSAT_FORWARD_BAD_FILE;
  const auto number = static_cast<Number>(h.number);
  shape = {number,  h.width,      h.padded_width, h.layers,     h.heads,      h.kv_heads, h.head_width,
           h.inner, h.prompt,     h.positions,    h.vocabulary, h.eps,
           h.version == 1 || h.number ? 1 : 4, h.version == 1 ? 1 : h.inner_mix};
  const auto width = static_cast<size_t>(shape.padded_width);
  const auto rows = static_cast<size_t>(shape.vocabulary);
  if (number == Number::kInt8) {
    table_int8 = sections.take<int8_t>(rows * width);
    table_scale = sections.take<float>(rows);
  } else {
    table_bf16 = sections.take<uint16_t>(rows * width);
  }
  prompt = sections.take<int32_t>(static_cast<size_t>(shape.prompt));
  const auto angles = static_cast<size_t>(shape.positions) * static_cast<size_t>(shape.head_width / 2);
  cosine = sections.take<float>(angles);
  sine = sections.take<float>(angles);
  if (!sine) return MODELSAT_FORWARD_BAD_FILE;
  layers = new Layer[static_cast<size_t>(shape.layers)];
  const size_t cached = static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.prompt) *
                        static_cast<size_t>(shape.head_width);
  for (int i = 0; i < shape.layers; ++i) {
    Layer& layer = layers[i];
    layer.attention_gain = sections.take<float>(width);
    layer.qkv = sections.matrix(shape.qkv_columns(), shape.padded_width, number);
    layer.out = sections.matrix(shape.padded_width, shape.mixed_width(), number);
    layer.mlp_gain = sections.take<float>(width);
    layer.up = sections.matrix(2 * shape.inner, shape.padded_width, number);
    layer.down = sections.matrix(shape.padded_width, shape.inner, number);
    layer.keys = sections.take<float>(cached);
    layer.values = sections.take<float>(cached);
  }
  return sections.complete() ? MODELSAT_FORWARD_OK : MODELSAT_FORWARD_BAD_FILE;
}

}  // namespace modelsat
