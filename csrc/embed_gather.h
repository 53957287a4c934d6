// embed_gather as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/embed_gather.py; the
// linear map comes transposed.
#pragma once

#include <cstdint>

#include "cuda_launch.h"

namespace s2v {

struct EmbedGatherCall {
  int itemsize;  // of out: 4 (float32) or 2 (bfloat16)
  int64_t tracks, frames, joints, channels, segment_frames, width, kept;
  const float* clips;      // [N, T, V, C]
  const float* weight_t;   // [s * C, D]
  const float* bias;       // [D]
  const float* positions;  // [L, D]
  const int32_t* visible;  // [N, K], or null for all tokens (K = L)
  void* out;               // out [N, K, D]
};

struct EmbedGatherBackwardCall {
  int itemsize;  // of grad
  int64_t tracks, frames, joints, channels, segment_frames, width, kept;
  const float* clips;
  const float* weight_t;
  const int32_t* visible;
  const void* grad;    // [N, K, D]
  float* d_map;        // out [s * C + 1, D]: d_weight transposed, then d_bias; null where not wanted
  float* d_positions;  // out [L, D], or null
  float* d_clips;      // out [N, T, V, C], or null
  float* partial;      // scratch [map_tiles, s * C + 1, D], with d_map
  int64_t map_tiles;   // embed_gather_map_tiles(N * K)
  int32_t* places;     // scratch [L, N], where visible is given and d_positions or d_clips is wanted
};

// Into how many ranges of rows the sums of the map's gradient are cut.
int64_t embed_gather_map_tiles(int64_t rows);

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be, and for ids outside 0 ... L - 1.
void embed_gather(const EmbedGatherCall& call, int threads);
void embed_gather_backward(const EmbedGatherBackwardCall& call, int threads);

// On a device, where all addresses are the device's; in a build with CUDA. The row of an id that is no token is NaN.
void embed_gather_cuda(const EmbedGatherCall& call, const CudaTarget& target);
void embed_gather_backward_cuda(const EmbedGatherBackwardCall& call, const CudaTarget& target);

}  // namespace s2v
