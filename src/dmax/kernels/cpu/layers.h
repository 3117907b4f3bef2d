// All layers of a model in one call, on a CPU.
//
// One team of threads shares norms, linear maps, head norms and rotation, attention, routing and experts of every layer,
// one loop after the other (team.h); to hand out a loop takes a fraction of a microsecond, where a call of its own for
// each would take several. Whatever the number of positions, what a position gets is summed up in the same order: it
// does not depend on the others, to the bit.
//
// Letters: N positions, D hidden, H query heads, K key/value heads, C head channels, R rotary channels, J heads side by
// side (H + 2 K).

#pragma once

#include <numeric>

#include "attention.h"
#include "experts.h"
#include "routing.h"
#include "team.h"
#include "vectors.h"

namespace layers {

constexpr int64_t kRowsOfATask = 48;  // of a linear map
using routing::kRowsToRoute;

struct FeedForward {
  int64_t routed, all, width;  // experts that are chosen (none if dense); those and the shared ones; width of each
};

struct Sizes {
  int64_t positions, layers, hidden, heads, kv_heads, channels, rotary;
  int64_t head_norms, qkv_bias, bias;  // flags: heads have norms; the projections before and behind attention add one
  float eps;
};

// Arrays that lie one behind the other.
class Reader {
  const char* at_;

 public:
  explicit Reader(const void* begin) : at_(static_cast<const char*>(begin)) {}
  template <typename P>
  const P* next(int64_t count) {
    const P* const found = reinterpret_cast<const P*>(at_);
    at_ += count * sizeof(P);
    return found;
  }
  template <typename T>  // a matrix of these sizes, in words
  const uint32_t* matrix(int64_t inputs, int64_t outputs) {
    return next<uint32_t>(inputs / Kind<T>::per_word * outputs);
  }
};

// What one pass works on, as Python gives it (dmax.kernels.cpu.layers.PassArguments).
template <typename T>
struct Pass {
  Sizes n;
  const T* embeds;  // (N, D)
  T* out;           // (N, D)
  const void* weights;
  const FeedForward* feed_forwards;
  routing::Rule rule;
  const float *cosines, *sines;  // R for every position of a sequence, from 0 on
  attention::Pool<T> pool;       // of the first layer
  int64_t layer_stride;          // from one layer's part of the pool to the next one's
  const attention::Span* spans;
  int64_t num_spans;
};

// Buffers, kept from pass to pass.
template <typename T>
struct Buffers {
  std::vector<float> stream, chosen;  // (N, D), (N, experts)
  std::vector<T> normed, heads, mixed;
  std::vector<int64_t> standing;  // (N,), positions in their sequences
  experts::Shared experts;
  void fit(const Sizes& n, int64_t num_experts) {
    const auto grow = [](auto& numbers, int64_t size) {
      if ((int64_t)numbers.size() < size) numbers.resize(size);
    };
    grow(stream, n.positions * n.hidden);
    grow(normed, n.positions * n.hidden);
    grow(heads, n.positions * (n.heads + 2 * n.kv_heads) * n.channels);
    grow(mixed, n.positions * n.heads * n.channels);
    grow(chosen, n.positions * num_experts);
    grow(standing, n.positions);
  }
};

// 1 / the root mean square of `size` numbers.
template <typename P>
inline float inverse_rms(const P* x, int64_t size, float eps) {
  Floats squares = all(0);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats numbers = Kind<P>::get(x + i);
    squares += numbers * numbers;
  }
  return 1.0f / std::sqrt(sum(squares) / (float)size + eps);
}

template <typename T>
inline void norm(const float* x, const T* weight, int64_t size, float eps, T* to) {
  const float scale = inverse_rms(x, size, eps);
  for (int64_t i = 0; i < size; i += kLanes) Kind<T>::put(to + i, load<Floats>(x + i) * scale * Kind<T>::get(weight + i));
}

