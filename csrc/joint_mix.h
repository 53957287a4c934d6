// joint_mix as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/joint_mix.py.
#pragma once

#include <cstdint>

namespace s2v {

struct JointMixCall {
  int64_t tracks, frames, joints, channels, subsets, units, groups;  // B, T, V, C, I, U, R
  const float* x;         // [B, T, V, I * C]
  const float* dynamic;   // [B, I, U, V, V]
  const float* constant;  // [I, R, V, V]
  const float* bias;      // [I * C], or null
  const float* gate;      // [B, C], or null
  float* out;             // out [B, T, V, C]
};

struct JointMixBackwardCall {
  int64_t tracks, frames, joints, channels, subsets, units, groups;
  const float* x;
  const float* dynamic;
  const float* constant;
  const float* bias;
  const float* gate;
  const float* grad;         // [B, T, V, C]
  float* d_x;                // out [B, T, V, I * C], or null where not wanted
  float* d_dynamic;          // out [B, I, U, V, V]; with d_constant, or both null
  float* d_constant;         // out [B, I, R, V, V], each track's part of the sum
  float* d_bias;             // out [B, I * C], likewise, or null
  float* d_gate;             // out [B, C], or null; with d_dynamic
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void joint_mix(const JointMixCall& call, int threads);
void joint_mix_backward(const JointMixBackwardCall& call, int threads);

}  // namespace s2v
