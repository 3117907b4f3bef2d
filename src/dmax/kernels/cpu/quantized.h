// Products with weights in 8 or 4 bits, on a CPU, read as a checkpoint stores them.
//
// Every row that is multiplied is rounded to 8 bits by a scale of its own, and products are summed up in whole numbers; in
// int4 those of a lane's eight inputs, which are then widened, because every group has a scale. Which sums are made, and in
// which order, depends neither on the other rows nor on the processor.
//
// Letters: N rows, O outputs, I inputs, G inputs of a group.

#pragma once

#include <vector>

#include "bytes.h"
#include "team.h"
#include "vectors.h"

namespace quantized {

using bytes::Bytes;
using bytes::Sums;
using bytes::kWidth;

constexpr int64_t kChunk = 64;    // bytes of an output's weights that are read together
constexpr int64_t kOutputs = 4;   // that are computed together
constexpr int64_t kAhead = 12;    // outputs between what is read and what is asked for
constexpr int64_t kPieces = kChunk / kWidth;
constexpr int kMostRowsInt8 = kWidth == 64 ? 6 : 2, kMostRowsInt4 = kWidth == 64 ? 4 : 2;  // sums fill the registers

typedef float Numbers __attribute__((vector_size(kWidth)));
typedef uint32_t Lanes __attribute__((vector_size(kWidth)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef int32_t Ints8 __attribute__((vector_size(32)));
typedef uint32_t Words8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

// A matrix (O, I) as dmax.models.quantized stores it.
struct Matrix {
  const int8_t* weight;
  const void* scale;  // a float for every output; or, of every group, scale and zero point in bfloat16
  int64_t outputs, inputs, group;  // 0: int8
  int64_t row_bytes() const { return group ? inputs / 2 : inputs; }
  int64_t groups() const { return group ? inputs / group : 0; }
  // That of an expert, in a stack of matrices.
  Matrix of(int64_t expert) const {
    const int64_t scale_bytes = 4 * outputs * (group ? groups() : 1);
    return {weight + expert * outputs * row_bytes(), static_cast<const char*>(scale) + expert * scale_bytes, outputs,
            inputs, group};
  }
};

// A row in 8 bits. For int4, the numbers of a chunk stand in the order of its low, then its high halves of bytes.
struct Row {
  const int8_t* numbers;
  const float* group_sums;  // for int4
  float scale;
  int32_t sum;
};

struct alignas(kChunk) Chunk {
  int8_t bytes[kChunk];
};

// Rounds rows, and keeps them.
class Rows {
  std::vector<Chunk> numbers_;
  std::vector<float> group_sums_;
  std::vector<Row> rows_;
  int64_t group_ = 0, inputs_ = 0, groups_ = 0;  // the last padded to whole vectors

 public:
  const Row& operator[](int64_t row) const { return rows_[row]; }
  const Row* data() const { return rows_.data(); }

  void fit(int64_t count, int64_t inputs, int64_t group) {
    const auto grow = [](auto& kept, int64_t size) {
      if ((int64_t)kept.size() < size) kept.resize(size);
    };
    group_ = group, inputs_ = inputs, groups_ = group ? (inputs / group + 7) / 8 * 8 : 0;
    grow(numbers_, count * inputs / kChunk);
    grow(group_sums_, count * groups_);
    grow(rows_, count);
  }

  // Where 16 numbers that begin at an input go.
  int64_t place(int64_t input) const {
    if (!group_) return input;
    const int64_t of_a_half = group_ / 2, in_chunk = input % (2 * kChunk);
    const int64_t high = in_chunk / of_a_half % 2, group = in_chunk / group_;
    return input - in_chunk + high * kChunk + group * of_a_half + in_chunk % of_a_half;
  }

  template <typename T>
  void round(int64_t row, const T* x) {
    Floats most = all(0), poison = all(0);
    for (int64_t i = 0; i < inputs_; i += kLanes) {
      const Floats v = Kind<T>::get(x + i);
      most = larger(v < 0.0f ? -v : v, most);
      poison += v - v;  // 0, but for what is not finite
    }
    const float highest = largest(most), scale = (highest > 0 ? highest / 127.0f : 1.0f) + ::sum(poison);
    int8_t* const to = numbers_.data()->bytes + row * inputs_;
    float* const group_sums = group_sums_.data() + row * groups_;
    std::fill(group_sums, group_sums + groups_, 0.0f);
    typedef int8_t Bytes16 __attribute__((vector_size(16)));
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    Floats total = all(0);
    for (int64_t i = 0; i < inputs_; i += kLanes) {
      const Floats whole = (Kind<T>::get(x + i) / scale + magic) - magic;
      store(to + place(i), __builtin_convertvector(__builtin_convertvector(whole, Ints), Bytes16));
      if (group_)
        group_sums[i / group_] += ::sum(whole);
      else
        total += whole;
    }
    rows_[row] = {to, group_sums, scale, (int32_t)::sum(total)};
  }
};

// The scales of the groups that a piece of a chunk has, each in all lanes of its group.
template <int64_t kGroup>
inline Numbers spread(const uint32_t* pairs) {
  constexpr int64_t kGroups = 2 * kWidth / kGroup;
  Lanes lanes;
  for (int64_t lane = 0; lane < kWidth / 4; ++lane) lanes[lane] = lane * 8 / kGroup;
  if constexpr (kGroups == 1) return (Numbers)(Lanes{} + (*pairs << 16));
#if defined(__AVX2__)
  const __m128i own = kGroups == 2 ? _mm_loadl_epi64((const __m128i*)pairs) : _mm_loadu_si128((const __m128i*)pairs);
#if defined(__AVX512VNNI__)
  const Lanes halves = lanes << 17;  // the low half of a pair becomes the high one of a lane
  return (Numbers)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, (__m512i)halves, _mm512_castsi128_si512(own));
#else
  return (Numbers)_mm256_slli_epi32(_mm256_permutevar8x32_epi32(_mm256_castsi128_si256(own), (__m256i)lanes), 16);
#endif
#else
  for (int64_t lane = 0; lane < kWidth / 4; ++lane) lanes[lane] = pairs[lanes[lane]] << 16;
  return (Numbers)lanes;
#endif
}

// Eight lanes of a (0 to 7) and b (8 to 15), by their numbers.
template <typename V>
inline V pick(V a, V b, Ints8 lanes) {
#ifdef __clang__
  V picked;
  for (int i = 0; i < 8; ++i) picked[i] = lanes[i] < 8 ? a[lanes[i]] : b[lanes[i] - 8];
  return picked;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// The sum of the halves of a vector.
template <typename Half, typename V>
inline Half halved(V v) {
  Half halves[2];
  static_assert(sizeof(halves) == sizeof(v), "two halves");
  std::memcpy(halves, &v, sizeof(v));
  return halves[0] + halves[1];
}

// The same of a piece of a chunk, which may be no wider than a half.
template <typename Half, typename V>
inline Half narrowed(V v) {
  if constexpr (sizeof(V) == sizeof(Half))
    return (Half)v;
  else
    return halved<Half>(v);
}

// The sums of the lanes of four vectors.
template <typename Four, typename V>
inline Four fold(const V (&v)[kOutputs]) {
  const auto neighbours = [](V a, V b) {
    return pick(a, b, Ints8{0, 8, 2, 10, 4, 12, 6, 14}) + pick(a, b, Ints8{1, 9, 3, 11, 5, 13, 7, 15});
  };
  const V ab = neighbours(v[0], v[1]), cd = neighbours(v[2], v[3]);
  return halved<Four>(pick(ab, cd, Ints8{0, 1, 8, 9, 4, 5, 12, 13}) + pick(ab, cd, Ints8{2, 3, 10, 11, 6, 7, 14, 15}));
}

// Tiles that read the same weights ask in turn for a share of those that come behind: all at once would be more than
// memory gives while one tile is computed.
template <bool kAlone>
class Ahead {
  const int64_t turns_;
  int64_t left_;

 public:
  Ahead(int64_t turn, int64_t turns) : turns_(turns), left_(turn + 1) {}
  bool is_due() {
    if constexpr (kAlone) return true;
    if (--left_) return false;
    left_ = turns_;
    return true;
  }
};

// Four outputs of some rows from int8.
template <int kRows, typename A>
inline void tile_int8(const Row* rows, const Matrix& m, int64_t first, float* out, int64_t out_stride, A ahead) {
  const int8_t* const w = m.weight + first * m.inputs;
  Sums sums[kRows][kOutputs] = {};
  for (int64_t at = 0; at < m.inputs; at += kWidth) {
    Bytes weights[kOutputs];
    for (int64_t o = 0; o < kOutputs; ++o) weights[o] = load<Bytes>(w + o * m.inputs + at);
    if (ahead.is_due())
      for (int64_t o = 0; o < kOutputs; ++o) __builtin_prefetch(w + (o + kAhead) * m.inputs + at);
    for (int r = 0; r < kRows; ++r) {
      Bytes x = load<Bytes>(rows[r].numbers + at);
#if defined(__AVX512VNNI__)
      asm("" : "+v"(x));  // else it is read again for every output, and reading is what takes longest
#endif
      for (int64_t o = 0; o < kOutputs; ++o) sums[r][o] = bytes::add_products(sums[r][o], weights[o], x);
    }
  }
  const Floats4 scale = load<Floats4>(static_cast<const float*>(m.scale) + first);
  for (int r = 0; r < kRows; ++r) {
    Ints8 halves[kOutputs];
    for (int64_t o = 0; o < kOutputs; ++o) halves[o] = narrowed<Ints8>(sums[r][o]);
    const Ints4 whole = fold<Ints4>(halves) - bytes::kOffset * rows[r].sum;
    store(out + r * out_stride, __builtin_convertvector(whole, Floats4) * rows[r].scale * scale);
  }
}

// The same from int4.
template <int kRows, int64_t kGroup, typename A>
inline void tile_int4(const Row* rows, const Matrix& m, int64_t first, float* out, int64_t out_stride, A ahead) {
  const int64_t row_bytes = m.row_bytes(), groups = m.groups();
  const int8_t* const w = m.weight + first * row_bytes;
  const uint32_t* const scales = static_cast<const uint32_t*>(m.scale) + first * groups;
  Floats8 halves[kRows][kOutputs];
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    Numbers sums[kRows][kOutputs] = {};
    for (int64_t at = piece * kWidth; at < row_bytes; at += kChunk) {
      if (ahead.is_due())
        for (int64_t o = 0; o < kOutputs; ++o) __builtin_prefetch(w + (o + kAhead) * row_bytes + at);
      for (int64_t o = 0; o < kOutputs; ++o) {
        const Bytes both = load<Bytes>(w + o * row_bytes + at);
        const Bytes low = both & (int8_t)15, high = (Bytes)((Lanes)both >> 4) & (int8_t)15;
        const Numbers scale = spread<kGroup>(scales + o * groups + 2 * at / kGroup);
        for (int r = 0; r < kRows; ++r) {
          const int8_t* const x = rows[r].numbers + 2 * at - at % kChunk;
          const Sums whole = bytes::add_levels(Sums{}, low, load<Bytes>(x));
          sums[r][o] += scale * __builtin_convertvector(bytes::add_levels(whole, high, load<Bytes>(x + kChunk)), Numbers);
        }
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int64_t o = 0; o < kOutputs; ++o) {
        const Floats8 half = narrowed<Floats8>(sums[r][o]);
        halves[r][o] = piece ? halves[r][o] + half : half;
      }
  }
  for (int64_t at = 0; at < groups; at += 8)
    for (int64_t o = 0; o < kOutputs; ++o) {
      const uint32_t* const from = scales + o * groups + at;
      Words8 pairs{};
      if (at + 8 <= groups) pairs = load<Words8>(from);
      else std::memcpy(&pairs, from, 4 * (groups - at));
      const Floats8 scaled_zero = (Floats8)(pairs << 16) * (Floats8)(pairs & 0xffff0000u);
      if (ahead.is_due()) __builtin_prefetch(from + kAhead * groups);
      for (int r = 0; r < kRows; ++r) halves[r][o] -= scaled_zero * load<Floats8>(rows[r].group_sums + at);
    }
  for (int r = 0; r < kRows; ++r) store(out + r * out_stride, fold<Floats4>(halves[r]) * rows[r].scale);
}

// out (N, outputs from first on) = rows times the matrix; outputs are a multiple of the lanes. Rows come in turn for every
// 16 outputs, whose weights stay in the nearest cache meanwhile.
template <int64_t kGroup>
void multiply(const Row* rows, int64_t count, const Matrix& m, int64_t first, int64_t outputs, float* out,
              int64_t out_stride) {
  constexpr int kMost = kGroup ? kMostRowsInt4 : kMostRowsInt8;
  const int64_t turns = (count + kMost - 1) / kMost;
  for (int64_t block = 0; block < outputs; block += kLanes) {
    int64_t row = 0, turn = 0;
    const auto tiles = [&](auto height) {
      constexpr int kRows = std::min(decltype(height)::value, kMost);
      const auto tile = [&](auto ahead) {
        for (int64_t o = block; o < block + kLanes; o += kOutputs) {
          float* const to = out + row * out_stride + o;
          if constexpr (kGroup)
            tile_int4<kRows, kGroup>(rows + row, m, first + o, to, out_stride, ahead);
          else
            tile_int8<kRows>(rows + row, m, first + o, to, out_stride, ahead);
        }
      };
      for (; row + kRows <= count; row += kRows, ++turn) {
        if (turns == 1)
          tile(Ahead<true>(0, 1));
        else
          tile(Ahead<false>(std::min(turn, turns - 1), turns));
      }
    };
    tiles(std::integral_constant<int, 6>());
    tiles(std::integral_constant<int, 4>());
    tiles(std::integral_constant<int, 3>());
    tiles(std::integral_constant<int, 2>());
    tiles(std::integral_constant<int, 1>());
  }
}

inline void multiply(const Row* rows, int64_t count, const Matrix& m, int64_t first, int64_t outputs, float* out,
                     int64_t out_stride) {
  const auto run = m.group == 0 ? multiply<0> : m.group == 32 ? multiply<32> : multiply<64>;
  run(rows, count, m, first, outputs, out, out_stride);
}

constexpr int64_t kRowsOfATask = 48, kOutputsOfATask = 64;

// What Python gives (dmax.kernels.cpu.quantized).
template <typename T>
struct Linear {
  const T* x;  // (N, I)
  Matrix matrix;
  T* out;  // (N, O)
  int64_t count;
};

template <typename T>
void run_linear(const Linear<T>& given) {
  static thread_local Rows kept;
  Rows& rows = kept;
  const Matrix& m = given.matrix;
  const int64_t count = given.count;
  rows.fit(count, m.inputs, m.group);
  team::run_rows(count, [&](int64_t row) { rows.round(row, given.x + row * m.inputs); });
  const int64_t of_a_panel = (count + kRowsOfATask - 1) / kRowsOfATask;
  team::run((m.outputs + kOutputsOfATask - 1) / kOutputsOfATask * of_a_panel, 1, [&](int64_t task) {
    alignas(64) float sums[kRowsOfATask * kOutputsOfATask];
    const int64_t first = task / of_a_panel * kOutputsOfATask, row = task % of_a_panel * kRowsOfATask;
    const int64_t width = std::min(kOutputsOfATask, m.outputs - first), height = std::min(kRowsOfATask, count - row);
    multiply(rows.data() + row, height, m, first, width, sums, kOutputsOfATask);
    for (int64_t i = 0; i < height; ++i)
      for (int64_t o = 0; o < width; o += kLanes)
        Kind<T>::put(given.out + (row + i) * m.outputs + first + o, load<Floats>(sums + i * kOutputsOfATask + o));
  });
}

}  // namespace quantized