// x (rows x inputs) times a matrix in panels; `emit` is given a row, a column and the 16 numbers that begin there.
template <typename T, typename Emit>
void linear(const T* x, int64_t rows, int64_t inputs, const uint32_t* panels, int64_t outputs, const Emit& emit) {
  const int64_t words = inputs / Kind<T>::per_word;
  const uint32_t* const left = reinterpret_cast<const uint32_t*>(x);
  const int64_t of_a_panel = (rows + kRowsOfATask - 1) / kRowsOfATask;
  team::run((outputs + kPanel - 1) / kPanel * of_a_panel, 1, [&](int64_t task) {
    alignas(64) float sums[kRowsOfATask * kPanel];
    const int64_t column = task / of_a_panel * kPanel, row = task % of_a_panel * kRowsOfATask;
    const int64_t width = std::min(kPanel, outputs - column), count = std::min(kRowsOfATask, rows - row);
    multiply<T>({left + row * words, words}, panels + column * words, width, words, sums, kPanel, count, width);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < width; c += kLanes) emit(row + i, column + c, load<Floats>(sums + i * kPanel + c));
  });
}

// Normalises a head if there is a weight, and turns its first channels by the position's angles; `own` has room for
// its channels.
template <typename T>
inline void turn(T* head, const T* weight, const float* cosines, const float* sines, const Sizes& n, float* own) {
  const int64_t half = n.rotary / 2;
  if (weight) {
    const float scale = inverse_rms(head, n.channels, n.eps);
    for (int64_t c = 0; c < n.channels; c += kLanes)
      store(own + c, Kind<T>::get(head + c) * scale * Kind<T>::get(weight + c));
  } else {
    for (int64_t c = 0; c < n.channels; c += kLanes) store(own + c, Kind<T>::get(head + c));
  }
  int64_t c = 0;
  for (; c + kLanes <= half; c += kLanes) {
    const Floats a = load<Floats>(own + c), b = load<Floats>(own + c + half);
    const Floats cosine = load<Floats>(cosines + c), sine = load<Floats>(sines + c);
    store(own + c, a * cosine - b * sine);
    store(own + c + half, b * cosine + a * sine);
  }
  for (; c < half; ++c) {
    const float a = own[c], b = own[c + half];
    own[c] = a * cosines[c] - b * sines[c];
    own[c + half] = b * cosines[c] + a * sines[c];
  }
  for (int64_t c = 0; c < n.channels; c += kLanes) Kind<T>::put(head + c, load<Floats>(own + c));
}

// The weights of every expert for every position, after the norm that stands before them.
template <typename T>
void route(const Pass<T>& pass, Buffers<T>& own, const T* norm_weight, const uint32_t* router, const float* bias) {
  const Sizes& n = pass.n;
  const int64_t num_experts = pass.rule.experts, padded = (num_experts + kLanes - 1) / kLanes * kLanes;
  team::run((n.positions + kRowsToRoute - 1) / kRowsToRoute, 1, [&](int64_t task) {
    static thread_local std::vector<float> x, logits;
    const int64_t first = task * kRowsToRoute;
    const int64_t count = std::min(kRowsToRoute, n.positions - first);
    x.resize(kRowsToRoute * n.hidden);
    logits.resize(kRowsToRoute * padded);
    for (int64_t i = 0; i < count; ++i) {
      T* const normed = own.normed.data() + (first + i) * n.hidden;
      norm(own.stream.data() + (first + i) * n.hidden, norm_weight, n.hidden, n.eps, normed);
      for (int64_t d = 0; d < n.hidden; d += kLanes) store(x.data() + i * n.hidden + d, Kind<T>::get(normed + d));
    }
    multiply_panels<float>({reinterpret_cast<const uint32_t*>(x.data()), n.hidden}, router, n.hidden, logits.data(),
                           padded, count, padded);
    for (int64_t i = 0; i < count; ++i)
      routing::weigh(logits.data() + i * padded, bias, pass.rule, own.chosen.data() + (first + i) * num_experts);
  });
}

template <typename T>
void normalize(const Pass<T>& pass, Buffers<T>& own, const T* weight, T* to) {
  const Sizes& n = pass.n;
  const float* const stream = own.stream.data();
  team::run_rows(n.positions, [&](int64_t row) {
    norm(stream + row * n.hidden, weight, n.hidden, n.eps, to + row * n.hidden);
  });
}

