// The experts of a layer that were chosen, and the shared one, over weights in 8 or 4 bits (quantized.h), on a CPU.
//
// As in experts.h, tokens are gathered expert by expert, and what experts add to a token is summed up in their order. In 8
// bits are the tokens and, each anew, what is between an expert's two products.

#pragma once

#include "experts.h"
#include "quantized.h"

namespace quantized {

struct Expert {
  Matrix gate, up, down;
  Expert of(int64_t expert) const { return {gate.of(expert), up.of(expert), down.of(expert)}; }
};

// What Python gives (dmax.kernels.cpu.quantized.ExpertsArguments).
template <typename T>
struct Experts {
  const T* x;            // (N, D)
  const float* weights;  // (N, routed)
  T* out;                // (N, D)
  Expert routed, shared;  // a stack; one, or none at all
  int64_t tokens, num_routed;
};

// One expert's tokens; `rows` are all tokens in 8 bits.
template <typename T>
void run_task(const Experts<T>& given, const experts::Task& task, const int64_t* tokens, const Rows& rows, float* parts) {
  static thread_local Rows hidden;
  static thread_local std::vector<Row> own;
  static thread_local std::vector<float> gate_up;
  const bool chosen = task.expert < given.num_routed;
  const Expert expert = chosen ? given.routed.of(task.expert) : given.shared;
  const int64_t count = task.last - task.first, width = expert.gate.outputs, size = expert.down.outputs;
  own.resize(count);
  for (int64_t i = 0; i < count; ++i) own[i] = rows[tokens[task.first + i]];
  gate_up.resize(experts::kRowsOfATask * 2 * width);
  multiply(own.data(), count, expert.gate, 0, width, gate_up.data(), 2 * width);
  multiply(own.data(), count, expert.up, 0, width, gate_up.data() + width, 2 * width);
  hidden.fit(count, width, expert.down.group);
  for (int64_t i = 0; i < count; ++i) {
    float* const gates = gate_up.data() + i * 2 * width;
    for (int64_t f = 0; f < width; f += kLanes)
      store(gates + f, experts::silu(load<Floats>(gates + f)) * load<Floats>(gates + width + f));
    hidden.round(i, gates);
    own[i] = hidden[i];
    if (chosen) own[i].scale *= given.weights[tokens[task.first + i] * given.num_routed + task.expert];
  }
  multiply(own.data(), count, expert.down, 0, size, parts + task.first * size, size);
}

template <typename T>
void run_experts(const Experts<T>& given) {
  static thread_local experts::Plan kept_plan;
  static thread_local std::vector<float> kept_parts;
  static thread_local Rows for_routed, for_shared;
  experts::Plan& plan = kept_plan;
  const Matrix& first = given.routed.gate;
  const int64_t size = first.inputs;
  const bool has_shared = given.shared.gate.outputs > 0, is_alike = given.shared.gate.group == first.group;
  plan.make(given.weights, {given.tokens, size, first.outputs, given.num_routed, given.num_routed + has_shared});
  kept_parts.resize(std::max(kept_parts.size(), plan.tokens.size() * size));
  float* const parts = kept_parts.data();
  Rows &of_routed = for_routed, &of_shared = is_alike ? for_routed : for_shared;
  for_routed.fit(given.tokens, size, first.group);
  if (has_shared && !is_alike) for_shared.fit(given.tokens, size, given.shared.gate.group);
  team::run_rows(given.tokens, [&](int64_t token) {
    of_routed.round(token, given.x + token * size);
    if (has_shared && !is_alike) of_shared.round(token, given.x + token * size);
  });
  team::run((int64_t)plan.tasks.size(), 1, [&](int64_t t) {
    const experts::Task& task = plan.tasks[t];
    run_task(given, task, plan.tokens.data(), task.expert < given.num_routed ? of_routed : of_shared, parts);
  });
  team::run_rows(given.tokens, [&](int64_t token) {
    const int64_t* const places = plan.places.data() + token * plan.most;
    for (int64_t d = 0; d < size; d += kLanes) {
      Floats sum = all(0);
      for (int64_t i = 0; i < plan.counts[token]; ++i) sum += load<Floats>(parts + places[i] * size + d);
      Kind<T>::put(given.out + token * size + d, sum);
    }
  });
}

}  // namespace quantized
