// The rule of soft-parallel decoding without options, and what the next pass reads, on a CPU (algorithm.md#spd).
//
// From logits, or from hidden states with the head before it and the embeddings behind it in the same call. There logits
// are never written down: of every panel of the vocabulary a position keeps its best token and its part of the softmax.
//
// Letters: B blocks, L positions of a block, N positions (B L), V vocabulary, D hidden.

#pragma once

#include <limits>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace rule {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kPositionsOfATask = 4;    // of the vocabulary's length
constexpr int64_t kEmbeddingsOfATask = 64;  // of the hidden size
constexpr int64_t kRowsOfATask = 48;            // of the head
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

// What some logits of a position say, the mask's being among the counted ones alone.
struct Part {
  float best, highest, total;  // of those that can be chosen; of all; the sum of e^(x - highest)
  int32_t token;
};

// `get` gives 16 logits from a place on; the first of them is that of token `first`.
template <typename Get>
inline Part part_of(const Get& get, int64_t size, int64_t first, int64_t mask) {
  Ints numbers;
  for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = lane;
  Floats best = all(kNever);
  Ints where = Ints{} + (int32_t)(first + (mask == first));
  float of_mask = kNever;
  for (int64_t at = 0; at < size; at += kLanes) {
    Floats x = get(at);
    const int64_t lane = mask - first - at;
    if (lane >= 0 && lane < kLanes) {
      of_mask = x[lane];
      x[lane] = kNever;
    }
    where = x > best ? numbers + (int32_t)(first + at) : where;
    best = larger(x, best);
  }
  const float top = largest(best), highest = std::max(top, of_mask);
  int32_t token = (int32_t)(first + size);
  for (int lane = 0; lane < kLanes; ++lane)
    if (best[lane] == top) token = std::min(token, where[lane]);
  Floats total = all(0);
  for (int64_t at = 0; at < size; at += kLanes) {
    const Floats x = get(at);
    total += highest > kNever ? exp_of_negative(x - highest) : x == x ? all(0) : x;  // NaN is never the highest
  }
  return {top, highest, sum(total), token};
}

// The most probable token but for the mask, the lowest of those that tie, and its share of the softmax over all.
template <typename T>
Best most_probable(const T* logits, int64_t size, int64_t mask) {
  const Part part = part_of([&](int64_t at) { return lanes_of(logits, size, at); }, size, 0, mask);
  return {part.token, exp_of_negative(all(part.best - part.highest))[0] / part.total};
}

// The same from the parts of a vocabulary, in their order.
inline Best joined(const Part* parts, int64_t count) {
  Part whole = parts[0];
  for (int64_t i = 1; i < count; ++i) {
    if (parts[i].best > whole.best) whole.best = parts[i].best, whole.token = parts[i].token;
    whole.highest = std::max(whole.highest, parts[i].highest);
  }
  Floats total = all(0);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats highest = all(kNever), totals = all(0);
    for (int64_t lane = 0; lane < std::min(kLanes, count - i); ++lane) {
      highest[lane] = parts[i + lane].highest;
      totals[lane] = parts[i + lane].total;
    }
    total += totals * exp_of_negative(highest - whole.highest);
  }
  return {whole.token, exp_of_negative(all(whole.best - whole.highest))[0] / sum(total)};
}