template <typename T>
void attend(const Pass<T>& pass, Buffers<T>& own, Reader& weights, const std::vector<attention::Task>& tasks,
            int64_t layer) {
  const Sizes& n = pass.n;
  const int64_t turning = n.heads + n.kv_heads, channels = n.channels, width = (turning + n.kv_heads) * channels;
  T *const heads = own.heads.data(), *const mixed = own.mixed.data();
  float* const stream = own.stream.data();
  const int64_t* const standing = own.standing.data();
  normalize(pass, own, weights.next<T>(n.hidden), own.normed.data());
  const uint32_t* const qkv = weights.matrix<T>(n.hidden, width);
  const T* const qkv_bias = n.qkv_bias ? weights.next<T>(width) : nullptr;
  linear<T>(own.normed.data(), n.positions, n.hidden, qkv, width, [&](int64_t row, int64_t column, Floats result) {
    Kind<T>::put(heads + row * width + column, qkv_bias ? result + Kind<T>::get(qkv_bias + column) : result);
  });
  const T* const query = n.head_norms ? weights.next<T>(channels) : nullptr;
  const T* const key = n.head_norms ? weights.next<T>(channels) : nullptr;
  team::run_rows(n.positions, [&](int64_t row) {
    static thread_local std::vector<float> turned;
    turned.resize(channels);
    for (int64_t head = 0; head < turning; ++head)
      turn(heads + row * width + head * channels, head < n.heads ? query : key, pass.cosines + standing[row] * n.rotary,
           pass.sines + standing[row] * n.rotary, n, turned.data());
  });
  const auto from = [&](int64_t head) { return attention::Heads<const T>{heads + head * channels, width, channels}; };
  attention::Pool<T> pool = pass.pool;
  pool.keys += layer * pass.layer_stride;
  pool.values += layer * pass.layer_stride;
  attention::attend<T>(from(0), from(n.heads), from(turning), pool, {mixed, n.heads * channels, channels}, pass.spans,
                       pass.num_spans, tasks, n.kv_heads);
  const uint32_t* const dense = weights.matrix<T>(n.heads * channels, n.hidden);
  const T* const bias = n.bias ? weights.next<T>(n.hidden) : nullptr;
  linear<T>(mixed, n.positions, n.heads * channels, dense, n.hidden, [&](int64_t row, int64_t column, Floats result) {
    float* const to = stream + row * n.hidden + column;
    store(to, load<Floats>(to) + (bias ? result + Kind<T>::get(bias + column) : result));
  });
}

template <typename T>
void feed_forward(const Pass<T>& pass, Buffers<T>& own, Reader& weights, const FeedForward& sizes) {
  const Sizes& n = pass.n;
  float* const stream = own.stream.data();
  const T* const norm_weight = weights.next<T>(n.hidden);
  if (sizes.routed) {
    const int64_t padded = (sizes.routed + kLanes - 1) / kLanes * kLanes;
    const uint32_t* const router = weights.matrix<float>(n.hidden, padded);
    route(pass, own, norm_weight, router, weights.next<float>(padded));
  } else {
    normalize(pass, own, norm_weight, own.normed.data());
  }
  const uint32_t* const gate_up = weights.matrix<T>(n.hidden, sizes.all * 2 * sizes.width);
  const uint32_t* const down = weights.matrix<T>(sizes.width, sizes.all * n.hidden);
  experts::run_layer<T>({own.normed.data(), own.chosen.data(), gate_up, down},
                        {n.positions, n.hidden, sizes.width, sizes.routed, sizes.all}, own.experts,
                        [&](int64_t row, int64_t column, Floats result) {
                          float* const to = stream + row * n.hidden + column;
                          store(to, load<Floats>(to) + result);
                        });
}

template <typename T>
void run_pass(const Pass<T>& pass) {
  static thread_local Buffers<T> kept;
  Buffers<T>& own = kept;
  const Sizes& n = pass.n;
  own.fit(n, pass.rule.experts);
  for (int64_t i = 0; i < n.positions * n.hidden; i += kLanes) store(own.stream.data() + i, Kind<T>::get(pass.embeds + i));
  for (const attention::Span* span = pass.spans; span < pass.spans + pass.num_spans; ++span)
    std::iota(own.standing.begin() + span->packed, own.standing.begin() + span->packed + span->end - span->start,
              span->start);
  const std::vector<attention::Task> tasks = attention::make_tasks(pass.spans, pass.num_spans, n.heads, n.kv_heads);
  Reader weights(pass.weights);
  for (int64_t layer = 0; layer < n.layers; ++layer) {
    attend(pass, own, weights, tasks, layer);
    feed_forward(pass, own, weights, pass.feed_forwards[layer]);
  }
  normalize(pass, own, weights.next<T>(n.hidden), pass.out);
}

}  // namespace layers
