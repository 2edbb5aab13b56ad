// The C ABI of the fused forward pass (forward.h): checks requests, shares them among passes, reads out.

#include "forward.h"

#include "../score.h"
#include "passes.h"
#include "paths.h"
#include "reference.h"
#include "self_test.h"

#include <algorithm>
#include <cstring>
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
void read_out(const RequestPart& part, const float* rows, int64_t stride, int64_t width,
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

void run_pass(Passes& passes, const Shape& s, const std::vector<RequestPart>& parts,
              const modelsat_forward_head& head) {
  passes.run(parts);
  const float* rows = passes.rows();
  for (const RequestPart& part : parts) {
    read_out(part, rows, s.padded_width, s.width, head);
    rows += (part.end - part.first) * s.padded_width;
  }
}

void run_all(Passes& passes, const Shape& s, const modelsat_forward_request* requests, int64_t batch,
             const modelsat_forward_head& head) {
  std::vector<RequestPart> parts;
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
