// Two callers hand out loops of random sizes, and count what was not done exactly once; run under ThreadSanitizer.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "team.h"

int main(int, char** arguments) {
  team::threads = std::atoi(arguments[1]);
  team::spin_nanoseconds = std::atol(arguments[2]);
  std::atomic<int64_t> wrong{0};
  const auto call = [&](uint32_t random) {
    std::vector<int64_t> found(1000);
    for (int64_t round = 0; round < 3000; ++round) {
      random = random * 1664525u + 1013904223u;
      const int64_t count = 1 + (random >> 8) % 1000, grain = 1 + (random >> 20) % 7;
      std::fill_n(found.begin(), count, 0);
      team::run(count, grain, [&](int64_t i) { found[i] += i + round; });
      for (int64_t i = 0; i < count; ++i) wrong += found[i] != i + round;
    }
  };
  std::thread first(call, 1), second(call, 2);
  first.join();
  second.join();
  std::printf("%lld\n", (long long)wrong.load());
  std::fflush(stdout);
  std::_Exit(0);  // the team's threads are still there
}
