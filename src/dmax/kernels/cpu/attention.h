// Attention of packed spans over a paged pool of keys and values, on a CPU.
//
// Every span (a chunk of a prompt, a block being decoded, a block to be stored) first puts its keys and values into the
// pages of its sequence, then attends to what the sequence holds up to the end of its own block. A task is one block of
// queries with a few heads of one key/value head: softmax over chunks of keys, as in FlashAttention (arXiv 2205.14135).
// Scores are keys x rows: the lanes of a vector are rows of the task, and softmax runs down the keys without a sum
// across lanes.
// Tasks know nothing of one another, so that what a sequence is given never depends on what else is in the forward.
//
// Letters: N packed positions, H query heads, K key/value heads, C channels, M rows of a task (heads x positions),
// S keys of a chunk.

#pragma once

#include <limits>
#include <vector>

#include "team.h"
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

// What a thread works in; grown to the largest task and kept. Rows of a task lie side by side, padded to whole lanes.
struct Scratch {
  std::vector<float> scores, mixed, top, total;
  std::vector<uint32_t> rows, queries, keys, values, weights;
  void fit(int64_t padded_rows, int64_t channels) {
    const auto grow = [](auto& numbers, int64_t size) {
      if ((int64_t)numbers.size() < size) numbers.resize(size);
    };
    grow(scores, kChunk * padded_rows);
    grow(weights, kChunk * padded_rows);
    grow(mixed, channels * padded_rows);
    grow(top, padded_rows);
    grow(total, padded_rows);
    grow(rows, padded_rows * channels);
    grow(queries, channels * padded_rows);
    grow(keys, kChunk * channels);
    grow(values, kChunk * channels);
  }
};

// The queries of a task: words x rows.
template <typename T>
void turn_queries(const Task& task, int64_t packed, const Heads<const T>& queries, int64_t channels,
                  int64_t padded_rows, Scratch& own) {
  const int64_t length = task.last - task.first, words = channels / Kind<T>::per_word;
  const int64_t padded_words = (words + kLanes - 1) / kLanes * kLanes;
  std::fill_n(own.rows.begin(), padded_rows * padded_words, 0);
  for (int64_t head = 0, row = 0; head < task.heads; ++head)
    for (int64_t i = 0; i < length; ++i, ++row)
      std::memcpy(own.rows.data() + row * padded_words, queries.at(packed + i, task.head + head), channels * sizeof(T));
  for (int64_t row = 0; row < padded_rows; row += kLanes)
    for (int64_t word = 0; word < padded_words; word += kLanes)
      transpose(own.rows.data() + row * padded_words + word, padded_words,
                own.queries.data() + word * padded_rows + row, padded_rows);
}

// Keys `from` to `from + count` of a sequence, side by side.
template <typename T>
void gather_keys(const Pool<T>& pool, const Span& span, int64_t head, int64_t from, int64_t count, uint32_t* to) {
  T* next = reinterpret_cast<T*>(to);
  for (int64_t key = from; key < from + count;) {
    const int64_t here = std::min(from + count - key, pool.page_length - key % pool.page_length);
    std::memcpy(next, pool.keys + pool.place(span, head, key), here * pool.channels * sizeof(T));
    next += here * pool.channels;
    key += here;
  }
}

// Values of the same keys: (keys / per word) x channels, a word holding a channel of one key or of two neighbours.
template <typename T>
void gather_values(const Pool<T>& pool, const Span& span, int64_t head, int64_t from, int64_t count,
                   uint32_t* to) {
  const int64_t channels = pool.channels;
  const auto row = [&](int64_t key) { return pool.values + pool.place(span, head, from + key); };
  for (int64_t key = 0; key < count; key += Kind<T>::per_word, to += channels) {
    if constexpr (Kind<T>::per_word == 1) {
      std::memcpy(to, row(key), channels * sizeof(uint32_t));
    } else {
      static const uint16_t zeros[1024] = {};
      const uint16_t* low = &row(key)->bits;
      const uint16_t* high = key + 1 < count ? &row(key + 1)->bits : zeros;
      for (int64_t c = 0; c < channels; ++c) to[c] = low[c] | (uint32_t)high[c] << 16;
    }
  }
}

// Turns a chunk of scores into weights against the largest score so far, and rescales what was summed up before: for 16
// rows of the task, side by side.
template <typename T>
void soften(Scratch& own, int64_t row, int64_t padded_rows, int64_t count, int64_t channels, float scale) {
  constexpr int64_t kPerWord = Kind<T>::per_word;
  const float* const scores = own.scores.data() + row;
  Floats best = load<Floats>(scores);
  for (int64_t key = 1; key < count; ++key) best = larger(best, load<Floats>(scores + key * padded_rows));
  const Floats before = load<Floats>(own.top.data() + row), top = larger(before, best * scale);
  Floats total = all(0);
  uint32_t* weights = own.weights.data() + row;
  for (int64_t key = 0; key < count; key += kPerWord, weights += padded_rows) {
    Floats of_word[kPerWord];
    for (int64_t i = 0; i < kPerWord; ++i) {
      const bool there = key + i < count;
      of_word[i] = there ? exp_of_negative(load<Floats>(scores + (key + i) * padded_rows) * scale - top) : all(0);
      total += of_word[i];
    }
    store(weights, Kind<T>::words(of_word));
  }
  const Floats kept = exp_of_negative(before - top);
  float* const mixed = own.mixed.data() + row;
  for (int64_t c = 0; c < channels; ++c) store(mixed + c * padded_rows, load<Floats>(mixed + c * padded_rows) * kept);
  store(own.total.data() + row, load<Floats>(own.total.data() + row) * kept + total);
  store(own.top.data() + row, top);
}