// The blocks before and after a pass, as Python gives them (dmax.kernels.cpu.rule.BlocksArguments); what each array
// means is said in dmax.kernels.decision.
struct Blocks {
  const int64_t* tokens;
  const bool *active, *masked;
  const int64_t* passes;
  const bool* fallback;  // (B,), whether one mask becomes a token even if none is confident
  float threshold, acceptance_threshold;
  int64_t *tokens_after, *passes_after, *candidates;
  bool *masked_after, *promoted, *revised, *mixed, *converged;
  float* confidence;
  void tell(int64_t position, const Best& best) const {
    candidates[position] = best.token;
    confidence[position] = best.probability;
  }
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

// What Python gives to each of the functions (dmax.kernels.cpu.rule).
template <typename T>
struct Predict {
  const T* logits;
  int64_t* tokens;
  float* probabilities;
  int64_t positions, vocabulary, mask;
};

template <typename T>
struct Decide {
  const T* logits;
  Blocks blocks;
  int64_t num_blocks, length, vocabulary, mask;
};

template <typename T>
struct Soften {
  const int64_t* tokens;
  const bool* where;
  const int64_t* candidates;
  const float* weights;
  const T* table;
  T* out;
  int64_t positions, hidden, mask;
};

template <typename T>
struct Read {
  const uint32_t *hidden_states, *head;  // in words
  const T* table;
  Blocks blocks;
  T* embeds;
  int64_t num_blocks, length, vocabulary, hidden, mask;
};

template <typename T>
void predict(const Predict<T>& given) {
  team::run(given.positions, kPositionsOfATask, [&](int64_t n) {
    const Best best = most_probable(given.logits + n * given.vocabulary, given.vocabulary, given.mask);
    given.tokens[n] = best.token;
    given.probabilities[n] = best.probability;
  });
}

template <typename T>
void decide(const Decide<T>& given) {
  const int64_t positions = given.num_blocks * given.length;
  team::run(positions, kPositionsOfATask, [&](int64_t n) {
    given.blocks.tell(n, most_probable(given.logits + n * given.vocabulary, given.vocabulary, given.mask));
  });
  for (int64_t block = 0; block < given.num_blocks; ++block) decide_block(given.blocks, block, given.length);
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

// What positions read next.
template <typename T>
struct Softener {
  const T *table, *mask;
  int64_t hidden;
  float norm_of_mask;
  Softener(const T* table, int64_t hidden, int64_t mask_token)
      : table(table), mask(table + mask_token * hidden), hidden(hidden), norm_of_mask(norm(mask, hidden)) {}
  void operator()(int64_t token, bool mixed, int64_t candidate, float weight, T* to) const {
    if (mixed)
      mix(table + candidate * hidden, mask, norm_of_mask, weight, hidden, to);
    else
      std::memcpy(to, table + token * hidden, hidden * sizeof(T));
  }
};

template <typename T>
void soften(const Soften<T>& given) {
  const Softener<T> soft(given.table, given.hidden, given.mask);
  team::run(given.positions, kEmbeddingsOfATask, [&](int64_t n) {
    soft(given.tokens[n], given.where[n], given.candidates[n], given.weights[n], given.out + n * given.hidden);
  });
}

// Rounded to what logits are kept in.
template <typename T>
inline Floats rounded(Floats x) {
  T own[kLanes];
  Kind<T>::put(own, x);
  return Kind<T>::get(own);
}

// Head, rule and the embeddings of the next pass.
template <typename T>
void read(const Read<T>& given) {
  static thread_local std::vector<Part> kept;
  const uint32_t *const hidden_words = given.hidden_states, *const head = given.head;
  const Blocks& all = given.blocks;
  T* const embeds = given.embeds;
  const int64_t blocks = given.num_blocks, length = given.length, vocabulary = given.vocabulary, mask = given.mask;
  const int64_t hidden = given.hidden, words = hidden / Kind<T>::per_word;
  const int64_t positions = blocks * length, panels = (vocabulary + kPanel - 1) / kPanel;
  const Softener<T> soft(given.table, hidden, mask);
  kept.resize(std::max<size_t>(kept.size(), positions * panels));
  Part* const parts = kept.data();
  const int64_t of_a_panel = (positions + kRowsOfATask - 1) / kRowsOfATask;
  team::run(panels * of_a_panel, 1, [&](int64_t task) {
    alignas(64) float logits[kRowsOfATask * kPanel];
    const int64_t panel = task / of_a_panel, row = task % of_a_panel * kRowsOfATask;
    const int64_t first = panel * kPanel, width = std::min(kPanel, vocabulary - first);
    const int64_t count = std::min(kRowsOfATask, positions - row);
    multiply<T>({hidden_words + row * words, words}, head + first * words, width, words, logits, kPanel, count, width);
    for (int64_t i = 0; i < count; ++i) {
      const auto get = [&](int64_t at) { return rounded<T>(load<Floats>(logits + i * kPanel + at)); };
      parts[(row + i) * panels + panel] = part_of(get, width, first, mask);
    }
  });
  team::run_rows(positions, [&](int64_t n) { all.tell(n, joined(parts + n * panels, panels)); });
  team::run_rows(blocks, [&](int64_t block) { decide_block(all, block, length); });
  team::run_rows(positions, [&](int64_t n) {
    soft(all.tokens_after[n], all.mixed[n], all.candidates[n], all.confidence[n], embeds + n * hidden);
  });
}

}  // namespace rule
