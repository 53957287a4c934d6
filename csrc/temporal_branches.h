// temporal_branches as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/temporal_branches.py.
#pragma once

#include <cstdint>
#include <vector>

namespace s2v {

struct TemporalBranchesShape {
  int64_t tracks, frames, joints, columns;  // B, T, V, W
  int64_t width, taps, stride, pool;        // b, k, frames
  std::vector<int64_t> dilations;           // K of them

  int64_t steps() const { return (frames + stride - 1) / stride; }                   // T'
  int64_t branched() const { return (int64_t(dilations.size()) + 1) * width; }      // E
};

struct TemporalBranchesCall {
  TemporalBranchesShape shape;
  const float* x;            // [B, T, V, W]
  const float* weight;       // [K, b, b, k]: branch, out, in, tap
  const float* norm_weight;  // [E], or null: the first E columns are taken as they are
  const float* norm_bias;
  double eps;
  float* mean;               // out [E], where there is a norm
  float* variance;
  float* branches;           // out [B, T', V, E]
  float* remainder;             // out [B, T', V, W - E]
};

struct TemporalBranchesBackwardCall {
  TemporalBranchesShape shape;
  const float *x, *weight, *norm_weight, *norm_bias;
  double eps;
  const float *mean, *variance;
  const float* grad;         // [B, T', V, E]
  const float* grad_remainder;  // [B, T', V, W - E]
  float* d_x;                // out [B, T, V, W]
  float* d_weight;           // out [parts, K, k, b, b]: part, branch, tap, in, out
  float* d_norm_weight;      // out [E], where there is a norm
  float* d_norm_bias;
};

// Parts that the gradient of the weight comes in.
int64_t temporal_branches_parts(int64_t tracks);

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void temporal_branches(const TemporalBranchesCall& call, int threads);
void temporal_branches_backward(const TemporalBranchesBackwardCall& call, int threads);

}  // namespace s2v
