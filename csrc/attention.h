// attention as the bindings call it: raw pointers and sizes, on a GPU 16-byte aligned. Shapes are those of
// s2vfast/ops/attention.py. Numbers are float32 on the host, float16 or bfloat16 on a GPU.
#pragma once

#include <cstdint>

#include "cuda_launch.h"

namespace s2v {

struct AttentionCall {
  bool half;  // on a GPU: float16; else bfloat16
  int64_t tracks, tokens, heads, width;
  const void* qkv;  // [N, L, 3, H, d]
  void* out;        // out [N, L, H, d]
  float* lse;       // out [N, H, L]
  int64_t group;    // on the host: so many neighbours do not look at each other; 0: all do
};

struct AttentionBackwardCall {
  bool half;
  int64_t tracks, tokens, heads, width;
  const void* qkv;
  const void* out;        // of the forward pass, as is lse
  const float* lse;
  const void* grad_out;   // [N, L, H, d]
  const float* grad_lse;  // [N, H, L], or null
  void* grad_qkv;         // out [N, L, 3, H, d]
  float* workspace;       // on a GPU: scratch [blocks, floats], of attention_backward_workspace
  int64_t blocks;         // that share out the heads of all tracks
  int64_t group;          // as above
};

// On the host, on `threads` threads (0: one for each core). Throw std::invalid_argument for sizes or pointers that
// cannot be.
void attention(const AttentionCall& call, int threads);
void attention_backward(const AttentionBackwardCall& call, int threads);

// What the backward pass needs on a GPU: blocks, and a workspace of so many floats for each.
struct AttentionWorkspace {
  int64_t blocks, floats;
};
AttentionWorkspace attention_backward_workspace(int64_t batch_heads, int64_t tokens, int64_t width,
                                                const CudaTarget& target);

// On a device, where all addresses are the device's; in a build with CUDA. Throw std::invalid_argument for sizes or
// addresses that cannot be.
void attention_cuda(const AttentionCall& call, const CudaTarget& target);
void attention_backward_cuda(const AttentionBackwardCall& call, const CudaTarget& target);

}  // namespace s2v
