// adamw_ema, the work for one range of numbers, shared by the host (one lane) and the device (a block's lanes).
//
// Clip by the global norm, AdamW (Loshchilov & Hutter, ICLR 2019), then teacher <- tau teacher + (1 - tau) student,
// over flat buffers in place. Two passes: the norm needs the whole gradient before the first number can change. What is
// the same for all numbers (bias corrections, factors) is computed in double, as 1 - beta^step loses digits in float.
//
// Memory: the first pass reads the gradient; the second reads five buffers and writes four, and the gradient too where
// it is clipped. Bound by bandwidth.
#pragma once

#include <cmath>
#include <cstdint>

#include "pack.cuh"

namespace s2v {

struct AdamwEmaOptions {
  double beta1, beta2, eps, weight_decay, clip;
};

// What may change from step to step: where it lies, or, where that is null, the number itself. Addresses let a captured
// graph read another number at each replay.
struct AdamwEmaNumber {
  const double* at;
  double value;

  S2V_HD double get() const { return at != nullptr ? *at : value; }
};

struct AdamwEmaNumbers {
  AdamwEmaNumber step, lr, tau;  // step: 1 for the first
};

struct AdamwEmaBuffers {
  float *param, *grad, *exp_avg, *exp_avg_sq;  // [P]
  float* teacher;                              // [Q]
  int64_t numel, teacher_numel;                // P, Q
  const int64_t* spans;                        // [., 3]: start, stop, whether it decays
  int64_t span_count;
};

// What is the same for all numbers of a step.
struct AdamwEmaFactors {
  bool finite;  // the norm; where it is not, nothing changes
  float clip, decay_factor;  // of the gradient, of a parameter that decays
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size, bias_corr2_rsqrt, eps;  // lr / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  float tau, one_minus_tau;
};

// The sum is cut into at most this many partial sums.
constexpr int64_t kAdamwEmaPartials = 1024;

S2V_HD int64_t adamw_ema_partial_numbers(int64_t numel) {
  constexpr int64_t unit = 4096 * kAdamwEmaPartials;
  return (numel + unit - 1) / unit * 4096;
}

// This lane's part of the sum of squares of grad[begin ... end). A few squares are added up in float, so that a norm
// above 1.8e19 is infinite, as it is where all is summed in float; the rest in double.
template <int kWidth, int kPacks>
S2V_HD double adamw_ema_squares(const float* __restrict__ grad, int64_t begin, int64_t end, int32_t lane,
                                int32_t lanes) {
  constexpr int32_t window = kWidth * kPacks;
  double sum = 0;
  int64_t at = begin + int64_t(lane) * window;
  while (at + window <= end) {
    Pack<kWidth> sums[kPacks] = {};
    for (int run = 0; run < 32 && at + window <= end; ++run, at += int64_t(lanes) * window) {
      for (int p = 0; p < kPacks; ++p) {
        const Pack<kWidth> numbers = load<kWidth>(grad + at + p * kWidth);
        sums[p] = sums[p] + numbers * numbers;
      }
    }
    for (int p = 1; p < kPacks; ++p) sums[0] = sums[0] + sums[p];
    sum += double(total(sums[0]));
  }
  for (; at < end; ++at) sum += double(grad[at] * grad[at]);  // less than a window, and of one lane alone
  return sum;
}

S2V_HD float adamw_ema_norm(double squares) { return sqrtf(float(squares)); }

S2V_HD AdamwEmaFactors adamw_ema_factors(float norm, const AdamwEmaNumbers& numbers, const AdamwEmaOptions& options) {
  const double step = numbers.step.get(), lr = numbers.lr.get(), tau = numbers.tau.get();
  AdamwEmaFactors factors;
  factors.finite = norm - norm == 0.0f;
  // PyTorch's clip_grad_norm_ adds 1e-6 to the norm.
  const double scale = options.clip / (double(norm) + 1e-6);
  factors.clip = options.clip != 0.0 && scale < 1.0 ? float(scale) : 1.0f;
  factors.decay_factor = float(1.0 - lr * options.weight_decay);
  factors.beta1 = float(options.beta1);
  factors.one_minus_beta1 = float(1.0 - options.beta1);
  factors.beta2 = float(options.beta2);
  factors.one_minus_beta2 = float(1.0 - options.beta2);
  factors.step_size = float(lr / (1.0 - pow(options.beta1, step)));
  factors.bias_corr2_rsqrt = float(1.0 / sqrt(1.0 - pow(options.beta2, step)));
  factors.eps = float(options.eps);
  factors.tau = float(tau);
  factors.one_minus_tau = float(1.0 - tau);
  return factors;
}

// Numbers begin ... end, which are treated alike; end - begin is a multiple of kWidth. kClips: the gradient is written
// too. kTeaches: the teacher follows.
template <bool kClips, bool kTeaches, int kWidth>
S2V_HD void adamw_ema_stretch(const AdamwEmaFactors& factors, bool decays, const AdamwEmaBuffers& buffers,
                              int64_t begin, int64_t end, int32_t lane, int32_t lanes) {
  const AdamwEmaFactors f = factors;
  const float decay_factor = decays ? f.decay_factor : 1.0f;
  for (int64_t at = begin + int64_t(lane) * kWidth; at < end; at += int64_t(lanes) * kWidth) {
    Pack<kWidth> param = load<kWidth>(buffers.param + at), grad = load<kWidth>(buffers.grad + at);
    Pack<kWidth> first = load<kWidth>(buffers.exp_avg + at), second = load<kWidth>(buffers.exp_avg_sq + at);
    Pack<kWidth> teacher = {};
    if (kTeaches) teacher = load<kWidth>(buffers.teacher + at);
    if (kClips) grad = grad * f.clip;
    first = first * f.beta1 + grad * f.one_minus_beta1;
    second = second * f.beta2 + grad * f.one_minus_beta2 * grad;
    param = param * decay_factor - first * f.step_size / (roots(second) * f.bias_corr2_rsqrt + f.eps);
    if (kTeaches) store<kWidth>(buffers.teacher + at, teacher * f.tau + param * f.one_minus_tau);
    store<kWidth>(buffers.param + at, param);
    if (kClips) store<kWidth>(buffers.grad + at, grad);
    store<kWidth>(buffers.exp_avg + at, first);
    store<kWidth>(buffers.exp_avg_sq + at, second);
  }
}

// The same where begin and end are anything: single numbers up to an aligned one, then kWidth at a time, then the rest.
template <bool kClips, bool kTeaches, int kWidth>
S2V_HD void adamw_ema_any_stretch(const AdamwEmaFactors& factors, bool decays, const AdamwEmaBuffers& buffers,
                                  int64_t begin, int64_t end, int32_t lane, int32_t lanes) {
  const int64_t up = (begin + kWidth - 1) / kWidth * kWidth, down = end / kWidth * kWidth;
  const int64_t head = up < end ? up : end, tail = down > head ? down : head;
  if (head > begin) adamw_ema_stretch<kClips, kTeaches, 1>(factors, decays, buffers, begin, head, lane, lanes);
  adamw_ema_stretch<kClips, kTeaches, kWidth>(factors, decays, buffers, head, tail, lane, lanes);
  if (end > tail) adamw_ema_stretch<kClips, kTeaches, 1>(factors, decays, buffers, tail, end, lane, lanes);
}

template <bool kClips, int kWidth>
S2V_HD void adamw_ema_range(const AdamwEmaFactors& factors, const AdamwEmaBuffers& buffers, int64_t begin, int64_t end,
                            int32_t lane, int32_t lanes) {
  // The last span that starts at begin or before it.
  int64_t span = 0, beyond = buffers.span_count;
  while (beyond - span > 1) {
    const int64_t middle = span + (beyond - span) / 2;
    if (buffers.spans[3 * middle] <= begin) span = middle;
    else beyond = middle;
  }
  for (; span < buffers.span_count && buffers.spans[3 * span] < end; ++span) {
    const int64_t start = buffers.spans[3 * span], stop = buffers.spans[3 * span + 1];
    const bool decays = buffers.spans[3 * span + 2] != 0;
    const int64_t from = start > begin ? start : begin, to = stop < end ? stop : end;
    const int64_t cut = to < buffers.teacher_numel ? to : buffers.teacher_numel;
    if (from < cut) adamw_ema_any_stretch<kClips, true, kWidth>(factors, decays, buffers, from, cut, lane, lanes);
    const int64_t rest = from > cut ? from : cut;
    if (rest < to) adamw_ema_any_stretch<kClips, false, kWidth>(factors, decays, buffers, rest, to, lane, lanes);
  }
}

// Numbers begin ... end of all buffers; nothing where the norm is not finite.
template <int kWidth>
S2V_HD void adamw_ema_item(const AdamwEmaFactors& factors, const AdamwEmaBuffers& buffers, int64_t begin, int64_t end,
                           int32_t lane, int32_t lanes) {
  if (!factors.finite) return;
  if (factors.clip != 1.0f) adamw_ema_range<true, kWidth>(factors, buffers, begin, end, lane, lanes);
  else adamw_ema_range<false, kWidth>(factors, buffers, begin, end, lane, lanes);
}

}  // namespace s2v
