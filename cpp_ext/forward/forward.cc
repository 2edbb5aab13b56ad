// The C ABI of the fused forward pass (forward.h): checks requests, cuts them into passes, reads out.

#include "forward.h"

#include "../score.h"
#include "paths.h"
#include "self_test.h"
#include "reference.h"
#include "threads.h"
#include "workspace.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <system_error>
#include <vector>

using namespace modelsat;

namespace {

// Rows of one pass, unless a single request has more tokens. More would fall out of the second cache.
constexpr int64_t kPassRows = 1024;
// Candidates of a request beyond this take further passes, which bounds memory.
constexpr int64_t kPassCandidates = 512;
constexpr int kGroupRows = 256;  // 112 took 16 % longer at 290 rows: each group reads all weights

// The part of a request that is in a pass: some of its candidates, the null candidate being number 0, and
// its tokens unless an earlier pass had them.
struct Part {
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

  // Computes the parts' rows before the final norm; row() finds them.
  void run(const std::vector<Part>& parts) {
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
  void lay_out(const std::vector<Part>& parts) {
    const Shape& s = weights_.shape;
    pass_ = Pass{};
    pass_.weights = &weights_;
    pass_.threads = team_.threads();
    position_.clear();
    slot_.clear();
    token_.clear();
    embedding_.clear();
    for (const Part& part : parts) {
      const modelsat_forward_request& r = *part.request;
      for (int64_t i = part.first; i < part.end; ++i) {
        embedding_.push_back(i ? r.table + r.rows[i - 1] * s.width : nullptr);
        position_.push_back(static_cast<int32_t>(r.length));
        slot_.push_back(-1);
      }
    }
    pass_.candidates = static_cast<int>(embedding_.size());
    int64_t blocks = s.prompt_blocks(), longest = 0;
    for (const Part& part : parts) {
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
  void add_tiles(const std::vector<Part>& parts) {
    const Shape& s = weights_.shape;
    tiles_.clear();
    for (const bool candidates : {true, false}) {
      int row = candidates ? 0 : pass_.candidates;
      int64_t key_block = s.prompt_blocks();
      for (const Part& part : parts) {
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

}  // namespace

struct modelsat_forward {
  Weights weights;
  std::unique_ptr<Passes> passes;  // null for the scalar reference
  const char* path = kScalar;
  std::mutex mutex;
};

namespace {

int64_t tiles_of(int64_t candidates, int64_t tokens) {
  return (candidates + kTile - 1) / kTile + (tokens + kTile - 1) / kTile;
}

// Tiles of a pass: a step of attention has a unit for each tile and head, and groups of rows cut some tiles.
int64_t most_tiles(const Shape& s) { return kMaxUnits / s.heads - 2 * kMaxGroups; }

int check(const Weights& w, const modelsat_forward_request& r) {
  const Shape& s = w.shape;
  if (r.length < s.prompt || r.count < 0 || r.table_rows < 0) return MODELSAT_FORWARD_BAD_SIZE;
  if (r.length >= s.positions) return MODELSAT_FORWARD_TOO_LONG;
  if (r.count >= kMaxUnits * int64_t{kRowChunk}) return MODELSAT_FORWARD_BAD_SIZE;
  if (tiles_of(kPassCandidates, r.length - s.prompt) > most_tiles(s) ||
      r.length + kPassCandidates > kMaxUnits * int64_t{kRowChunk})
    return MODELSAT_FORWARD_BAD_SIZE;
  if ((r.length && !r.tokens) || !r.null_row) return MODELSAT_FORWARD_NULL_POINTER;
  if (r.count && (!r.table || !r.rows || !r.probability)) return MODELSAT_FORWARD_NULL_POINTER;
  for (int64_t i = 0; i < r.length; ++i)
    if (r.tokens[i] < 0 || r.tokens[i] >= s.vocabulary) return MODELSAT_FORWARD_BAD_TOKEN;
  for (int i = 0; i < s.prompt; ++i)
    if (r.tokens[i] != w.prompt[i]) return MODELSAT_FORWARD_BAD_PROMPT;
  for (int64_t i = 0; i < r.count; ++i)
    if (r.rows[i] < 0 || r.rows[i] >= r.table_rows) return MODELSAT_FORWARD_BAD_ROW;
  return MODELSAT_FORWARD_OK;
}

// Rows (part.end - part.first), `stride` floats apart, into the request's results.
void read_out(const Part& part, const float* rows, int64_t stride, int64_t width,
              const modelsat_forward_head& head) {
  const modelsat_forward_request& r = *part.request;
  const auto bytes = static_cast<size_t>(width) * sizeof(float);
  for (int64_t i = part.first; i < part.end; ++i, rows += stride) {
    if (i == 0) {
      std::memcpy(r.null_row, rows, bytes);
      continue;
    }
    modelsat_score(rows, MODELSAT_FP32, 1, 1, width, head.weight, head.eps, head.scale, head.offset,
                   r.probability + i - 1);
    if (r.hidden) std::memcpy(r.hidden + (i - 1) * width, rows, bytes);
  }
}

void run_pass(Passes& passes, const Shape& s, const std::vector<Part>& parts,
              const modelsat_forward_head& head) {
  passes.run(parts);
  const float* rows = passes.rows();
  for (const Part& part : parts) {
    read_out(part, rows, s.padded_width, s.width, head);
    rows += (part.end - part.first) * s.padded_width;
  }
}

void run_all(Passes& passes, const Shape& s, const modelsat_forward_request* requests, int64_t batch,
             const modelsat_forward_head& head) {
  std::vector<Part> parts;
  int64_t rows = 0, tiles = 0;
  for (int64_t i = 0; i < batch; ++i) {
    const modelsat_forward_request& r = requests[i];
    const int64_t tokens = r.length - s.prompt, candidates = 1 + r.count, own = tokens + candidates;
    const int64_t own_tiles = tiles_of(candidates, tokens);
    if (!parts.empty() && (rows + own > kPassRows || tiles + own_tiles > most_tiles(s) ||
                           candidates > kPassCandidates)) {
      run_pass(passes, s, parts, head);
      parts.clear();
      rows = tiles = 0;
    }
    if (candidates <= kPassCandidates) {
      parts.push_back({&r, 0, candidates, true});
      rows += own;
      tiles += own_tiles;
      continue;
    }
    for (int64_t first = 0; first < candidates; first += kPassCandidates) {
      const int64_t end = first + kPassCandidates < candidates ? first + kPassCandidates : candidates;
      run_pass(passes, s, {{&r, first, end, first == 0}}, head);
    }
  }
  if (!parts.empty()) run_pass(passes, s, parts, head);
}

void run_reference(const Weights& weights, const modelsat_forward_request* requests, int64_t batch,
                   const modelsat_forward_head& head) {
  const int64_t width = weights.shape.width;
  for (int64_t i = 0; i < batch; ++i) {
    const modelsat_forward_request& r = requests[i];
    std::vector<const float*> embeddings{nullptr};
    for (int64_t k = 0; k < r.count; ++k) embeddings.push_back(r.table + r.rows[k] * width);
    const auto rows = reference_rows(weights, r.tokens, r.length, embeddings);
    for (int64_t k = 0; k <= r.count; ++k)
      read_out({&r, k, k + 1, true}, rows[static_cast<size_t>(k)].data(), width, width, head);
  }
}

// Runs f, which returns a code, and turns what it throws into one.
template <class F>
int guarded(F f) noexcept {
  try {
    return f();
  } catch (const std::exception&) {  // std::bad_alloc; std::system_error of a thread that cannot start
    return MODELSAT_FORWARD_NO_MEMORY;
  }
}

}  // namespace

extern "C" int32_t modelsat_forward_abi_version(void) noexcept {
  return MODELSAT_FORWARD_ABI_VERSION;
}

extern "C" const char* modelsat_forward_paths(void) noexcept { return path_names(); }

extern "C" int modelsat_forward_open(const char* file, const char* path, int32_t threads, int32_t flags,
                                     modelsat_forward** handle) noexcept {
  if (!file || !handle) return MODELSAT_FORWARD_NULL_POINTER;
  if (threads < 1 || threads > kMaxThreads) return MODELSAT_FORWARD_BAD_SIZE;
  return guarded([&] {
    auto opened = std::make_unique<modelsat_forward>();
    const bool share = flags & MODELSAT_FORWARD_SHARE_WEIGHTS;
    if (const int code = opened->weights.open(file, share)) return code;
    if (!path || std::strcmp(path, kScalar)) {
      const Path* found = find_path(path, opened->weights.shape.number);
      if (!found) return int{MODELSAT_FORWARD_BAD_PATH};
      opened->path = found->name;
      opened->passes = std::make_unique<Passes>(opened->weights, *found, threads,
                                                !(flags & MODELSAT_FORWARD_FREE_AFFINITY));
    }
    *handle = opened.release();
    return int{MODELSAT_FORWARD_OK};
  });
}

extern "C" void modelsat_forward_close(modelsat_forward* handle) noexcept { delete handle; }

extern "C" int modelsat_forward_describe(const modelsat_forward* handle,
                                         modelsat_forward_info* info) noexcept {
  if (!handle || !info) return MODELSAT_FORWARD_NULL_POINTER;
  const Shape& s = handle->weights.shape;
  *info = {s.width,      s.layers,
           s.prompt,     s.positions,
           handle->passes ? handle->passes->threads() : 1, handle->path,
           s.number == Number::kInt8 ? "int8" : "bf16"};
  return MODELSAT_FORWARD_OK;
}

extern "C" int modelsat_forward_run(modelsat_forward* handle, const modelsat_forward_request* requests,
                                    int64_t batch, const modelsat_forward_head* head) noexcept {
  if (!handle || !head || !head->weight || (batch && !requests)) return MODELSAT_FORWARD_NULL_POINTER;
  if (batch < 0) return MODELSAT_FORWARD_BAD_SIZE;
  for (int64_t i = 0; i < batch; ++i)
    if (const int code = check(handle->weights, requests[i])) return code;
  return guarded([&] {
    const std::lock_guard<std::mutex> lock(handle->mutex);
    if (handle->passes) {
      run_all(*handle->passes, handle->weights.shape, requests, batch, *head);
    } else {
      run_reference(handle->weights, requests, batch, *head);
    }
    return int{MODELSAT_FORWARD_OK};
  });
}

extern "C" int modelsat_forward_test(modelsat_forward* handle) noexcept {
  if (!handle) return MODELSAT_FORWARD_NULL_POINTER;
  return guarded([&] {
    const std::lock_guard<std::mutex> lock(handle->mutex);
    if (!handle->passes) return int{MODELSAT_FORWARD_OK};
    Weights& weights = handle->weights;
    return self_test(weights, [&](const modelsat_forward_request& r, const modelsat_forward_head& head) {
      const int code = check(weights, r);
      if (!code) run_all(*handle->passes, weights.shape, &r, 1, head);
      return code;
    });
  });
}

extern "C" int modelsat_forward_products(modelsat_forward* handle, int64_t tokens,
                                         int64_t candidates) noexcept {
  if (!handle || !handle->passes) return MODELSAT_FORWARD_NULL_POINTER;
  if (tokens < 0 || candidates < 1 || tokens + candidates > kPassRows) return MODELSAT_FORWARD_BAD_SIZE;
  return guarded([&] {
    const std::lock_guard<std::mutex> lock(handle->mutex);
    handle->passes->run_products(tokens, candidates);
    return int{MODELSAT_FORWARD_OK};
  });
}
