// Attention of packed spans over a paged pool of keys and values, on a CPU.
//
// Every span (a chunk of a prompt, a block being decoded, a block to be stored) first puts its keys and values into the
// pages of its sequence, then attends to what the sequence holds up to the end of its own block. A task is one block of
// queries with a few heads of one key/value head: softmax over chunks of keys, as in FlashAttention (arXiv 2205.14135).
// Tasks know nothing of one another, so that what a sequence is given never depends on what else is in the forward.
//
// Letters: N packed positions, H query heads, K key/value heads, C channels, M rows of a task (heads x positions),
// S keys of a chunk.

#pragma once

#include <limits>
#include <vector>

#include "vectors.h"

namespace attention {

constexpr int64_t kChunk = 256;       // keys between two rescalings
constexpr int64_t kRowsOfATask = 64;  // about as many; heads are never cut
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Span {
  int64_t packed, start, end, block_length, pages;
};

template <typename T>
struct Heads {  // (N, heads, C), channels side by side
  T* data;
  int64_t position_stride, head_stride;
  inline T* at(int64_t position, int64_t head) const { return data + position * position_stride + head * head_stride; }
};

template <typename T>
struct Pool {  // one layer: (K, positions, C)
  T *keys, *values;
  int64_t head_stride, page_length, channels;
  const int32_t* pages;
  inline int64_t place(const Span& span, int64_t head, int64_t position) const {
    const int64_t page = pages[span.pages + position / page_length];
    return head * head_stride + (page * page_length + position % page_length) * channels;
  }
};

struct Task {
  int64_t span, first, last, kv_head, head, heads;  // positions first to last of the sequence
};

// What a thread works in; grown to the largest task and kept.
struct Scratch {
  std::vector<float> scores, mixed, top, total;
  std::vector<uint32_t> queries, keys, values, weights;
  void fit(int64_t rows, int64_t channels) {
    const auto grow = [](auto& numbers, int64_t size) {
      if ((int64_t)numbers.size() < size) numbers.resize(size);
    };
    grow(scores, rows * kChunk);
    grow(weights, rows * kChunk);
    grow(mixed, rows * channels);
    grow(top, rows);
    grow(total, rows);
    grow(queries, rows * channels);
    grow(keys, kChunk * channels);
    grow(values, kChunk * channels);
  }
};

// Keys `from` to `from + count` of a sequence: words x kChunk, with zeros up to a whole number of lanes.
template <typename T>
void gather_keys(const Pool<T>& pool, const Span& span, int64_t head, int64_t from, int64_t count, uint32_t* to) {
  const int64_t words = pool.channels / Kind<T>::per_word;
  alignas(64) uint32_t tile[kLanes * kLanes];
  for (int64_t key = 0; key < count; key += kLanes) {
    const uint32_t* rows[kLanes];
    const int64_t here = std::min(kLanes, count - key);
    for (int64_t i = 0; i < here; ++i)
      rows[i] = reinterpret_cast<const uint32_t*>(pool.keys + pool.place(span, head, from + key + i));
    const bool neighbours = here == kLanes && rows[kLanes - 1] == rows[0] + (kLanes - 1) * words;
    for (int64_t word = 0; word < words; word += kLanes) {
      if (neighbours && word + kLanes <= words) {
        transpose(rows[0] + word, words, to + word * kChunk + key, kChunk);
        continue;
      }
      std::memset(tile, 0, sizeof(tile));
      const int64_t width = std::min(kLanes, words - word);
      for (int64_t i = 0; i < here; ++i) std::memcpy(tile + i * kLanes, rows[i] + word, width * sizeof(uint32_t));
      for (int64_t w = 0; w < width; ++w)
        for (int64_t i = 0; i < kLanes; ++i) to[(word + w) * kChunk + key + i] = tile[i * kLanes + w];
    }
  }
}

// Values of the same keys: (keys / per word) x channels, a word holding a channel of one key or of two neighbours.
template <typename T>
void gather_values(const Pool<T>& pool, const Span& span, int64_t head, int64_t from, int64_t count, int64_t padded,
                   uint32_t* to) {
  const int64_t channels = pool.channels;
  const auto row = [&](int64_t key) { return pool.values + pool.place(span, head, from + key); };
  for (int64_t key = 0; key < padded; key += Kind<T>::per_word, to += channels) {
    if constexpr (Kind<T>::per_word == 1) {
      if (key < count)
        std::memcpy(to, row(key), channels * sizeof(uint32_t));
      else
        std::memset(to, 0, channels * sizeof(uint32_t));
    } else {
      static const uint16_t zeros[1024] = {};
      const uint16_t* low = key < count ? &row(key)->bits : zeros;
      const uint16_t* high = key + 1 < count ? &row(key + 1)->bits : zeros;
      for (int64_t c = 0; c < channels; ++c) to[c] = low[c] | (uint32_t)high[c] << 16;
    }
  }
}

// Turns a chunk of scores into weights against the largest score so far, and rescales what was summed up before.
template <typename T>
void soften(Scratch& own, int64_t row, int64_t count, int64_t padded, int64_t channels, float scale) {
  float* scores = own.scores.data() + row * kChunk;
  for (int64_t i = count; i < padded; ++i) scores[i] = kLowest;
  Floats best = load<Floats>(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) best = larger(best, load<Floats>(scores + i));
  const float before = own.top[row], top = std::max(before, largest(best) * scale);
  T* weights = reinterpret_cast<T*>(own.weights.data() + row * kChunk);
  Floats total = all(0);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Floats weight = exp_of_negative(load<Floats>(scores + i) * scale - top);
    total += weight;
    Kind<T>::put(weights + i, weight);
  }
  const float kept = before == kLowest ? 0.0f : std::exp(before - top);
  if (kept != 1.0f) {
    float* mixed = own.mixed.data() + row * channels;
    for (int64_t c = 0; c < channels; ++c) mixed[c] *= kept;
  }
  own.total[row] = own.total[row] * kept + sum(total);
  own.top[row] = top;
}

