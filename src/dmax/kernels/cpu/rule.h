// The rule of soft-parallel decoding without options, and what the next pass reads, on a CPU (SPEC section 3).
//
// Letters: B blocks, L positions of a block, N positions (B L), V vocabulary, D hidden.

#pragma once

#include <limits>

#include "vectors.h"

namespace rule {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kPositionsWorthATeam = 8;     // of the vocabulary's length
constexpr int64_t kEmbeddingsWorthATeam = 128;  // of the hidden size
constexpr float kTiny = 1e-12f;                 // keeps a mean of length 0 from being divided by it

struct Best {
  int64_t token;
  float probability;
};

// The 16 numbers from `at` on; behind the end of all there are none that could be chosen or counted.
template <typename T>
inline Floats lanes_of(const T* numbers, int64_t size, int64_t at) {
  if (at + kLanes <= size) return Kind<T>::get(numbers + at);
  T own[kLanes] = {};
  std::memcpy(own, numbers + at, (size - at) * sizeof(T));
  Floats found = Kind<T>::get(own);
  for (int64_t lane = size - at; lane < kLanes; ++lane) found[lane] = kNever;
  return found;
}

// The most probable token but for the mask, the lowest of those that tie, and its share of the softmax over all.
template <typename T>
Best most_probable(const T* logits, int64_t size, int64_t mask) {
  Ints numbers;
  for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = lane;
  Floats best = all(kNever);
  Ints where = Ints{} + (mask == 0);
  float of_mask = kNever;
  for (int64_t at = 0; at < size; at += kLanes) {
    Floats x = lanes_of(logits, size, at);
    if (mask >= at && mask < at + kLanes) {
      of_mask = x[mask - at];
      x[mask - at] = kNever;
    }
    where = x > best ? numbers + (int32_t)at : where;
    best = larger(x, best);
  }
  const float top = largest(best), highest = std::max(top, of_mask);
  int64_t token = size;
  for (int lane = 0; lane < kLanes; ++lane)
    if (best[lane] == top) token = std::min<int64_t>(token, where[lane]);
  Floats total = all(0);
  for (int64_t at = 0; at < size; at += kLanes) total += exp_of_negative(lanes_of(logits, size, at) - highest);
  return {token == size ? where[0] : token, exp_of_negative(all(top - highest))[0] / sum(total)};
}

// The blocks before and after a pass; what each array means is said in dmax.kernels.decision.
struct Blocks {
  const int64_t* tokens;
  const bool *active, *masked;
  const int64_t* passes;
  const bool* fallback;  // (B,), whether one mask becomes a token even if none is confident
  float threshold, acceptance_threshold;
  int64_t *tokens_after, *passes_after, *candidates;
  bool *masked_after, *promoted, *revised, *mixed, *converged;
  float* confidence;
};

// One block, whose candidates and confidences are known.
inline void decide_block(const Blocks& all, int64_t block, int64_t length) {
  const int64_t begin = block * length, end = begin + length;
  bool confident_so_far = true, first = true;  // among the masks
  bool incomplete = false, doubtful = false, changed = false;
  for (int64_t at = begin; at < end; ++at) {
    const bool masked = all.masked[at], confident = all.confidence[at] >= all.threshold;
    const bool promoted = masked && (confident ? confident_so_far : first && all.fallback[block]);
    if (masked) {
      confident_so_far = confident_so_far && confident;
      first = false;
    }
    const bool still_masked = masked && !promoted, decoded = all.active[at] && !still_masked;
    const int64_t token = decoded ? all.candidates[at] : all.tokens[at];
    const bool differs = token != all.tokens[at];
    all.tokens_after[at] = token;
    all.masked_after[at] = still_masked;
    all.promoted[at] = promoted;
    all.revised[at] = differs && !masked;
    all.mixed[at] = decoded;
    incomplete |= still_masked;
    changed |= differs;
    doubtful |= all.active[at] && all.confidence[at] < all.acceptance_threshold;
  }
  const int64_t passes = all.passes[block] + 1;
  const bool converged = !(incomplete || (doubtful && changed && passes < length));
  all.passes_after[block] = passes;
  all.converged[block] = converged;
  if (converged) std::fill(all.mixed + begin, all.mixed + end, false);
}

template <typename T>
void decide(const int64_t* numbers) {
  // Addresses and sizes, in the order in which dmax.kernels.cpu.rule gives them.
  const auto at = [&](int i, auto* kind) { return reinterpret_cast<decltype(kind)>(numbers[i]); };
  const auto ids = [&](int i) { return at(i, (int64_t*)nullptr); };
  const auto flags = [&](int i) { return at(i, (bool*)nullptr); };
  const auto floats = [&](int i) { return at(i, (float*)nullptr); };
  const T* const logits = at(0, (const T*)nullptr);
  const Blocks all{ids(1),     flags(2), flags(3),   ids(4),    flags(5),  *floats(6), *floats(7),
                   ids(8),     ids(10),  ids(12),    flags(9),  flags(13), flags(14),  flags(15),
                   flags(16),  floats(11)};
  const int64_t blocks = numbers[17], length = numbers[18], vocabulary = numbers[19], mask = numbers[20];
  const int64_t positions = blocks * length;
#pragma omp parallel for schedule(static) if (positions >= kPositionsWorthATeam)
  for (int64_t n = 0; n < positions; ++n) {
    const Best best = most_probable(logits + n * vocabulary, vocabulary, mask);
    all.candidates[n] = best.token;
    all.confidence[n] = best.probability;
  }
  for (int64_t block = 0; block < blocks; ++block) decide_block(all, block, length);
}

template <typename T>
inline float norm(const T* x, int64_t size) {
  Floats squares = all(0);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats numbers = Kind<T>::get(x + i);
    squares += numbers * numbers;
  }
  return std::sqrt(sum(squares));
}

