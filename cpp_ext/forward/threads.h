// The threads of one handle, and how they share the steps of a pass.
//
// A pass is a list of steps, and a step is a number of units. Every thread goes through the steps in
// order, takes units that no other thread has begun, and goes on when all units of the step are *done*. A step
// does not wait until all threads have arrived: one that the system has taken off its core holds up
// nothing but the unit that it holds. (A barrier of all threads took 19 ms in place of 3 next to a busy
// neighbour.)
//
// So a late thread may still look at steps when the next pass has begun. It therefore reads nothing of a
// pass but the atomic words below, which carry the pass's tag, until it has taken a unit; and while it
// holds a unit, the pass cannot end.
#ifndef MODELSAT_FORWARD_THREADS_H
#define MODELSAT_FORWARD_THREADS_H

#include <atomic>
#include <cstdint>
#include <sched.h>
#include <thread>
#include <vector>

namespace modelsat {

// What the threads run. unit() is called by any thread, enter() and leave() around a thread's part.
class Job {
 public:
  virtual ~Job() = default;
  virtual void enter(int thread) = 0;
  virtual void unit(int step, int unit, int thread) = 0;
  virtual void leave(int thread) = 0;
};

// Units of a step. owned: unit i belongs to thread i modulo the number of threads, which has its rows in its
// cache; a thread begins with its own units and then takes others.
struct Share {
  int units;
  bool owned;
};

constexpr int kMaxThreads = 256;
constexpr int kMaxUnits = 0x7fff;
constexpr int kMaxOwned = 15;  // units of an owned step

class Team {
 public:
  // Starts threads - 1 helpers, which sleep between passes. max_steps: of any pass. affinity: keep
  // helpers off the caller's core, where Linux may wake and leave them.
  Team(Job& job, int threads, int max_steps, bool affinity);
  ~Team();

  int threads() const { return threads_; }

  // Runs one pass; returns when all of its steps are done.
  void run(const Share* steps, int count);

 private:
  // taken: tag << 32 | owned << 31 | units << 16 | units taken (owned: a bit for each). done: tag << 32 |
  // units done. A step of 0 units ends the pass.
  struct alignas(64) Progress {
    std::atomic<uint64_t> taken{0}, done{0};
  };

  void help(int thread);
  void work(int thread, uint32_t tag);
  bool step(int index, int thread, uint32_t tag);
  void keep_off(int core);
  void stop();

  Job& job_;
  const int threads_;
  std::vector<Progress> progress_;
  alignas(64) std::atomic<uint32_t> tag_{0};
  std::atomic<bool> stop_{false};
  cpu_set_t allowed_;
  bool affinity_;
  int kept_off_ = -1;  // the core that helpers keep off
  std::vector<std::thread> helpers_;
};

}  // namespace modelsat

#endif
