// Which experts a token is sent to, and how much each counts: what dmax.models.moe.weigh_experts does, token by token.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace routing {

struct Rule {
  int64_t experts, groups, groups_kept, chosen;
  float scale;
  int64_t softmax, normalize;  // flags: scores are shares of all experts'; weights add up to `scale`
};

// The `kept` largest of `count` numbers, ties going to the first: others become the lowest number there is.
inline void keep_largest(float* numbers, int64_t count, int64_t kept, std::vector<bool>& taken) {
  taken.assign(count, false);
  for (int64_t found = 0; found < kept; ++found) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i)
      if (!taken[i] && (best < 0 || numbers[i] > numbers[best])) best = i;
    taken[best] = true;
  }
  for (int64_t i = 0; i < count; ++i)
    if (!taken[i]) numbers[i] = -std::numeric_limits<float>::infinity();
}

// Puts experts outside the best groups out of reach; a group counts as much as its two best experts.
inline void keep_best_groups(float* biased, const Rule& rule, std::vector<bool>& taken) {
  static thread_local std::vector<float> groups;
  const int64_t size = rule.experts / rule.groups;
  groups.resize(rule.groups);
  for (int64_t g = 0; g < rule.groups; ++g) {
    const float* own = biased + g * size;
    float best = own[0], second = size > 1 ? -std::numeric_limits<float>::infinity() : 0.0f;
    for (int64_t i = 1; i < size; ++i) {
      second = std::max(second, std::min(best, own[i]));
      best = std::max(best, own[i]);
    }
    groups[g] = best + second;
  }
  keep_largest(groups.data(), rule.groups, rule.groups_kept, taken);
  for (int64_t i = 0; i < rule.experts; ++i)
    if (!taken[i / size]) biased[i] = -std::numeric_limits<float>::infinity();
}

// `logits` of one token become the score of every expert.
inline void score(const float* logits, const Rule& rule, float* scores) {
  if (!rule.softmax) {
    for (int64_t i = 0; i < rule.experts; ++i) scores[i] = 1.0f / (1.0f + std::exp(-logits[i]));
    return;
  }
  const float largest = *std::max_element(logits, logits + rule.experts);
  float total = 0;
  for (int64_t i = 0; i < rule.experts; ++i) total += scores[i] = std::exp(logits[i] - largest);
  for (int64_t i = 0; i < rule.experts; ++i) scores[i] /= total;
}

// `logits` of one token become the weight of every expert, 0 where it is not chosen. Where a block's experts are limited,
// `in_reach` says which are left, and groups do not count.
inline void weigh(const float* logits, const float* bias, const Rule& rule, float* weights,
                  const std::vector<bool>* in_reach = nullptr) {
  static thread_local std::vector<float> biased;
  static thread_local std::vector<bool> taken;
  biased.resize(rule.experts);
  score(logits, rule, weights);
  for (int64_t i = 0; i < rule.experts; ++i)
    biased[i] = in_reach && !(*in_reach)[i] ? -std::numeric_limits<float>::infinity() : weights[i] + bias[i];
  if (!in_reach && rule.groups_kept < rule.groups) keep_best_groups(biased.data(), rule, taken);
  keep_largest(biased.data(), rule.experts, rule.chosen, taken);
  float total = 0;
  for (int64_t i = 0; i < rule.experts; ++i) total += weights[i] = taken[i] ? weights[i] : 0.0f;
  const float divisor = rule.normalize ? total + 1e-20f : 1.0f;
  for (int64_t i = 0; i < rule.experts; ++i) weights[i] = weights[i] / divisor * rule.scale;
}

// The experts that are in reach of a block: the best by the highest score that any of its tokens gives them.
inline void limit(const float* logits, int64_t tokens, const float* bias, const Rule& rule, int64_t experts,
                  std::vector<bool>& in_reach) {
  static thread_local std::vector<float> scores, best;
  scores.resize(rule.experts);
  best.assign(rule.experts, -std::numeric_limits<float>::infinity());
  for (int64_t token = 0; token < tokens; ++token) {
    score(logits + token * rule.experts, rule, scores.data());
    for (int64_t i = 0; i < rule.experts; ++i) best[i] = std::max(best[i], scores[i] + bias[i]);
  }
  keep_largest(best.data(), rule.experts, experts, in_reach);
}

constexpr int64_t kRowsToRoute = 6;  // at a time

// What Python gives (dmax.kernels.cpu.quantized.RouteArguments).
template <typename T>
struct Route {
  const T* x;              // (N, D)
  const uint32_t* router;  // (D, E) of float32, in panels
  const float* bias;
  float* weights;  // (N, E)
  Rule rule;
  int64_t tokens, hidden, block_length, experts_of_a_block;  // the last is 0 where blocks have no limit
};

template <typename T>
void run(const Route<T>& given) {
  const int64_t hidden = given.hidden, num_experts = given.rule.experts;
  team::run((given.tokens + kRowsToRoute - 1) / kRowsToRoute, 1, [&](int64_t task) {
    static thread_local std::vector<float> x;
    x.resize(kRowsToRoute * hidden);
    const int64_t first = task * kRowsToRoute, count = std::min(kRowsToRoute, given.tokens - first);
    for (int64_t i = 0; i < count * hidden; i += kLanes) store(x.data() + i, Kind<T>::get(given.x + first * hidden + i));
    multiply_panels<float>({reinterpret_cast<const uint32_t*>(x.data()), hidden}, given.router, hidden,
                           given.weights + first * num_experts, num_experts, count, num_experts);
  });
  const int64_t length = given.experts_of_a_block ? given.block_length : 1;
  team::run((given.tokens + length - 1) / length, 1, [&](int64_t block) {
    static thread_local std::vector<bool> in_reach;
    float* const weights = given.weights + block * length * num_experts;
    const int64_t count = std::min(length, given.tokens - block * length);
    const bool limited = given.experts_of_a_block > 0;
    if (limited) limit(weights, count, given.bias, given.rule, given.experts_of_a_block, in_reach);
    for (int64_t i = 0; i < count; ++i)
      weigh(weights + i * num_experts, given.bias, given.rule, weights + i * num_experts, limited ? &in_reach : nullptr);
  });
}

}  // namespace routing