// From a to b by a weight; b itself, to the bit, at weight 1.
template <typename V>
inline V between(V a, V b, float weight) {
  return weight < 0.5f ? a + (b - a) * weight : b - (b - a) * (1.0f - weight);
}

// The mean of a token's embedding and the mask's, as long as the mean of their lengths.
template <typename T>
void mix(const T* token, const T* mask, float norm_of_mask, float weight, int64_t size, T* to) {
  Floats squares = all(0);
  const auto mean = [&](int64_t i) { return between(Kind<T>::get(mask + i), Kind<T>::get(token + i), weight); };
  for (int64_t i = 0; i < size; i += kLanes) squares += mean(i) * mean(i);
  const float length = between(norm_of_mask, norm(token, size), weight);
  const float scale = length / std::max(std::sqrt(sum(squares)), kTiny);
  for (int64_t i = 0; i < size; i += kLanes) Kind<T>::put(to + i, mean(i) * scale);
}

template <typename T>
void soften(const int64_t* numbers) {
  const auto at = [&](int i, auto* kind) { return reinterpret_cast<decltype(kind)>(numbers[i]); };
  const int64_t* const tokens = at(0, (const int64_t*)nullptr);
  const bool* const where = at(1, (const bool*)nullptr);
  const int64_t* const candidates = at(2, (const int64_t*)nullptr);
  const float* const weights = at(3, (const float*)nullptr);
  const T* const table = at(4, (const T*)nullptr);
  T* const out = at(5, (T*)nullptr);
  const int64_t positions = numbers[6], hidden = numbers[7];
  const T* const mask = table + numbers[8] * hidden;
  const float norm_of_mask = norm(mask, hidden);
#pragma omp parallel for schedule(static) if (positions >= kEmbeddingsWorthATeam)
  for (int64_t n = 0; n < positions; ++n) {
    if (where[n])
      mix(table + candidates[n] * hidden, mask, norm_of_mask, weights[n], hidden, out + n * hidden);
    else
      std::memcpy(out + n * hidden, table + tokens[n] * hidden, hidden * sizeof(T));
  }
}

}  // namespace rule
