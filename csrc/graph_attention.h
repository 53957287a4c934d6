// graph_attention as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/graph_attention.py.
#pragma once

#include <cstdint>

namespace s2v {

struct GraphAttentionCall {
  int64_t frames, joints, channels, heads, width, results;  // F, V, C, H, d, E
  const float* x;         // [F, V, C]
  const float* qk_weight;  // [2, H, d, C]
  const float* qk_bias;   // [2, H, d]
  const float* topology;  // [H, V, V]
  const float* weight;    // [H, E, C]
  double eps;             // of the norm
  bool split;             // products are those of split_product.h
  float* out;             // out [F, V, E]
};

struct GraphAttentionBackwardCall {
  int64_t frames, joints, channels, heads, width, results;
  const float *x, *qk_weight, *qk_bias, *topology, *weight;
  double eps;
  bool split;
  const float* grad;  // [F, V, E]
  float* d_x;         // out [F, V, C]
  // Parts of sums, graph_attention_parts(F) of each.
  float* d_qk_weight;  // out [parts, 2, H, d, C]
  float* d_qk_bias;    // out [parts, 2, H, d]
  float* d_topology;   // out [parts, H, V, V]
  float* d_weight;     // out [parts, H, C, E]
};

// Parts that gradients of parameters come in.
int64_t graph_attention_parts(int64_t frames);

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void graph_attention(const GraphAttentionCall& call, int threads);
void graph_attention_backward(const GraphAttentionBackwardCall& call, int threads);

}  // namespace s2v
