// The functions of the library: each takes a struct, which a class of dmax.kernels.cpu mirrors field by field.

#include <type_traits>

#include "layers.h"
#include "quantized_experts.h"
#include "rule.h"

#define DMAX_FUNCTION(name, run, Given)                                                        \
  static_assert(std::is_standard_layout<Given<float>>::value, "Python writes it");             \
  void dmax_##name##_float32(const Given<float>* given) { run<float>(*given); }                \
  void dmax_##name##_bfloat16(const Given<Bfloat>* given) { run<Bfloat>(*given); }

extern "C" {
void dmax_team(int64_t threads, int64_t spin_nanoseconds) {
  team::threads = threads;
  team::spin_nanoseconds = spin_nanoseconds;
}
DMAX_FUNCTION(attend, attention::run, attention::Arguments)
DMAX_FUNCTION(experts, experts::run, experts::Arguments)
DMAX_FUNCTION(layers, layers::run_pass, layers::Pass)
DMAX_FUNCTION(quantized_linear, quantized::run_linear, quantized::Linear)
DMAX_FUNCTION(quantized_experts, quantized::run_experts, quantized::Experts)
DMAX_FUNCTION(route, routing::run, routing::Route)
DMAX_FUNCTION(predict, rule::predict, rule::Predict)
DMAX_FUNCTION(decide, rule::decide, rule::Decide)
DMAX_FUNCTION(soften, rule::soften, rule::Soften)
DMAX_FUNCTION(read, rule::read, rule::Read)
}
