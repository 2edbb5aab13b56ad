// The forward pass in plain loops (reference.h).

#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace modelsat {
namespace {

using Row = std::vector<float>;

float from_bf16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float round_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);
  return from_bf16(static_cast<uint16_t>(bits >> 16));
}

// The products of a packed column and x, added up; weights.h describes the order.
template <Number kNumber>
double column_sum(const Matrix& m, int column, const Row& x) {
  constexpr int kBlock = kNumber == Number::kInt8 ? 64 : 32, kGroup = kNumber == Number::kInt8 ? 4 : 2;
  const uint8_t* from = m.panels + int64_t{column / kPanel} * (m.inputs / kBlock) * kBlockBytes +
                        column % kPanel / 16 * kTileBytes + column % 16 * 4;
  double sum = 0;
  for (int block = 0; block < m.inputs / kBlock; ++block, from += kBlockBytes)
    for (int i = 0; i < kBlock; ++i) {
      const uint8_t* at = from + i / kGroup * 64 + i % kGroup * (4 / kGroup);
      float weight = static_cast<int8_t>(*at);
      if constexpr (kNumber == Number::kBf16) {
        uint16_t half;
        std::memcpy(&half, at, sizeof half);
        weight = from_bf16(half);
      }
      sum += double{x[static_cast<size_t>(block * kBlock + i)]} * weight;
    }
  return sum;
}

// x (inputs) times the matrix, in the order of packed columns.
Row product(const Matrix& m, Number number, const Row& x) {
  Row rounded(x), y(static_cast<size_t>(m.columns));
  float step = 1;
  if (number == Number::kInt8) {
    float largest = 0;
    for (float value : x) largest = std::fmax(largest, std::fabs(value));
    largest = std::fmax(largest, 1e-9f);
    step = largest / 127;
    for (float& value : rounded) value = std::nearbyint(value * (127 / largest));
  } else {
    for (float& value : rounded) value = round_to_bf16(value);
  }
  for (int column = 0; column < m.columns; ++column) {
    const double sum = number == Number::kInt8 ? column_sum<Number::kInt8>(m, column, rounded)
                                               : column_sum<Number::kBf16>(m, column, rounded);
    const float scale = number == Number::kInt8 ? m.scale[column] * step : 1;
    y[column] = static_cast<float>(sum) * scale;
  }
  return y;
}

// What mix_row of norm.h does.
Row mixed_runs(const Row& x, int mix) {
  Row y(x.size());
  const size_t block = static_cast<size_t>(16 * mix);
  for (size_t i = 0; i < x.size(); ++i)
    for (int run = 0; run < mix; ++run) {
      const int own = static_cast<int>(i % block / 16);
      const float value = x[i / block * block + static_cast<size_t>(run) * 16 + i % 16];
      y[i] += __builtin_parity(static_cast<unsigned>(own & run)) ? -value : value;
    }
  return y;
}

Row norm(const Row& x, const float* gain, const Shape& s) {
  double square = 0;
  for (float value : x) square += double{value} * value;
  const double factor = 1 / std::sqrt(square / s.width + s.eps);
  Row y(x);
  for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<float>(x[i] * factor) * gain[i];
  return y;
}

// The head `head` of a packed row of queries, keys and values, rotated to `position` unless it is a value.
Row take_head(const Weights& w, const Row& qkv, int head, int position) {
  const Shape& s = w.shape;
  const int width = s.head_width, half = width / 2;
  const bool value = head >= s.heads + s.kv_heads;
  Row x(static_cast<size_t>(width)), y(x);
  for (int i = 0; i < width; ++i) {
    const int part = i / kPanel, lane = i % kPanel;
    const int dim = value ? i : 16 * part + lane % 16 + lane / 16 * half;
    x[dim] = qkv[static_cast<size_t>(head * width + i)];
  }
  if (value) return x;
  for (int i = 0; i < half; ++i) {
    const float cosine = w.cosine[position * half + i], sine = w.sine[position * half + i];
    y[i] = x[i] * cosine - x[i + half] * sine;
    y[i + half] = x[i + half] * cosine + x[i] * sine;
  }
  return y;
}

