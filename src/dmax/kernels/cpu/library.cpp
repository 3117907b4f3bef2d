// The functions of the library: each takes addresses and sizes, in the order that its namespace says.

#include "layers.h"
#include "rule.h"

extern "C" {
void dmax_attend_float32(const int64_t* numbers) { attention::run<float>(numbers); }
void dmax_attend_bfloat16(const int64_t* numbers) { attention::run<Bfloat>(numbers); }
void dmax_experts_float32(const int64_t* numbers) { experts::run<float>(numbers); }
void dmax_experts_bfloat16(const int64_t* numbers) { experts::run<Bfloat>(numbers); }
void dmax_layers_float32(const int64_t* numbers) { layers::run<float>(numbers); }
void dmax_layers_bfloat16(const int64_t* numbers) { layers::run<Bfloat>(numbers); }
void dmax_predict_float32(const int64_t* numbers) { rule::predict<float>(numbers); }
void dmax_predict_bfloat16(const int64_t* numbers) { rule::predict<Bfloat>(numbers); }
void dmax_decide_float32(const int64_t* numbers) { rule::decide<float>(numbers); }
void dmax_decide_bfloat16(const int64_t* numbers) { rule::decide<Bfloat>(numbers); }
void dmax_soften_float32(const int64_t* numbers) { rule::soften<float>(numbers); }
void dmax_soften_bfloat16(const int64_t* numbers) { rule::soften<Bfloat>(numbers); }
void dmax_read_float32(const int64_t* numbers) { rule::read<float>(numbers); }
void dmax_read_bfloat16(const int64_t* numbers) { rule::read<Bfloat>(numbers); }
}
