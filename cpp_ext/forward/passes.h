// Runs passes: lays out the rows of requests, cuts them into groups and tiles, lists the steps.
#ifndef MODELSAT_FORWARD_PASSES_H
#define MODELSAT_FORWARD_PASSES_H

#include "forward.h"
#include "threads.h"
#include "workspace.h"

#include <algorithm>
#include <vector>

namespace modelsat {

constexpr int kGroupRows = 256;  // 112 took 16 % longer at 290 rows: each group reads all weights

// The part of a request that is in a pass: some of its candidates, the null candidate being number 0, and
// its tokens unless an earlier pass had them.
struct RequestPart {
  const modelsat_forward_request* request;
  int64_t first, end;  // candidates
  bool tokens;
};

class Passes final : public Job {
 public:
  Passes(const Weights& weights, const Path& path, int threads, bool affinity)
      : weights_(weights),
        path_(path),
        workspace_(weights, path, threads),
        team_(*this, threads, 9 * weights.shape.layers, affinity) {}

  int threads() const { return team_.threads(); }

  // Computes the parts' rows before the final norm; rows() has them.
  void run(const std::vector<RequestPart>& parts) {
    lay_out(parts);
    add_steps();
    go();
  }

  void run_products(int64_t tokens, int64_t candidates) {
    pass_ = Pass{};
    pass_.weights = &weights_;
    pass_.threads = team_.threads();
    pass_.rows = static_cast<int>(tokens + candidates);
    pass_.candidates = static_cast<int>(candidates);
    workspace_.reserve(pass_, pass_.rows, candidates, weights_.shape.prompt_blocks(), 0);
    steps_.clear();
    for (int layer = 0; layer < weights_.shape.layers; ++layer)
      steps_.push_back({Kind::kProducts, layer});
    go();
  }

  const float* rows() const { return pass_.hidden; }

  void enter(int) override { path_.enter(); }
  void leave(int) override { path_.leave(); }
  void unit(int step, int unit, int thread) override {
    path_.unit(pass_, steps_[static_cast<size_t>(step)], unit,
               workspace_.scratch[static_cast<size_t>(thread)]);
  }

 private:
  void lay_out(const std::vector<RequestPart>& parts) {
    const Shape& s = weights_.shape;
    pass_ = Pass{};
    pass_.weights = &weights_;
    pass_.threads = team_.threads();
    position_.clear();
    slot_.clear();
    token_.clear();
    embedding_.clear();
    for (const RequestPart& part : parts) {
      const modelsat_forward_request& r = *part.request;
      for (int64_t i = part.first; i < part.end; ++i) {
        embedding_.push_back(i ? r.table + r.rows[i - 1] * s.width : nullptr);
        position_.push_back(static_cast<int32_t>(r.length));
        slot_.push_back(-1);
      }
    }
    pass_.candidates = static_cast<int>(embedding_.size());
    int64_t blocks = s.prompt_blocks(), longest = 0;
    for (const RequestPart& part : parts) {
      const int64_t tokens = part.request->length - s.prompt;
      for (int64_t i = 0; part.tokens && i < tokens; ++i) {
        token_.push_back(part.request->tokens[s.prompt + i]);
        position_.push_back(static_cast<int32_t>(s.prompt + i));
        slot_.push_back(static_cast<int32_t>(blocks * kSlots + i));
      }
      const int64_t own = (tokens + kSlots - 1) / kSlots;
      blocks += own;
      longest = own > longest ? own : longest;
    }
    pass_.rows = static_cast<int>(position_.size());
    pass_.position = position_.data();
    pass_.slot = slot_.data();
    pass_.token = token_.data();
    pass_.embedding = embedding_.data();
    workspace_.reserve(pass_, pass_.rows, pass_.candidates, blocks, longest);
    pass_.all_rows = cut(pass_.rows);
    pass_.candidate_rows = cut(pass_.candidates);
    add_tiles(parts);
  }

