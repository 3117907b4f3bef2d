// Products of bytes in whole numbers, by whatever the processor has for them. All ways give the same sums.

#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace bytes {

#if defined(__AVX512VNNI__)
constexpr int64_t kWidth = 64;
#else
constexpr int64_t kWidth = 32;
#endif

typedef int8_t Bytes __attribute__((vector_size(kWidth)));
typedef int32_t Sums __attribute__((vector_size(kWidth)));  // of four neighbouring products each

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

// sums + weights * x, where weights are from 0 to 127.
inline Sums add_levels(Sums sums, Bytes weights, Bytes x) {
#if defined(__AVX512VNNI__)
  return (Sums)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)x);
#else
  return (Sums)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)x);
#endif
}

// sums + (weights + kOffset) * x: the instruction takes one factor without a sign.
constexpr int32_t kOffset = 128;
inline Sums add_products(Sums sums, Bytes weights, Bytes x) { return add_levels(sums, weights ^ (int8_t)-128, x); }

#elif defined(__AVX2__)

inline Sums add_levels(Sums sums, Bytes weights, Bytes x) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, (__m256i)x);
  return sums + (Sums)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Weights change signs with x: with their offset, two products would be too large for 16 bits.
constexpr int32_t kOffset = 0;
inline Sums add_products(Sums sums, Bytes weights, Bytes x) {
  const __m256i w = (__m256i)weights;
  return add_levels(sums, (Bytes)_mm256_abs_epi8(w), (Bytes)_mm256_sign_epi8((__m256i)x, w));
}

#else

constexpr int32_t kOffset = 0;
inline Sums add_products(Sums sums, Bytes weights, Bytes x) {
#if defined(__ARM_FEATURE_DOTPROD)
  int8x16_t w[2], y[2];
  int32x4_t s[2];
  __builtin_memcpy(w, &weights, kWidth);
  __builtin_memcpy(y, &x, kWidth);
  __builtin_memcpy(s, &sums, kWidth);
  for (int half = 0; half < 2; ++half) s[half] = vdotq_s32(s[half], w[half], y[half]);
  __builtin_memcpy(&sums, s, kWidth);
#else
  for (int shift = 24; shift >= 0; shift -= 8) sums += ((Sums)weights << shift >> 24) * ((Sums)x << shift >> 24);
#endif
  return sums;
}
inline Sums add_levels(Sums sums, Bytes weights, Bytes x) { return add_products(sums, weights, x); }

#endif

}  // namespace bytes
