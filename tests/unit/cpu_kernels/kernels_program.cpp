// Runs kernels on numbers that are the same on every processor, and writes what they give to standard output: float32,
// first that of the products with quantised weights, then of experts over them, of float32 experts, routing and the rule.

#include <cstdio>

#include "library.cpp"

namespace {

uint32_t state = 1;

uint32_t draw() {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

std::vector<float> floats(int64_t count) {  // from -1 to 1, in steps that float32 has
  std::vector<float> made(count);
  for (float& x : made) x = (float)(draw() & 0xffff) / 32768.0f - 1.0f;
  return made;
}

struct Weights {
  std::vector<int8_t> numbers;
  std::vector<float> scales;
  std::vector<uint16_t> pairs;
  quantized::Matrix at;

  Weights(int64_t experts, int64_t outputs, int64_t inputs, int64_t group) {
    numbers.resize(experts * outputs * inputs / (group ? 2 : 1));
    for (int8_t& x : numbers) x = group ? (int8_t)draw() : (int8_t)(draw() % 255 - 127);
    scales.assign(experts * outputs, 0.0078125f);
    if (group)
      for (int64_t i = 0; i < experts * outputs * inputs / group; ++i)
        pairs.insert(pairs.end(), {(uint16_t)(0x3d00 + draw() % 128), (uint16_t)(0x40e0 + draw() % 16)});
    at = {numbers.data(), group ? (const void*)pairs.data() : scales.data(), outputs, inputs, group};
  }
};

void write(const std::vector<float>& numbers) { std::fwrite(numbers.data(), sizeof(float), numbers.size(), stdout); }

}  // namespace

int main() {
  team::threads = 2;
  const int64_t rows = 9, hidden = 640, width = 128, experts = 4;
  const std::vector<float> x = floats(rows * hidden);
  std::vector<float> out(rows * 80);
  for (int64_t group : {0, 32, 64}) {
    const Weights weights(1, 80, hidden, group);
    const quantized::Linear<float> linear{x.data(), weights.at, out.data(), rows};
    dmax_quantized_linear_float32(&linear);
    write(out);
  }
  std::vector<float> chosen(rows * experts, 0.0f), sums(rows * hidden);
  for (int64_t row = 0; row < rows; ++row) chosen[row * experts + row % experts] = 0.5f;
  for (int64_t group : {0, 32, 64}) {
    const Weights gate(experts, width, hidden, group), up(experts, width, hidden, group), down(experts, hidden, width, group);
    const quantized::Expert routed{gate.at, up.at, down.at};
    const quantized::Experts<float> layer{x.data(), chosen.data(), sums.data(), routed, {}, rows, experts};
    dmax_quantized_experts_float32(&layer);
    write(sums);
  }
  const std::vector<float> gate_up = floats(experts * hidden * 2 * width), down = floats(experts * hidden * width);
  const auto words = [](const std::vector<float>& numbers) { return reinterpret_cast<const uint32_t*>(numbers.data()); };
  const experts::Arguments<float> layer{
      {x.data(), chosen.data(), words(gate_up), words(down)}, sums.data(), {rows, hidden, width, experts, experts}};
  dmax_experts_float32(&layer);
  write(sums);
  const std::vector<float> router = floats(hidden * 32), bias(32, 0.0f);
  std::vector<float> weights(rows * 32);
  const routing::Route<float> route{x.data(), words(router), bias.data(), weights.data(), {32, 4, 2, 3, 2.5f, 0, 1},
                                    rows, hidden, 0, 0};
  dmax_route_float32(&route);
  write(weights);
  std::vector<int64_t> tokens(rows);
  std::vector<float> probabilities(rows);
  const rule::Predict<float> predict{x.data(), tokens.data(), probabilities.data(), rows, hidden, 3};
  dmax_predict_float32(&predict);
  write(probabilities);
  std::fflush(stdout);
  std::_Exit(0);  // the team's threads are still there
}
