// adamw_ema as the bindings call it: raw pointers and sizes. Arguments are those of s2vfast/ops/adamw_ema.py.
#pragma once

#include <cstdint>

#include "cuda_launch.h"

namespace s2v {

struct AdamwEmaCall {
  float *param, *grad, *exp_avg, *exp_avg_sq;  // [P], in place
  float* teacher;                              // [Q], in place
  int64_t numel, teacher_numel;                // P, Q
  const int64_t* spans;                        // [span_count, 3]: start, stop, whether it decays; they cover 0 ... P
  int64_t span_count;
  const double *step_at, *lr_at, *tau_at;      // [1] each, or null for the numbers that follow
  double step, lr, tau;
  double beta1, beta2, eps, weight_decay, clip;
  double* partial;  // scratch [adamw_ema_partials(P)]
  float* norm;      // out [1]
};

// How many partial sums the norm is made of.
int64_t adamw_ema_partials(int64_t numel);

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be, and for spans that do not cover 0 ... P in order.
void adamw_ema(const AdamwEmaCall& call, int threads);

// On a device, where all addresses are the device's; in a build with CUDA.
void adamw_ema_cuda(const AdamwEmaCall& call, const CudaTarget& target);

}  // namespace s2v
