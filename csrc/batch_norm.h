// batch_norm as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/batch_norm.py.
#pragma once

#include <cstdint>
#include <vector>

namespace s2v {

// Matrices [rows, widths[i]] side by side: what is normalised, or its gradient.
struct BatchNormCall {
  int64_t rows;
  std::vector<int64_t> widths;  // their sum is C
  std::vector<float*> x;
  const float* weight;    // [C]
  const float* bias;      // [C]
  const float* residual;  // [rows, C], or null
  bool relu_first, relu;
  double eps;
  float* mean;      // out [C]
  float* variance;  // out [C]
  float* out;       // out [rows, C]
};

struct BatchNormBackwardCall {
  int64_t rows;
  std::vector<int64_t> widths;
  std::vector<float*> x;
  const float* weight;
  const float* bias;
  const float* mean;
  const float* variance;
  const float* out;  // with relu and a residual alone
  const float* grad;  // [rows, C]
  bool relu_first, relu;
  double eps;
  std::vector<float*> d_x;  // out
  float* d_weight;          // out [C]
  float* d_bias;            // out [C]
  float* d_residual;        // out [rows, C], or null
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be.
void batch_norm(const BatchNormCall& call, int threads);
void batch_norm_backward(const BatchNormBackwardCall& call, int threads);

}  // namespace s2v
