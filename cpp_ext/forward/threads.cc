// The threads of one handle (threads.h).

#include "threads.h"

#include <pthread.h>

namespace modelsat {
namespace {

// Waiting threads poll this often, some 20 to 50 us, before they sleep: longer than most steps differ,
// and short enough to leave the core to a neighbour that needs it.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

uint64_t tagged(uint32_t tag, uint32_t low) { return uint64_t{tag} << 32 | low; }
uint32_t tag_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
uint32_t low_of(uint64_t word) { return static_cast<uint32_t>(word); }

constexpr uint32_t kOwned = 1u << 31, kTaken = 0xffff;

}  // namespace

Team::Team(Job& job, int threads, int max_steps, bool affinity)
    : job_(job),
      threads_(threads),
      progress_(static_cast<size_t>(max_steps) + 1),
      affinity_(affinity && threads > 1 && !sched_getaffinity(0, sizeof allowed_, &allowed_) &&
                CPU_COUNT(&allowed_) >= threads) {
  try {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back(&Team::help, this, i);
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stop_ = true;
  tag_.fetch_add(1, std::memory_order_release);
  tag_.notify_all();
  for (auto& helper : helpers_) helper.join();
}

void Team::run(const Share* steps, int count) {
  const uint32_t tag = tag_.load(std::memory_order_relaxed) + 1;
  for (int i = 0; i <= count; ++i) {
    const bool end = i == count;
    const uint32_t units = end ? 0 : static_cast<uint32_t>(steps[i].units);
    const uint32_t owned = !end && steps[i].owned ? kOwned : 0;
    progress_[i].done.store(tagged(tag, 0), std::memory_order_relaxed);
    progress_[i].taken.store(tagged(tag, owned | units << 16), std::memory_order_release);
  }
  if (affinity_) keep_off(sched_getcpu());
  tag_.store(tag, std::memory_order_release);
  if (threads_ > 1) tag_.notify_all();
  work(0, tag);
}

void Team::help(int thread) {
  for (uint32_t seen = 0;;) {
    tag_.wait(seen, std::memory_order_acquire);
    seen = tag_.load(std::memory_order_acquire);
    if (stop_) return;
    work(thread, seen);
  }
}

void Team::work(int thread, uint32_t tag) {
  job_.enter(thread);
  for (int i = 0; step(i, thread, tag); ++i) {
  }
  job_.leave(thread);
}

// Does the thread's part of a step. True when the step is done, false if it is the end of the pass or
// belongs to a later one.
bool Team::step(int index, int thread, uint32_t tag) {
  Progress& p = progress_[index];
  uint64_t word = p.taken.load(std::memory_order_acquire);
  uint32_t units;
  for (;;) {
    if (tag_of(word) != tag) return false;
    const uint32_t taken = low_of(word) & kTaken;
    units = low_of(word) >> 16 & 0x7fff;
    if (!units) return false;
    uint32_t unit = taken;
    if (low_of(word) & kOwned) {
      const uint32_t free = ((1u << units) - 1) & ~taken;
      if (!free) break;
      uint32_t own = 0;
      for (int i = thread; i < kMaxOwned; i += threads_) own |= 1u << i;
      unit = static_cast<uint32_t>(__builtin_ctz(free & own ? free & own : free));
      if (!p.taken.compare_exchange_weak(word, word | 1u << unit, std::memory_order_acq_rel)) continue;
    } else {
      if (taken >= units) break;
      if (!p.taken.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
    }
    job_.unit(index, static_cast<int>(unit), thread);
    if (low_of(p.done.fetch_add(1, std::memory_order_acq_rel)) + 1 == units && threads_ > 1)
      p.done.notify_all();
    word = p.taken.load(std::memory_order_acquire);
  }
  for (int spins = 0;; ++spins) {
    const uint64_t done = p.done.load(std::memory_order_acquire);
    if (tag_of(done) != tag) return false;
    if (low_of(done) == units) return true;
    if (spins < kSpins) {
      pause();
    } else {
      p.done.wait(done, std::memory_order_acquire);
    }
  }
}

void Team::keep_off(int core) {
  if (core < 0 || core == kept_off_) return;
  kept_off_ = core;
  cpu_set_t others = allowed_;
  CPU_CLR(core, &others);
  for (auto& helper : helpers_)
    pthread_setaffinity_np(helper.native_handle(), sizeof others, &others);
}

}  // namespace modelsat