template <typename T>
void attend_task(const Task& task, const Span& span, const Heads<const T>& queries, const Pool<T>& pool,
                 const Heads<T>& out) {
  static thread_local Scratch own;
  const int64_t channels = pool.channels, words = channels / Kind<T>::per_word;
  const int64_t length = task.last - task.first, rows = length * task.heads;
  const int64_t seen = std::min(span.end, (task.first / span.block_length + 1) * span.block_length);
  const int64_t packed = span.packed + task.first - span.start;
  const float scale = 1.0f / std::sqrt((float)channels);
  own.fit(rows, channels);
  for (int64_t head = 0, row = 0; head < task.heads; ++head)
    for (int64_t i = 0; i < length; ++i, ++row)
      std::memcpy(own.queries.data() + row * words, queries.at(packed + i, task.head + head), channels * sizeof(T));
  std::fill_n(own.mixed.begin(), rows * channels, 0.0f);
  std::fill_n(own.total.begin(), rows, 0.0f);
  std::fill_n(own.top.begin(), rows, kLowest);
  for (int64_t from = 0; from < seen; from += kChunk) {
    const int64_t count = std::min(kChunk, seen - from), padded = (count + kLanes - 1) / kLanes * kLanes;
    gather_keys(pool, span, task.kv_head, from, count, own.keys.data());
    gather_values(pool, span, task.kv_head, from, count, padded, own.values.data());
    multiply<T>(own.queries.data(), words, own.keys.data(), kChunk, words, own.scores.data(), kChunk, rows, padded);
    for (int64_t row = 0; row < rows; ++row) soften<T>(own, row, count, padded, channels, scale);
    multiply<T>(own.weights.data(), kChunk, own.values.data(), channels, padded / Kind<T>::per_word,
                own.mixed.data(), channels, rows, channels, Result::kAdded);
  }
  for (int64_t head = 0, row = 0; head < task.heads; ++head)
    for (int64_t i = 0; i < length; ++i, ++row) {
      T* to = out.at(packed + i, task.head + head);
      const float* mixed = own.mixed.data() + row * channels;
      const float share = 1.0f / own.total[row];
      for (int64_t c = 0; c < channels; c += kLanes) Kind<T>::put(to + c, load<Floats>(mixed + c) * share);
    }
}

// The tasks of a forward, the same in every layer.
inline std::vector<Task> make_tasks(const Span* spans, int64_t num_spans, int64_t num_heads, int64_t num_kv_heads) {
  std::vector<Task> tasks;
  const int64_t group = num_heads / num_kv_heads;
  for (int64_t s = 0; s < num_spans; ++s) {
    const Span& span = spans[s];
    for (int64_t first = span.start; first < span.end; first += span.block_length) {
      const int64_t last = std::min(span.end, first + span.block_length);
      const int64_t together = std::clamp<int64_t>(kRowsOfATask / (last - first), 1, group);
      for (int64_t head = 0; head < num_heads; head += group)
        for (int64_t of_group = 0; of_group < group; of_group += together)
          tasks.push_back({s, first, last, head / group, head + of_group, std::min(together, group - of_group)});
    }
  }
  return tasks;
}

// One layer. Every thread of a team calls this with the same arguments.
template <typename T>
void attend(const Heads<const T>& queries, const Heads<const T>& new_keys, const Heads<const T>& new_values,
            const Pool<T>& pool, const Heads<T>& out, const Span* spans, int64_t num_spans,
            const std::vector<Task>& tasks, int64_t num_kv_heads) {
  const int64_t num_tasks = (int64_t)tasks.size(), bytes = pool.channels * sizeof(T);
#pragma omp for schedule(static)
  for (int64_t s = 0; s < num_spans; ++s)
    for (int64_t head = 0; head < num_kv_heads; ++head)
      for (int64_t position = spans[s].start; position < spans[s].end; ++position) {
        const int64_t packed = spans[s].packed + position - spans[s].start;
        const int64_t place = pool.place(spans[s], head, position);
        std::memcpy(pool.keys + place, new_keys.at(packed, head), bytes);
        std::memcpy(pool.values + place, new_values.at(packed, head), bytes);
      }
#pragma omp for schedule(dynamic)
  for (int64_t t = 0; t < num_tasks; ++t) attend_task<T>(tasks[t], spans[tasks[t].span], queries, pool, out);
}

template <typename T>
void run(const int64_t* numbers) {
  // Addresses and sizes, in the order in which dmax.kernels.cpu.attention gives them.
  const auto pointer = [&](int i) { return reinterpret_cast<T*>(numbers[i]); };
  const Heads<const T> queries{pointer(0), numbers[1], numbers[2]};
  const Heads<const T> keys{pointer(3), numbers[4], numbers[5]}, values{pointer(6), numbers[7], numbers[8]};
  const int64_t num_heads = numbers[17], num_kv_heads = numbers[18], channels = numbers[19];
  const Pool<T> pool{pointer(9), pointer(10), numbers[11], numbers[12], channels,
                     reinterpret_cast<const int32_t*>(numbers[13])};
  const Heads<T> out{pointer(14), num_heads * channels, channels};
  const Span* const spans = reinterpret_cast<const Span*>(numbers[15]);
  const std::vector<Task> tasks = make_tasks(spans, numbers[16], num_heads, num_kv_heads);
#pragma omp parallel
  attend<T>(queries, keys, values, pool, out, spans, numbers[16], tasks, num_kv_heads);
}

}  // namespace attention
