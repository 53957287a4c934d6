// graph_mix as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/graph_mix.py.
#pragma once

#include <cstdint>

namespace s2v {

struct GraphMixCall {
  int64_t rows, joints, channels, subsets;  // R, V, C, K
  const float* x;      // [R, V, C]
  const float* graph;  // [K, V, V]
  float* out;          // out [R, V, K, C + 1]
};

struct GraphMixBackwardCall {
  int64_t rows, joints, channels, subsets;
  const float* x;
  const float* graph;
  const float* grad;  // [R, V, K, C + 1]
  float* d_x;         // out [R, V, C]
  float* d_graph;     // out [K, V, V]
};

// On the host, on `threads` threads (0: one for each core). Throw std::invalid_argument for sizes or pointers that
// cannot be.
void graph_mix(const GraphMixCall& call, int threads);
void graph_mix_backward(const GraphMixBackwardCall& call, int threads);

}  // namespace s2v
