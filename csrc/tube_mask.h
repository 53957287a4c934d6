// tube_mask as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/tube_mask.py.
#pragma once

#include <cstdint>

#include "cuda_launch.h"

namespace s2v {

struct TubeMaskCall {
  const void* clips;  // [N, T, V, C], contiguous, float32 or float64
  int itemsize;       // of clips and noise: 4 or 8 bytes
  int64_t tracks, frames, joints, channels;
  int64_t segment_frames, tube_len, keep;
  double motion_weight;
  const void* noise;  // [N, tubes, V] in the dtype of clips, or null: drawn from (seed, epoch, ids)
  uint64_t seed;
  uint32_t epoch;
  const int64_t* ids;  // [N]; null where noise is given
  int32_t* visible;    // out [N, K]
  int32_t* masked;     // out [N, L - K]
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void tube_mask(const TubeMaskCall& call, int threads);

// On a device, where all addresses are the device's; in a build with CUDA. float32 clips.
void tube_mask_cuda(const TubeMaskCall& call, const CudaTarget& target);

// What both refuse.
void tube_mask_check(const TubeMaskCall& call);

}  // namespace s2v
