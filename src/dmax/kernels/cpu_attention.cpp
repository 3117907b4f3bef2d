// Attention of packed spans over a paged pool of keys and values, on a CPU.
//
// Every span (a chunk of a prompt, a block being decoded, a block to be stored) first puts its keys and values into the
// pages of its sequence, then attends to what the sequence holds up to the end of its own block. A task is one block of
// queries with a few heads of one key/value head: softmax over chunks of keys, as in FlashAttention (arXiv 2205.14135).
// Tasks know nothing of one another, so that what a sequence is given never depends on what else is in the forward.
//
// Letters: N packed positions, H query heads, K key/value heads, C channels, M rows of a task (heads x positions),
// S keys of a chunk.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 256;       // keys between two rescalings
constexpr int64_t kRowsOfATask = 64;  // about as many; heads are never cut
constexpr float kLowest = -std::numeric_limits<float>::infinity();

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <typename V, typename P>
inline V load(const P* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename P>
inline void store(P* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

inline Floats all(float x) { return Floats{} + x; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats v) {
  float found = v[0];
  for (int i = 1; i < kLanes; ++i) found = std::max(found, v[i]);
  return found;
}

inline float sum(Floats v) {
  float found = 0;
  for (int i = 0; i < kLanes; ++i) found += v[i];
  return found;
}

// e^x for x <= 0, to about 2 units in the last place; 0 below the smallest normal number.
inline Floats exp_of_negative(Floats x) {
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats whole = (x * 1.44269504f + magic) - magic;
  const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Floats y = all(1.9875691500e-4f);
  y = y * rest + 1.3981999507e-3f;
  y = y * rest + 8.3334519073e-3f;
  y = y * rest + 4.1665795894e-2f;
  y = y * rest + 1.6666665459e-1f;
  y = y * rest + 5.0000001201e-1f;
  y = y * rest * rest + rest + 1.0f;
  const Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return x < -87.0f ? all(0.0f) : y * (Floats)exponent;
}

// Lanes of a (0 to 15) and b (16 to 31), by their numbers.
inline Words pick(Words a, Words b, Words lanes) {
#ifdef __clang__
  Words picked;
  for (int i = 0; i < kLanes; ++i) picked[i] = lanes[i] < kLanes ? a[lanes[i]] : b[lanes[i] - kLanes];
  return picked;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// One of the four rounds of a transposition: tiles of kWidth x kWidth change places.
template <int kWidth>
inline void swap_tiles(Words (&rows)[kLanes]) {
  Words low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & kWidth ? lane - kWidth + kLanes : lane;
    high[lane] = lane & kWidth ? lane + kLanes : lane + kWidth;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (i & kWidth) continue;
    const Words above = rows[i], below = rows[i + kWidth];
    rows[i] = pick(above, below, low);
    rows[i + kWidth] = pick(above, below, high);
  }
}

// A 16 x 16 tile of 32-bit words, rows to columns.
inline void transpose(const uint32_t* from, int64_t stride, uint32_t* to, int64_t to_stride) {
  Words rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load<Words>(from + i * stride);
  swap_tiles<1>(rows);
  swap_tiles<2>(rows);
  swap_tiles<4>(rows);
  swap_tiles<8>(rows);
  for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, rows[i]);
}

// Numbers of 32 bits are multiplied one by one, of 16 bits in pairs: a word of a left matrix holds what the word of a
// right matrix is multiplied with.
template <typename T>
struct Kind;

template <>
struct Kind<float> {
  static constexpr int64_t per_word = 1;
  static inline void multiply_add(Floats& sum, uint32_t left, Words right) {
    float x;
    std::memcpy(&x, &left, sizeof(x));
    sum += x * (Floats)right;
  }
  static inline void put(float* to, Floats v) { store(to, v); }
};

struct Bfloat {
  uint16_t bits;
};

template <>
struct Kind<Bfloat> {
  static constexpr int64_t per_word = 2;
  static inline void multiply_add(Floats& sum, uint32_t left, Words right) {
#ifdef __AVX512BF16__
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)left), (__m512bh)right);
#else
    const Words low = Words{} + (left << 16), high = Words{} + (left & 0xffff0000u);
    sum += (Floats)high * (Floats)(right & 0xffff0000u) + (Floats)low * (Floats)(right << 16);
#endif
  }
  static inline void put(Bfloat* to, Floats v) {  // to nearest, ties to even
    const Words bits = (Words)v;
    store(to, __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Halves));
  }
};

