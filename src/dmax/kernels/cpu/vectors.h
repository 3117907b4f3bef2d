// Vectors of 16 numbers, and small matrix products, for the kernels of this folder.
//
// In the vector extensions of GCC and clang, which become whatever instructions the processor has; the one exception is
// the product of pairs in bfloat16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = 16;

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

// Every lane changes places with the one that is kWidth away.
template <int kWidth>
inline Floats swap_lanes(Floats v) {
  Words lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane ^ kWidth;
  return (Floats)pick((Words)v, (Words)v, lanes);
}

// A number made of all lanes, joined two by two.
template <typename Join>
inline float join_lanes(Floats v, const Join& join) {
  v = join(v, swap_lanes<8>(v));
  v = join(v, swap_lanes<4>(v));
  v = join(v, swap_lanes<2>(v));
  return join(v, swap_lanes<1>(v))[0];
}

inline float largest(Floats v) { return join_lanes(v, larger); }

inline float sum(Floats v) {
  return join_lanes(v, [](Floats a, Floats b) { return a + b; });
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
  static inline Words words(const Floats (&numbers)[1]) { return (Words)numbers[0]; }
  static inline Floats get(const float* from) { return load<Floats>(from); }
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
#ifdef __AVX512BF16__
    store(to, _mm512_cvtneps_pbh((__m512)v));
#else
    const Words bits = (Words)v;
    store(to, __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Halves));
#endif
  }
  static inline Words words(const Floats (&numbers)[2]) {
    Bfloat pairs[2][kLanes];
    put(pairs[0], numbers[0]);
    put(pairs[1], numbers[1]);
    const auto widened = [](const Bfloat* from) { return __builtin_convertvector(load<Halves>(from), Words); };
    return widened(pairs[0]) | widened(pairs[1]) << 16;
  }
  static inline Floats get(const Bfloat* from) {
    return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
  }
};

constexpr int64_t kPanel = 64;  // columns of a matrix that lie side by side, panel behind panel
constexpr int64_t kAhead = 32;  // words between what is read and what is asked for

// Whether a product takes the place of what stands there, or is added to it.
enum class Result { kInPlace, kAdded };

// A left matrix; neighbouring words of a row may stand apart.
struct Left {
  const uint32_t* words;
  int64_t row_stride, word_stride = 1;
};

// A tile of out (M x N): left (M x words) times right (words x N). The first tile that reads a part of right asks for
// what comes behind it: with all of a model's weights in turn, much of it is no longer in the nearest caches.
template <typename T, int kRows, int kColumns, bool kFirst>
inline void multiply_tile(const Left& left, const uint32_t* right, int64_t right_stride,
                          int64_t words, float* out, int64_t out_stride, Result result) {
  Floats sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c)
      sums[r][c] = result == Result::kAdded ? load<Floats>(out + r * out_stride + c * kLanes) : all(0);
  for (int64_t w = 0; w < words; ++w) {
    Words columns[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const uint32_t* const from = right + w * right_stride + c * kLanes;
      columns[c] = load<Words>(from);
      if constexpr (kFirst) __builtin_prefetch(from + kAhead * right_stride);
    }
    for (int r = 0; r < kRows; ++r) {
      const uint32_t x = left.words[r * left.row_stride + w * left.word_stride];
      for (int c = 0; c < kColumns; ++c) Kind<T>::multiply_add(sums[r][c], x, columns[c]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) store(out + r * out_stride + c * kLanes, sums[r][c]);
}

template <typename T, int kColumns>
void multiply_columns(const Left& left, const uint32_t* right, int64_t right_stride, int64_t words, float* out,
                      int64_t out_stride, int64_t rows, Result result) {
  int64_t row = 0;
  const auto tiles = [&](auto height) {
    constexpr int kRows = decltype(height)::value;
    const auto tile = [&](auto first) {
      const Left part{left.words + row * left.row_stride, left.row_stride, left.word_stride};
      multiply_tile<T, kRows, kColumns, decltype(first)::value>(part, right, right_stride, words,
                                                                out + row * out_stride, out_stride, result);
    };
    for (; row + kRows <= rows; row += kRows) row ? tile(std::false_type()) : tile(std::true_type());
  };
  tiles(std::integral_constant<int, 6>());  // with 4 columns, as many sums as the registers of AVX-512 hold
  tiles(std::integral_constant<int, 5>());
  tiles(std::integral_constant<int, 4>());
  tiles(std::integral_constant<int, 2>());
  tiles(std::integral_constant<int, 1>());
}

// out (M x N): left times right; N is a multiple of the lanes.
template <typename T>
void multiply(const Left& left, const uint32_t* right, int64_t right_stride, int64_t words, float* out,
              int64_t out_stride, int64_t rows, int64_t columns, Result result = Result::kInPlace) {
  int64_t at = 0;
  for (; at + 4 * kLanes <= columns; at += 4 * kLanes)
    multiply_columns<T, 4>(left, right + at, right_stride, words, out + at, out_stride, rows, result);
  for (; at < columns; at += kLanes)
    multiply_columns<T, 1>(left, right + at, right_stride, words, out + at, out_stride, rows, result);
}

// The same where right lies in panels.
template <typename T>
void multiply_panels(const Left& left, const uint32_t* right, int64_t words, float* out, int64_t out_stride,
                     int64_t rows, int64_t columns) {
  for (int64_t at = 0; at < columns; at += kPanel) {
    const int64_t width = std::min(kPanel, columns - at);
    multiply<T>(left, right + at * words, width, words, out + at, out_stride, rows, width);
  }
}

}  // namespace
