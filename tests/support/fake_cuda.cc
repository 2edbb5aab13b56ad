// A fake CUDA runtime for tests on machines without a GPU. It checks how the caller uses CUDA.
//
// Device memory is host memory, filled with NaN bits when it is allocated. Queued work runs as late as
// possible, when the host waits for it, so a result that is read too early, or a buffer that is
// overwritten too early, gives a wrong result. A copy must lie within one allocation on each side. The
// scoring kernel is its own CPU emulation, queued like everything else.

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define modelsat_rank_cuda emulated_rank
#define modelsat_gather_cuda emulated_gather
#include "score_cuda.cu"
#undef modelsat_rank_cuda
#undef modelsat_gather_cuda

namespace fake {

enum { kOk = 0, kInvalid = 1, kBadHandle = 400, kCaptured = 900, kBroken = 901 };

using Work = std::function<void()>;
using Graph = std::vector<Work>;

struct Stream {
  std::deque<Work> waiting;
  uint64_t queued = 0, done = 0;
  Graph* capture = nullptr;
};

struct Event {
  Stream* stream = nullptr;
  uint64_t at = 0;
};

std::recursive_mutex lock;
std::map<const char*, size_t> live;  // device and pinned memory
std::map<std::string, int> failures;
std::string capability = "89";
int handles = 0, launches = 0;  // streams, events and graphs that are not destroyed; graph launches
Stream* capturing = nullptr;

void drain(Stream& stream, uint64_t until) {
  while (stream.done < until) {
    Work work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    work();
    ++stream.done;
  }
}

int queue(Stream* stream, Work work) {
  if (!stream) return kBadHandle;
  if (stream->capture) {
    stream->capture->push_back(std::move(work));
  } else {
    stream->waiting.push_back(std::move(work));
    ++stream->queued;
  }
  return kOk;
}

bool inside(const void* pointer, size_t size) {
  const char* first = static_cast<const char*>(pointer);
  auto after = live.upper_bound(first);
  if (after == live.begin()) return false;
  --after;
  return first + size <= after->first + after->second;
}

int allocate(void** out, size_t size) {
  if (capturing) return kCaptured;
  char* memory = new char[size];
  memset(memory, 0xff, size);
  live[memory] = size;
  *out = memory;
  return kOk;
}

int release(void* pointer) {
  auto found = live.find(static_cast<char*>(pointer));
  if (found == live.end()) return kInvalid;
  delete[] found->first;
  live.erase(found);
  return kOk;
}

int failing(const char* name) {
  auto found = failures.find(name);
  if (found == failures.end()) return kOk;
  const int code = found->second;
  failures.erase(found);
  return code;
}

template <class T>
T* as(void* handle) { return static_cast<T*>(handle); }

}  // namespace fake

#define ENTER(name)                                           \
  std::lock_guard<std::recursive_mutex> guard(fake::lock);    \
  if (const int code = fake::failing(name)) return code

using fake::as;

extern "C" {

const char* cudaGetErrorString(int code) {
  return code < fake::kCaptured ? "a simulated failure" : "operation not permitted when stream is capturing";
}
int cudaGetLastError() { return 0; }
int cudaGetDeviceCount(int* count) { ENTER("cudaGetDeviceCount"); *count = 1; return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  ENTER("cudaDeviceGetAttribute");
  *value = attribute == 75 ? fake::capability[0] - '0' : fake::capability[1] - '0';
  return 0;
}

int cudaMalloc(void** out, size_t size) { ENTER("cudaMalloc"); return fake::allocate(out, size); }
int cudaMallocHost(void** out, size_t size) { ENTER("cudaMallocHost"); return fake::allocate(out, size); }
int cudaFree(void* pointer) { ENTER("cudaFree"); return fake::release(pointer); }
int cudaFreeHost(void* pointer) { ENTER("cudaFreeHost"); return fake::release(pointer); }

int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  ENTER("cudaMemcpyAsync");
  if (kind != 4 || !fake::inside(to, size) || !fake::inside(from, size)) return fake::kInvalid;
  return fake::queue(as<fake::Stream>(stream), [=] { memcpy(to, from, size); });
}
int cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                      size_t height, int kind, void* stream) {
  ENTER("cudaMemcpy2DAsync");
  if (kind != 4 || !height || width > to_pitch || width > from_pitch ||
      !fake::inside(to, to_pitch * (height - 1) + width) ||
      !fake::inside(from, from_pitch * (height - 1) + width))
    return fake::kInvalid;
  return fake::queue(as<fake::Stream>(stream), [=] {
    for (size_t i = 0; i < height; ++i)
      memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
             width);
  });
}
int cudaMemsetAsync(void* to, int byte, size_t size, void* stream) {
  ENTER("cudaMemsetAsync");
  if (!fake::inside(to, size)) return fake::kInvalid;
  return fake::queue(as<fake::Stream>(stream), [=] { memset(to, byte, size); });
}

