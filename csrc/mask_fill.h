// mask_fill as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/mask_fill.py.
#pragma once

#include <cstdint>

#include "cuda_launch.h"

namespace s2v {

struct MaskFillCall {
  int itemsize;  // of latents and out: 4 (float32) or 2 (bfloat16)
  int64_t tracks, kept, tokens, width;  // N, K, L, D
  const void* latents;                  // [N, K, D]
  const float* mask_token;              // [D]
  const float* positions;               // [L, D]
  const int32_t* visible;               // [N, K]
  void* out;                            // out [N, L, D]
};

struct MaskFillBackwardCall {
  int itemsize;  // of grad and d_latents
  int64_t tracks, kept, tokens, width;
  const void* grad;        // [N, L, D]
  const int32_t* visible;  // [N, K]
  void* d_latents;         // out [N, K, D], or null where not wanted
  float* d_mask_token;     // out [D]; with d_positions and scratch, or all three null
  float* d_positions;      // out [L, D]
  float* masked_sums;      // scratch [L, D]
  uint8_t* has_latent;     // scratch [L, N]
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be, and for ids outside 0 ... L - 1.
void mask_fill(const MaskFillCall& call, int threads);
void mask_fill_backward(const MaskFillBackwardCall& call, int threads);

// On a device, where all addresses are the device's; in a build with CUDA. An id that is no token is left out.
void mask_fill_cuda(const MaskFillCall& call, const CudaTarget& target);
void mask_fill_backward_cuda(const MaskFillBackwardCall& call, const CudaTarget& target);

}  // namespace s2v