  // Cuts rows into groups at multiples of 16: as many for each thread, of at most kGroupRows rows if that
  // can be. None if there are too few rows for the path, or too many threads.
  Groups cut(int rows) const {
    Groups groups{};
    const int threads = team_.threads();
    if (threads > kMaxGroups || rows / threads < path_.own_rows) return groups;
    const int each = (rows + threads * kGroupRows - 1) / (threads * kGroupRows);
    groups.count = threads * std::min(each, kMaxGroups / threads);
    for (int i = 0; i <= groups.count; ++i) {
      const auto even = static_cast<int>(int64_t{rows} * i / groups.count);
      groups.row[i] = i == groups.count ? rows : (even + kTile / 2) / kTile * kTile;
    }
    return groups;
  }

  // Cuts rows into tiles: of one request, candidates or tokens, and of one group.
  void add_tiles(const std::vector<RequestPart>& parts) {
    const Shape& s = weights_.shape;
    tiles_.clear();
    for (const bool candidates : {true, false}) {
      int row = candidates ? 0 : pass_.candidates;
      int64_t key_block = s.prompt_blocks();
      for (const RequestPart& part : parts) {
        const auto tokens = static_cast<int>(part.request->length - s.prompt);
        const int first = row;
        const int end = candidates    ? row + static_cast<int>(part.end - part.first)
                        : part.tokens ? row + tokens
                                      : row;
        while (row < end) {
          int next = row + kTile < end ? row + kTile : end;
          for (const Groups* groups : {&pass_.all_rows, &pass_.candidate_rows})
            for (int i = 0; i < groups->count; ++i)
              if (groups->row[i] > row && groups->row[i] < next) next = groups->row[i];
          const int seen = candidates ? tokens : next - first;
          tiles_.push_back({row, next - row, static_cast<int>(key_block), seen, candidates});
          row = next;
        }
        key_block += (tokens + kSlots - 1) / kSlots;
      }
      if (candidates) pass_.candidate_tiles = static_cast<int>(tiles_.size());
    }
    pass_.all_tiles = static_cast<int>(tiles_.size());
    pass_.tiles = tiles_.data();
    for (Groups* groups : {&pass_.all_rows, &pass_.candidate_rows})
      for (int i = 0; groups->count && i <= groups->count; ++i) {
        int tile = 0;
        while (tile < pass_.all_tiles && tiles_[static_cast<size_t>(tile)].row < groups->row[i]) ++tile;
        groups->tile[i] = tile;
      }
  }

  void add_steps() {
    steps_.clear();
    const int layers = weights_.shape.layers;
    for (int layer = 0; layer < layers; ++layer) {
      if (pass_.all_rows.count) {
        steps_.push_back({Kind::kOwnKeys, layer});
      } else {
        steps_.push_back({Kind::kNormAttention, layer});
        steps_.push_back({Kind::kQkv, layer});
      }
      if ((layer == layers - 1 ? pass_.candidate_rows : pass_.all_rows).count) {
        steps_.push_back({Kind::kOwnRest, layer});
        continue;
      }
      for (const Kind kind : {Kind::kAttend, Kind::kQuantizeMixed, Kind::kOut, Kind::kNormMlp, Kind::kUp,
                              Kind::kQuantizeInner, Kind::kDown})
        if (kind != Kind::kQuantizeInner || weights_.shape.number == Number::kInt8)
          steps_.push_back({kind, layer});
    }
  }

  void go() {
    shares_.clear();
    for (const Step& step : steps_) {
      const bool owned = step.kind == Kind::kOwnKeys || step.kind == Kind::kOwnRest;
      shares_.push_back({path_.units(pass_, step), owned});
    }
    team_.run(shares_.data(), static_cast<int>(shares_.size()));
  }

  const Weights& weights_;
  const Path& path_;
  Workspace workspace_;
  Pass pass_{};
  std::vector<int32_t> position_, slot_;
  std::vector<int64_t> token_;
  std::vector<const float*> embedding_;
  std::vector<Tile> tiles_;
  std::vector<Step> steps_;
  std::vector<Share> shares_;
  Team team_;  // last: its threads end before what they use
};

}  // namespace modelsat

#endif
