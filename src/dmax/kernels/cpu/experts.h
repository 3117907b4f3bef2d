// The experts of a layer that were chosen, and the shared one, on a CPU.
//
// Tokens are gathered expert by expert; what an expert adds to a token is computed by itself, and the parts are summed up
// in the order of the experts. So what a token gets depends neither on the other tokens nor on who computes what.
//
// Letters: N tokens, D hidden, E experts (the shared one's parts come last), F expert width.

#pragma once

#include <vector>

#include "team.h"
#include "vectors.h"

namespace experts {

constexpr int64_t kRowsOfATask = 48;

struct Sizes {
  int64_t tokens, hidden, width, routed, all;  // experts that are chosen; those and the parts of the shared one
};

struct Task {
  int64_t expert, first, last;  // rows of the expert's list
};

// Which tokens each expert has, one list behind the other, and which places of the lists are a token's.
struct Plan {
  std::vector<int64_t> tokens, places, counts;
  std::vector<Task> tasks;
  int64_t most;  // places of a token

  void make(const float* weights, const Sizes& n) {
    most = n.all;
    places.resize(n.tokens * most);
    counts.assign(n.tokens, 0);
    tokens.clear();
    tasks.clear();
    for (int64_t expert = 0; expert < n.all; ++expert) {
      const int64_t begin = (int64_t)tokens.size();
      for (int64_t token = 0; token < n.tokens; ++token) {
        if (expert < n.routed && weights[token * n.routed + expert] == 0) continue;
        places[token * most + counts[token]++] = (int64_t)tokens.size();
        tokens.push_back(token);
      }
      const int64_t end = (int64_t)tokens.size();
      for (int64_t row = begin; row < end; row += kRowsOfATask)
        tasks.push_back({expert, row, std::min(row + kRowsOfATask, end)});
    }
    // The largest first, so that no thread is left with one while the others wait.
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const Task& a, const Task& b) { return a.last - a.first > b.last - b.first; });
  }
};

inline Floats silu(Floats x) {
  const Floats size = x < 0.0f ? -x : x, small = exp_of_negative(-size);
  return x * (x < 0.0f ? small : all(1)) / (1.0f + small);
}

template <typename T>
struct Layer {
  const T* x;
  const float* weights;           // (N, routed)
  const uint32_t *gate_up, *down;  // E times (D / per word, 2 F) and (F / per word, D), in panels of words
};

template <typename T>
void run_task(const Task& task, const Plan& plan, const Layer<T>& layer, const Sizes& n, float* parts) {
  static thread_local std::vector<uint32_t> rows, hidden;
  static thread_local std::vector<float> gate_up;
  const int64_t count = task.last - task.first;
  const int64_t in_words = n.hidden / Kind<T>::per_word, mid_words = n.width / Kind<T>::per_word;
  const int64_t* const tokens = plan.tokens.data() + task.first;
  const bool chosen = task.expert < n.routed;
  const uint32_t* x = reinterpret_cast<const uint32_t*>(layer.x);
  hidden.resize(kRowsOfATask * mid_words);
  gate_up.resize(kRowsOfATask * 2 * n.width);
  if (chosen) {
    rows.resize(kRowsOfATask * in_words);
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(rows.data() + i * in_words, x + tokens[i] * in_words, n.hidden * sizeof(T));
    x = rows.data();
  } else {
    x += tokens[0] * in_words;  // the shared one has them all, in their order
  }
  multiply_panels<T>({x, in_words}, layer.gate_up + task.expert * in_words * 2 * n.width, in_words, gate_up.data(),
                     2 * n.width, count, 2 * n.width);
  for (int64_t i = 0; i < count; ++i) {
    const float weight = chosen ? layer.weights[tokens[i] * n.routed + task.expert] : 1.0f;
    const float* gates = gate_up.data() + i * 2 * n.width;
    T* to = reinterpret_cast<T*>(hidden.data() + i * mid_words);
    for (int64_t f = 0; f < n.width; f += kLanes)
      Kind<T>::put(to + f, silu(load<Floats>(gates + f)) * load<Floats>(gates + n.width + f) * weight);
  }
  multiply_panels<T>({hidden.data(), mid_words}, layer.down + task.expert * mid_words * n.hidden, mid_words,
                     parts + task.first * n.hidden, n.hidden, count, n.hidden);
}

// What is kept from call to call.
struct Shared {
  Plan plan;
  std::vector<float> parts;  // what experts add, in the order of their lists
};

// One layer; `emit` is given a token, a column and the 16 numbers of the layer's result that begin there.
template <typename T, typename Emit>
void run_layer(const Layer<T>& layer, const Sizes& n, Shared& shared, const Emit& emit) {
  const Plan& plan = shared.plan;
  shared.plan.make(layer.weights, n);
  shared.parts.resize(std::max(shared.parts.size(), plan.tokens.size() * n.hidden));
  const int64_t num_tasks = (int64_t)plan.tasks.size();
  float* const parts = shared.parts.data();
  team::run(num_tasks, 1, [&](int64_t t) { run_task<T>(plan.tasks[t], plan, layer, n, parts); });
  team::run_rows(n.tokens, [&](int64_t token) {
    const int64_t* const places = plan.places.data() + token * plan.most;
    for (int64_t d = 0; d < n.hidden; d += kLanes) {
      Floats sum = all(0);
      for (int64_t i = 0; i < plan.counts[token]; ++i) sum += load<Floats>(parts + places[i] * n.hidden + d);
      emit(token, d, sum);
    }
  });
}

// What Python gives (dmax.kernels.cpu.experts.ExpertsArguments).
template <typename T>
struct Arguments {
  Layer<T> layer;
  T* out;  // (N, D)
  Sizes sizes;
};

template <typename T>
void run(const Arguments<T>& given) {
  static thread_local Shared own;
  Shared& shared = own;
  T* const out = given.out;
  const int64_t hidden = given.sizes.hidden;
  run_layer<T>(given.layer, given.sizes, shared, [&](int64_t token, int64_t column, Floats result) {
    Kind<T>::put(out + token * hidden + column, result);
  });
}

}  // namespace experts