int cudaStreamCreateWithFlags(void** out, unsigned) {
  ENTER("cudaStreamCreateWithFlags");
  *out = new fake::Stream;
  ++fake::handles;
  return 0;
}
int cudaStreamSynchronize(void* handle) {
  ENTER("cudaStreamSynchronize");
  auto* stream = as<fake::Stream>(handle);
  if (stream->capture) return fake::kCaptured;
  fake::drain(*stream, stream->queued);
  return 0;
}
int cudaStreamWaitEvent(void* stream, void* handle, unsigned) {
  ENTER("cudaStreamWaitEvent");
  const fake::Event event = *as<fake::Event>(handle);
  return fake::queue(as<fake::Stream>(stream), [=] {
    if (event.stream) fake::drain(*event.stream, event.at);
  });
}
int cudaStreamDestroy(void* stream) {
  ENTER("cudaStreamDestroy");
  delete as<fake::Stream>(stream);
  --fake::handles;
  return 0;
}

int cudaEventCreateWithFlags(void** out, unsigned) {
  ENTER("cudaEventCreateWithFlags");
  *out = new fake::Event;
  ++fake::handles;
  return 0;
}
int cudaEventRecord(void* event, void* stream) {
  ENTER("cudaEventRecord");
  *as<fake::Event>(event) = {as<fake::Stream>(stream), as<fake::Stream>(stream)->queued};
  return 0;
}
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
  ENTER("cudaEventElapsedTime");
  *milliseconds = 1;
  return 0;
}
int cudaEventDestroy(void* event) {
  ENTER("cudaEventDestroy");
  delete as<fake::Event>(event);
  --fake::handles;
  return 0;
}

int cudaStreamBeginCapture(void* handle, int) {
  ENTER("cudaStreamBeginCapture");
  fake::capturing = as<fake::Stream>(handle);
  fake::capturing->capture = new fake::Graph;
  return 0;
}
int cudaStreamEndCapture(void* handle, void** out) {
  std::lock_guard<std::recursive_mutex> guard(fake::lock);
  auto* stream = as<fake::Stream>(handle);
  if (!stream->capture) return fake::kBroken;
  *out = stream->capture;
  ++fake::handles;
  stream->capture = nullptr;
  fake::capturing = nullptr;
  return 0;
}
int cudaGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) {
  ENTER("cudaGraphInstantiateWithFlags");
  *out = new fake::Graph(*as<fake::Graph>(graph));
  ++fake::handles;
  return 0;
}
int cudaGraphLaunch(void* graph, void* stream) {
  ENTER("cudaGraphLaunch");
  ++fake::launches;
  for (const fake::Work& work : *as<fake::Graph>(graph)) fake::queue(as<fake::Stream>(stream), work);
  return 0;
}
int cudaGraphDestroy(void* graph) {
  ENTER("cudaGraphDestroy");
  delete as<fake::Graph>(graph);
  --fake::handles;
  return 0;
}
int cudaGraphExecDestroy(void* graph) { return cudaGraphDestroy(graph); }

int modelsat_rank_cuda(const void* hidden, int32_t dtype, int64_t batch, int64_t candidates,
                       int64_t width, const float* weight, float eps, float scale, float offset,
                       const uint8_t* allowed, const float* penalty, int64_t ranked,
                       float* probability, int32_t* order, void* stream) {
  ENTER("modelsat_rank_cuda");
  return fake::queue(as<fake::Stream>(stream), [=] {
    emulated_rank(hidden, dtype, batch, candidates, width, weight, eps, scale, offset, allowed,
                  penalty, ranked, probability, order, nullptr);
  });
}
int modelsat_gather_cuda(const float* table, int64_t width, const int32_t* rows, int64_t count,
                         float* out, void* stream) {
  ENTER("modelsat_gather_cuda");
  return fake::queue(as<fake::Stream>(stream),
                     [=] { emulated_gather(table, width, rows, count, out, nullptr); });
}

// For the fake TensorRT: queues a Python function.
int fake_queue(void* stream, void (*function)(int64_t), int64_t argument) {
  std::lock_guard<std::recursive_mutex> guard(fake::lock);
  return fake::queue(as<fake::Stream>(stream), [=] { function(argument); });
}
// Makes the next call of the named function return `code` without doing anything.
void fake_fail(const char* name, int code) { fake::failures[name] = code; }
void fake_capability(const char* digits) { fake::capability = digits; }
int fake_live() { return int(fake::live.size()) + fake::handles; }
int fake_launches() { return fake::launches; }
int fake_capturing() { return fake::capturing != nullptr; }
}