// A tile of out (M x N) += left (M x words) times right (words x N).
template <typename T, int kRows, int kColumns>
inline void multiply_tile(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride,
                          int64_t words, float* out, int64_t out_stride) {
  Floats sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) sums[r][c] = load<Floats>(out + r * out_stride + c * kLanes);
  for (int64_t w = 0; w < words; ++w) {
    Words columns[kColumns];
    for (int c = 0; c < kColumns; ++c) columns[c] = load<Words>(right + w * right_stride + c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const uint32_t x = left[r * left_stride + w];
      for (int c = 0; c < kColumns; ++c) Kind<T>::multiply_add(sums[r][c], x, columns[c]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) store(out + r * out_stride + c * kLanes, sums[r][c]);
}

template <typename T, int kColumns>
void multiply_columns(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride,
                      int64_t words, float* out, int64_t out_stride, int64_t rows) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6)
    multiply_tile<T, 6, kColumns>(left + row * left_stride, left_stride, right, right_stride, words,
                                  out + row * out_stride, out_stride);
  for (; row + 2 <= rows; row += 2)
    multiply_tile<T, 2, kColumns>(left + row * left_stride, left_stride, right, right_stride, words,
                                  out + row * out_stride, out_stride);
  for (; row < rows; ++row)
    multiply_tile<T, 1, kColumns>(left + row * left_stride, left_stride, right, right_stride, words,
                                  out + row * out_stride, out_stride);
}

// out (M x N) += left times right; N is a multiple of the lanes.
template <typename T>
void multiply(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride, int64_t words,
              float* out, int64_t out_stride, int64_t rows, int64_t columns) {
  int64_t at = 0;
  for (; at + 4 * kLanes <= columns; at += 4 * kLanes)
    multiply_columns<T, 4>(left, left_stride, right + at, right_stride, words, out + at, out_stride, rows);
  for (; at < columns; at += kLanes)
    multiply_columns<T, 1>(left, left_stride, right + at, right_stride, words, out + at, out_stride, rows);
}

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
    std::fill_n(own.scores.begin(), rows * kChunk, 0.0f);
    multiply<T>(own.queries.data(), words, own.keys.data(), kChunk, words, own.scores.data(), kChunk, rows, padded);
    for (int64_t row = 0; row < rows; ++row) soften<T>(own, row, count, padded, channels, scale);
    multiply<T>(own.weights.data(), kChunk, own.values.data(), channels, padded / Kind<T>::per_word,
                own.mixed.data(), channels, rows, channels);
  }
  for (int64_t head = 0, row = 0; head < task.heads; ++head)
    for (int64_t i = 0; i < length; ++i, ++row) {
      T* to = out.at(packed + i, task.head + head);
      const float* mixed = own.mixed.data() + row * channels;
      for (int64_t c = 0; c < channels; c += kLanes) Kind<T>::put(to + c, load<Floats>(mixed + c) / own.total[row]);
    }
}

template <typename T>
void attend(const Heads<const T>& queries, const Heads<const T>& new_keys, const Heads<const T>& new_values,
            const Pool<T>& pool, const Heads<T>& out, const Span* spans, int64_t num_spans, int64_t num_heads,
            int64_t num_kv_heads) {
  static thread_local std::vector<Task> tasks;
  tasks.clear();
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
  const Task* const begin = tasks.data();
  const int64_t num_tasks = (int64_t)tasks.size(), bytes = pool.channels * sizeof(T);
#pragma omp parallel
  {
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
    for (int64_t t = 0; t < num_tasks; ++t) attend_task<T>(begin[t], spans[begin[t].span], queries, pool, out);
  }
}

template <typename T>
void run(const int64_t* numbers) {
  // Addresses and sizes, in the order in which dmax.kernels.cpu_attention gives them.
  const auto pointer = [&](int i) { return reinterpret_cast<T*>(numbers[i]); };
  const Heads<const T> queries{pointer(0), numbers[1], numbers[2]};
  const Heads<const T> keys{pointer(3), numbers[4], numbers[5]}, values{pointer(6), numbers[7], numbers[8]};
  const int64_t num_heads = numbers[17], num_kv_heads = numbers[18], channels = numbers[19];
  const Pool<T> pool{pointer(9), pointer(10), numbers[11], numbers[12], channels,
                     reinterpret_cast<const int32_t*>(numbers[13])};
  const Heads<T> out{pointer(14), num_heads * channels, channels};
  attend<T>(queries, keys, values, pool, out, reinterpret_cast<const Span*>(numbers[15]), numbers[16], num_heads,
            num_kv_heads);
}

}  // namespace

extern "C" void dmax_attend_float32(const int64_t* numbers) { run<float>(numbers); }
extern "C" void dmax_attend_bfloat16(const int64_t* numbers) { run<Bfloat>(numbers); }