// What was mixed for a task, (C, rows), over the sum of the weights, to where it belongs.
template <typename T>
void put_mixed(const Scratch& own, const Task& task, int64_t packed, int64_t channels, int64_t padded_rows,
               const Heads<T>& out) {
  const int64_t length = task.last - task.first, rows = length * task.heads;
  alignas(64) float columns[kLanes * kLanes], found[kLanes * kLanes];
  for (int64_t row = 0; row < rows; row += kLanes) {
    const Floats inverse = 1.0f / load<Floats>(own.total.data() + row);
    for (int64_t c = 0; c < channels; c += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i)
        store(columns + i * kLanes, load<Floats>(own.mixed.data() + (c + i) * padded_rows + row) * inverse);
      transpose(reinterpret_cast<const uint32_t*>(columns), kLanes, reinterpret_cast<uint32_t*>(found), kLanes);
      for (int64_t i = 0; i < std::min(kLanes, rows - row); ++i) {
        const int64_t head = (row + i) / length, position = (row + i) % length;
        Kind<T>::put(out.at(packed + position, task.head + head) + c, load<Floats>(found + i * kLanes));
      }
    }
  }
}

template <typename T>
void attend_task(const Task& task, const Span& span, const Heads<const T>& queries, const Pool<T>& pool,
                 const Heads<T>& out) {
  static thread_local Scratch own;
  const int64_t channels = pool.channels, words = channels / Kind<T>::per_word;
  const int64_t rows = (task.last - task.first) * task.heads, padded_rows = (rows + kLanes - 1) / kLanes * kLanes;
  const int64_t seen = std::min(span.end, (task.first / span.block_length + 1) * span.block_length);
  const int64_t packed = span.packed + task.first - span.start;
  const float scale = 1.0f / std::sqrt((float)channels);
  own.fit(padded_rows, channels);
  turn_queries(task, packed, queries, channels, padded_rows, own);
  std::fill_n(own.mixed.begin(), channels * padded_rows, 0.0f);
  std::fill_n(own.total.begin(), padded_rows, 0.0f);
  std::fill_n(own.top.begin(), padded_rows, kLowest);
  for (int64_t from = 0; from < seen; from += kChunk) {
    const int64_t count = std::min(kChunk, seen - from);
    const int64_t value_words = (count + Kind<T>::per_word - 1) / Kind<T>::per_word;
    gather_keys(pool, span, task.kv_head, from, count, own.keys.data());
    gather_values(pool, span, task.kv_head, from, count, own.values.data());
    multiply<T>({own.keys.data(), words}, own.queries.data(), padded_rows, words, own.scores.data(), padded_rows, count,
                padded_rows);
    for (int64_t row = 0; row < rows; row += kLanes) soften<T>(own, row, padded_rows, count, channels, scale);
    multiply<T>({own.values.data(), 1, channels}, own.weights.data(), padded_rows, value_words, own.mixed.data(),
                padded_rows, channels, padded_rows, Result::kAdded);
  }
  put_mixed(own, task, packed, channels, padded_rows, out);
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

// One layer.
template <typename T>
void attend(const Heads<const T>& queries, const Heads<const T>& new_keys, const Heads<const T>& new_values,
            const Pool<T>& pool, const Heads<T>& out, const Span* spans, int64_t num_spans,
            const std::vector<Task>& tasks, int64_t num_kv_heads) {
  const int64_t num_tasks = (int64_t)tasks.size(), bytes = pool.channels * sizeof(T);
  team::run(num_spans, 1, [&](int64_t s) {
    for (int64_t head = 0; head < num_kv_heads; ++head)
      for (int64_t position = spans[s].start; position < spans[s].end; ++position) {
        const int64_t packed = spans[s].packed + position - spans[s].start;
        const int64_t place = pool.place(spans[s], head, position);
        std::memcpy(pool.keys + place, new_keys.at(packed, head), bytes);
        std::memcpy(pool.values + place, new_values.at(packed, head), bytes);
      }
  });
  team::run(num_tasks, 1, [&](int64_t t) { attend_task<T>(tasks[t], spans[tasks[t].span], queries, pool, out); });
}

// What Python gives (dmax.kernels.cpu.attention.AttendArguments).
template <typename T>
struct Arguments {
  Heads<const T> queries, keys, values;
  Pool<T> pool;
  T* out;  // (N, H, C)
  const Span* spans;
  int64_t num_spans, num_heads, num_kv_heads;
};

template <typename T>
void run(const Arguments<T>& given) {
  const Heads<T> out{given.out, given.num_heads * given.pool.channels, given.pool.channels};
  const std::vector<Task> tasks = make_tasks(given.spans, given.num_spans, given.num_heads, given.num_kv_heads);
  attend<T>(given.queries, given.keys, given.values, given.pool, out, given.spans, given.num_spans, tasks,
            given.num_kv_heads);
}

}  // namespace attention
