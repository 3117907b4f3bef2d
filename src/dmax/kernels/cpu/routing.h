// Which experts a token is sent to, and how much each counts: what dmax.models.moe.weigh_experts does, token by token.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

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

// `logits` of one token become the weight of every expert, 0 where it is not chosen.
inline void weigh(const float* logits, const float* bias, const Rule& rule, float* weights) {
  static thread_local std::vector<float> biased;
  static thread_local std::vector<bool> taken;
  biased.resize(rule.experts);
  score(logits, rule, weights);
  for (int64_t i = 0; i < rule.experts; ++i) biased[i] = weights[i] + bias[i];
  if (rule.groups_kept < rule.groups) keep_best_groups(biased.data(), rule, taken);
  keep_largest(biased.data(), rule.experts, rule.chosen, taken);
  float total = 0;
  for (int64_t i = 0; i < rule.experts; ++i) total += weights[i] = taken[i] ? weights[i] : 0.0f;
  const float divisor = rule.normalize ? total + 1e-20f : 1.0f;
  for (int64_t i = 0; i < rule.experts; ++i) weights[i] = weights[i] / divisor * rule.scale;
}

}  // namespace routing