// What a query makes of the keys and values that it sees.
Row attend(const Row& query, const std::vector<const float*>& keys,
           const std::vector<const float*>& values) {
  std::vector<double> weights;
  for (const float* key : keys) {
    double score = 0;
    for (size_t i = 0; i < query.size(); ++i) score += double{query[i]} * key[i];
    weights.push_back(score);
  }
  const double most = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& value : weights) sum += value = std::exp(value - most);
  Row mixed(query.size());
  for (size_t i = 0; i < mixed.size(); ++i) {
    double x = 0;
    for (size_t k = 0; k < values.size(); ++k) x += weights[k] * values[k][i];
    mixed[i] = static_cast<float>(x / sum);
  }
  return mixed;
}

Row embed(const Weights& w, int64_t token) {
  Row x(static_cast<size_t>(w.shape.padded_width));
  const int64_t at = token * w.shape.padded_width;
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = w.table_int8 ? static_cast<float>(w.table_int8[at + static_cast<int64_t>(i)]) * w.table_scale[token]
                        : from_bf16(w.table_bf16[at + static_cast<int64_t>(i)]);
  return x;
}

}  // namespace

std::vector<std::vector<float>> reference_rows(const Weights& weights, const int64_t* tokens,
                                               int64_t length,
                                               const std::vector<const float*>& embeddings) {
  const Shape& s = weights.shape;
  const int width = s.head_width, group = s.heads / s.kv_heads;
  std::vector<Row> rows;  // tokens after the inquiry prompt, then candidates
  for (int64_t i = s.prompt; i < length; ++i) rows.push_back(embed(weights, tokens[i]));
  const size_t count = rows.size();
  for (const float* embedding : embeddings) {
    rows.emplace_back(static_cast<size_t>(s.padded_width));
    if (embedding) std::copy(embedding, embedding + s.width, rows.back().begin());
  }
  for (int l = 0; l < s.layers; ++l) {
    const Layer& layer = weights.layers[l];
    std::vector<Row> qkv;
    for (const Row& row : rows)
      qkv.push_back(product(layer.qkv, s.number, mixed_runs(norm(row, layer.attention_gain, s), s.norm_mix)));
    const auto head_of = [&](size_t row, int head) {
      const int position = s.prompt + static_cast<int>(std::min(row, count));
      return take_head(weights, qkv[row], head, position);
    };
    std::vector<Row> mixed(rows.size(), Row(static_cast<size_t>(s.mixed_width())));
    for (int kv = 0; kv < s.kv_heads; ++kv) {
      std::vector<Row> keys, values;
      for (size_t row = 0; row < rows.size(); ++row) {
        keys.push_back(head_of(row, s.heads + kv));
        values.push_back(head_of(row, s.heads + s.kv_heads + kv));
      }
      for (size_t row = 0; row < rows.size(); ++row) {
        std::vector<const float*> seen_keys, seen_values;
        for (int i = 0; i < s.prompt; ++i) {
          const int64_t at = (int64_t{kv} * s.prompt + i) * width;
          seen_keys.push_back(layer.keys + at);
          seen_values.push_back(layer.values + at);
        }
        for (size_t other = 0; other < rows.size(); ++other)
          if (other == row || other < std::min(row, count)) {
            seen_keys.push_back(keys[other].data());
            seen_values.push_back(values[other].data());
          }
        for (int head = kv * group; head < (kv + 1) * group; ++head) {
          const Row x = attend(head_of(row, head), seen_keys, seen_values);
          std::copy(x.begin(), x.end(), mixed[row].begin() + head * width);
        }
      }
    }
    for (size_t row = 0; row < rows.size(); ++row) {
      Row& x = rows[row];
      const Row attended = product(layer.out, s.number, mixed[row]);
      for (size_t i = 0; i < x.size(); ++i) x[i] += attended[i];
      const Row up = product(layer.up, s.number, mixed_runs(norm(x, layer.mlp_gain, s), s.norm_mix));
      Row inner(static_cast<size_t>(s.inner));
      for (size_t i = 0; i < inner.size(); ++i) {  // gate and up of 16 units are neighbours
        const double gate = up[i / 16 * 32 + i % 16];
        inner[i] = static_cast<float>(gate / (1 + std::exp(-gate)) * up[i / 16 * 32 + 16 + i % 16]);
      }
      const Row down = product(layer.down, s.number, mixed_runs(inner, s.inner_mix));
      for (size_t i = 0; i < x.size(); ++i) x[i] += down[i];
    }
  }
  rows.erase(rows.begin(), rows.begin() + static_cast<int64_t>(count));
  for (Row& row : rows) row.resize(static_cast<size_t>(s.width));
  return rows;
}

}  // namespace modelsat
