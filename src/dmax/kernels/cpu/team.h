// A team of threads that share the loops of a call, and never wait for one that does not run.
//
// A loop is cut into parts, and whoever runs takes the next one. The thread that called takes parts like all others, so
// a loop ends even if nobody comes to help: all it can have to wait for is a part that another thread has begun. Threads
// wait actively for some microseconds, as long as a part takes or Python needs between two calls; then they sleep, which
// lets the system run a thread of ours, or anybody's, on their core. With a wait at a barrier for all threads, as OpenMP
// has it, one that the system has put aside for another process costs its whole time slice, at every loop. Where a part
// was left lying for long, because there are more processes than cores, the caller works alone for a while.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace team {

inline std::atomic<int64_t> threads{1};  // of a team, the calling one included
inline std::atomic<int64_t> spin_nanoseconds{0};

using Clock = std::chrono::steady_clock;
using Body = void (*)(const void* context, int64_t index);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Wait actively until something holds, but not for long; tells whether it does.
template <typename Ready>
bool spin(const Ready& ready) {
  const auto until = Clock::now() + std::chrono::nanoseconds(spin_nanoseconds.load(std::memory_order_relaxed));
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < until);
  return ready();
}

// A part that takes others this much longer than us was put aside with its thread. Working alone for many times as long
// keeps what stalls cost to a few hundredths of the time.
constexpr int64_t kPartsOfAStall = 4, kAloneAfterAStall = 20;
constexpr std::chrono::microseconds kShortestStall{200};

class Team {
  static constexpr uint64_t kIndex = 0xffffffffu;
  // The number of the loop (upper half), and the next index that nobody has taken.
  std::atomic<uint64_t> next_{0};
  // The loop. While it is written, the last one's indices are all taken.
  std::atomic<Body> body_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int64_t> count_{0}, grain_{1}, done_{0};
  std::atomic<bool> busy_{false}, workers_asleep_{false}, caller_asleep_{false};
  std::mutex mutex_;
  std::condition_variable workers_, caller_;
  int64_t started_ = 0;
  Clock::time_point alone_until_{};

  uint64_t number() const { return next_.load() >> 32; }

  // Take parts of a loop until there are none; tells how many.
  int64_t help(uint64_t number) {
    uint64_t word = next_.load();
    for (int64_t taken = 0;;) {
      const Body body = body_.load();
      const void* const context = context_.load();
      const int64_t count = count_.load(), grain = grain_.load();
      const int64_t first = (int64_t)(word & kIndex);
      if (word >> 32 != number || first >= count) return taken;
      // If this succeeds, nobody has begun to write another loop since, and what was read is of this one.
      if (!next_.compare_exchange_weak(word, word + grain)) continue;
      const int64_t last = std::min(first + grain, count);
      for (int64_t i = first; i < last; ++i) body(context, i);
      if (done_.fetch_add(last - first) + last - first == count && caller_asleep_.load()) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        caller_.notify_one();
      }
      word = next_.load();
      ++taken;
    }
  }

  // Wait for the parts that others have begun.
  void finish(int64_t count, Clock::duration of_a_part) {
    const auto is_done = [&] { return done_.load() == count; };
    const auto began = Clock::now();
    if (spin(is_done)) return;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      caller_asleep_.store(true);
      caller_.wait(lock, is_done);
      caller_asleep_.store(false);
    }
    const auto now = Clock::now();
    const Clock::duration waited = now - began;
    if (waited > kPartsOfAStall * of_a_part + kShortestStall) alone_until_ = now + kAloneAfterAStall * waited;
  }

  void work(int64_t index) {
    uint64_t seen = 0;
    for (;;) {
      if (!spin([&] { return number() != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
          workers_asleep_.store(true);
          if (number() != seen) break;
          workers_.wait(lock);
        }
      }
      seen = number();
      if (index < threads.load(std::memory_order_relaxed) - 1) help(seen);
    }
  }

  void start() {
    for (; started_ < threads.load(std::memory_order_relaxed) - 1; ++started_) {
      try {
        std::thread([this, index = started_] { work(index); }).detach();
      } catch (const std::system_error&) {  // the system gives no more; those that are there have to do
        return;
      }
    }
  }

 public:
  // Run a loop; false, and nothing is done, if another call has the team or it does not pay.
  bool share(int64_t count, int64_t grain, Body body, const void* context) {
    if (busy_.exchange(true)) return false;
    const auto began = Clock::now();
    if (began < alone_until_) {
      busy_.store(false);
      return false;
    }
    start();
    const uint64_t own = (number() + 1) & kIndex;
    next_.fetch_or(kIndex);
    body_.store(body);
    context_.store(context);
    count_.store(count);
    grain_.store(grain);
    done_.store(0);
    next_.store(own << 32);
    if (workers_asleep_.load()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        workers_asleep_.store(false);
      }
      workers_.notify_all();
    }
    const int64_t taken = help(own);
    finish(count, (Clock::now() - began) / std::max<int64_t>(taken, 1));
    busy_.store(false);
    return true;
  }

  // The team of this process. It is never taken apart, as its threads run to the end of the process.
  static Team& own() {
    static std::atomic<Team*> current{new Team};
    static const int forked = pthread_atfork(nullptr, nullptr, [] { current.store(new Team); });  // threads stay behind
    (void)forked;
    return *current.load();
  }
};

// Call body(i) for all i below count, in parts of so many.
template <typename F>
void run(int64_t count, int64_t grain, const F& body) {
  const Body call = [](const void* context, int64_t index) { (*static_cast<const F*>(context))(index); };
  const bool is_shared = count > grain && threads.load(std::memory_order_relaxed) > 1;
  if (is_shared && Team::own().share(count, grain, call, &body)) return;
  for (int64_t i = 0; i < count; ++i) body(i);
}

// The same for indices that take little time each: in parts that are worth handing out.
template <typename F>
void run_rows(int64_t count, const F& body) {
  const int64_t parts = 4 * threads.load(std::memory_order_relaxed);
  run(count, std::max<int64_t>(8, (count + parts - 1) / parts), body);
}

}  // namespace team
