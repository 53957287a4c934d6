#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace s2v {
namespace {

struct Job {
  int64_t items, grain;
  const std::function<void(int64_t, int64_t)>* body;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= items) return;
      try {
        (*body)(begin, begin + grain < items ? begin + grain : items);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(items, std::memory_order_relaxed);  // the rest is not wanted
      }
    }
  }
};

// Threads wait for a job, join it while there are seats, and leave it before the caller returns. A thread that wakes up
// late finds no job: the caller never waits for one that has not started.
class Pool {
 public:
  const pid_t owner = getpid();
  std::mutex in_use;

  void run(Job& job, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (started_ < helpers) {
        try {
          std::thread([this] { loop(); }).detach();
        } catch (const std::system_error&) {
          break;  // no more threads to be had: fewer do the work
        }
        ++started_;
      }
      job_ = &job;
      seats_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    left_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && seats_ > 0; });
      Job* job = job_;
      --seats_;
      ++active_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) left_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  Job* job_ = nullptr;
  int seats_ = 0, active_ = 0, started_ = 0;
};

// Never destroyed: its threads may outlive static destruction. A forked child has none of its parent's threads, and the
// parent's locks may be held for ever there, so it gets a pool of its own.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  Pool* existing = current.load();
  if (existing != nullptr && existing->owner == getpid()) return *existing;
  Pool* fresh = new Pool;
  if (current.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *current.load();
}

}  // namespace

int available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? int(count) : 1;
}

void parallel_for(int64_t items, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body) {
  if (items <= 0) return;
  Job job;
  job.items = items;
  job.grain = grain;
  job.body = &body;
  const int64_t ranges = (items + grain - 1) / grain;
  int64_t wanted = threads > 0 ? threads : available_threads();
  if (wanted > ranges) wanted = ranges;
  if (wanted > 1) {
    Pool& shared = pool();
    std::unique_lock<std::mutex> lock(shared.in_use, std::try_to_lock);
    if (lock.owns_lock()) shared.run(job, int(wanted - 1));
    else job.work();
  } else {
    job.work();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace s2v
