// The test of a path (self_test.h).

#include "self_test.h"

#include "reference.h"

#include <algorithm>
#include <vector>

namespace modelsat {
namespace {

// 17 candidates and the null candidate, 16 tokens after the inquiry prompt: full and partial tiles of rows,
// of products and of attention. More rows take longer.
constexpr int kTokens = 16, kCandidates = 17, kLayers = 2;
// Of what the layers add to a row, relative to its length; measured .06. One lane of 16 without a result
// gives .25.
constexpr double kTolerance = 0.2;

// Makes a shape one of fewer layers until it ends, also if memory runs out.
class FewLayers {
 public:
  explicit FewLayers(Shape& shape) : shape_(shape), layers_(shape.layers) {
    shape.layers = std::min(shape.layers, kLayers);
  }
  ~FewLayers() { shape_.layers = layers_; }
  FewLayers(const FewLayers&) = delete;
  FewLayers& operator=(const FewLayers&) = delete;

 private:
  Shape& shape_;
  const int layers_;
};

}  // namespace

int self_test(Weights& weights, const Score& score) {
  const FewLayers few(weights.shape);
  const Shape& s = weights.shape;
  const auto width = static_cast<size_t>(s.width);
  std::vector<int64_t> tokens(weights.prompt, weights.prompt + s.prompt), rows;
  for (int i = 0; i < std::min(kTokens, s.positions - 1 - s.prompt); ++i)
    tokens.push_back((7919 * int64_t{i} + 1) % s.vocabulary);
  for (int i = 0; i < kCandidates; ++i) rows.push_back(i);
  std::vector<float> table(kCandidates * width), p(kCandidates), weight(width, 1);
  for (size_t i = 0; i < table.size(); ++i)
    table[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 16 & 1023) - 512) / 4096;
  std::vector<float> found((1 + kCandidates) * width);
  const auto length = static_cast<int64_t>(tokens.size());
  if (const int code = score({tokens.data(), length, table.data(), kCandidates, rows.data(), kCandidates,
                              p.data(), found.data(), found.data() + width},
                             {weight.data(), 1, 1, 0}))
    return code;

  std::vector<const float*> embeddings{nullptr};
  for (size_t i = 0; i < kCandidates; ++i) embeddings.push_back(&table[i * width]);
  const auto expected = reference_rows(weights, tokens.data(), length, embeddings);
  for (size_t i = 0; i < expected.size(); ++i) {
    double error = 0, added = 0;
    for (size_t d = 0; d < width; ++d) {
      const double exact = expected[i][d], start = i ? embeddings[i][d] : 0;
      error += (found[i * width + d] - exact) * (found[i * width + d] - exact);
      added += (exact - start) * (exact - start);
    }
    if (!(error <= kTolerance * kTolerance * added)) return MODELSAT_FORWARD_WRONG;  // NaN too
  }
  return MODELSAT_FORWARD_OK;
}

}  // namespace modelsat
