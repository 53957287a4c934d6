// graph_attention as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/graph_attention.py.
#pragma once

#include <cstdint>

namespace s2v {

struct GraphAttentionCall {
  int64_t frames, joints, channels, heads, width;  // F, V, C, H, d
  const float* x;         // [F, V, C]
  const float* qk;        // [F, V, 2, H, d]
  const float* topology;  // [H, V, V]
  float* mixed;           // out [F, V, H, C]
};

struct GraphAttentionBackwardCall {
  int64_t frames, joints, channels, heads, width;
  const float* x;
  const float* qk;
  const float* topology;
  float* mixed;       // [F, V, H * C]: in, its gradient; out, itself
  float* d_x;         // out [F, V, C]
  float* d_qk;        // out [F, V, 2, H, d]
  float* d_topology;  // out [graph_attention_parts(F), H, V, V], parts of a sum
};

// Parts that the topology's gradient comes in.
int64_t graph_attention_parts(int64_t frames);

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void graph_attention(const GraphAttentionCall& call, int threads);
void graph_attention_backward(const GraphAttentionBackwardCall& call, int threads);

}  // namespace s2v
