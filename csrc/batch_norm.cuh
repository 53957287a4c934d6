// Batch norm, a residual and ReLU, the work for rows of neighbouring channels.
//
// out = relu(relu(weight * (x - mean) / sqrt(variance + eps) + bias) + residual), where either ReLU and the residual may
// be left out. Statistics are sums over rows in float32 of a few rows, and of these in double: one pass, of differences
// from the first row, so that a mean that is large beside the deviation costs no digits.
//
// Forward reads x twice and writes out once. The gradient reads x and its upstream twice and writes d_x once. Where ReLU
// cut is read off x, or off out where a residual was added.
#pragma once

#include <vector>

#include "pack.cuh"

namespace s2v {

constexpr int kNormRows = 32;  // rows that are added up in float32

// Numbers of a channel, an array [C] each.
struct NormChannels {
  const float *mean, *scale, *bias;  // scale: weight / sqrt(variance + eps)
};

template <int kWidth>
S2V_HD Pack<kWidth> norm_positive(const Pack<kWidth>& of, const Pack<kWidth>& value) {
#if defined(__CUDACC__)
  Pack<kWidth> out;
  for (int i = 0; i < kWidth; ++i) out.at[i] = of.at[i] > 0.0f ? value.at[i] : 0.0f;
  return out;
#else
  const Pack<kWidth> zero = {};
  return {of.at > zero.at ? value.at : zero.at};
#endif
}

// NaN stays NaN, as in PyTorch's ReLU.
template <int kWidth>
S2V_HD Pack<kWidth> norm_relu(const Pack<kWidth>& of) {
#if defined(__CUDACC__)
  Pack<kWidth> out;
  for (int i = 0; i < kWidth; ++i) out.at[i] = of.at[i] <= 0.0f ? 0.0f : of.at[i];
  return out;
#else
  const Pack<kWidth> zero = {};
  return {of.at <= zero.at ? zero.at : of.at};
#endif
}

template <int kWidth>
S2V_HD Pack<kWidth> norm_affine(const NormChannels& channels, int64_t c, const Pack<kWidth>& x) {
  return (x - load<kWidth>(channels.mean + c)) * load<kWidth>(channels.scale + c) + load<kWidth>(channels.bias + c);
}

// Adds over rows begin ... end, in registers, what values(r, c, sum, product) adds to sum and product, and the results to
// sums[c] and products[c].
template <int kWidth, int kPacks, class Values>
S2V_HD void norm_sums_of(int64_t begin, int64_t end, int64_t c, double* sums, double* products, const Values& values) {
  Pack<kWidth> sum[kPacks] = {}, product[kPacks] = {};
  for (int64_t r = begin; r < end; ++r)
    for (int p = 0; p < kPacks; ++p) values(r, c + p * kWidth, sum[p], product[p]);
  float numbers[2][kPacks * kWidth];
  for (int p = 0; p < kPacks; ++p) {
    store<kWidth>(numbers[0] + p * kWidth, sum[p]);
    store<kWidth>(numbers[1] + p * kWidth, product[p]);
  }
  for (int i = 0; i < kPacks * kWidth; ++i) {
    sums[c + i] += double(numbers[0][i]);
    products[c + i] += double(numbers[1][i]);
  }
}

// The same for all rows and columns c < width: a few rows are added up in float32, and their sums in double.
template <int kLanes, class Values>
S2V_HD void norm_sums(int64_t begin, int64_t end, int64_t width, double* sums, double* products, const Values& values) {
  // Few rows at a time, so that columns of a row that are not worked on together are read from the cache.
  for (int64_t first = begin; first < end; first += kNormRows) {
    const int64_t last = first + kNormRows < end ? first + kNormRows : end;
    each_packs<kLanes, 4>(0, width, [&](int64_t c, auto lanes, auto packs) {
      norm_sums_of<lanes(), packs()>(first, last, c, sums, products, values);
    });
  }
}

struct NormRow {
  int64_t width, channels;  // of x and d_x; of out, grad, residual
  bool relu_first, relu;
};

// out of one row, channels c ... c + kWidth. Pointers are the row's; c counts in all of C, x begins at x_first.
template <int kWidth>
S2V_HD void norm_forward(const NormRow& row, const NormChannels& channels, int64_t c, const float* x,
                         const float* residual, float* out) {
  Pack<kWidth> y = norm_affine(channels, c, load<kWidth>(x));
  if (row.relu_first) y = norm_relu(y);
  if (residual != nullptr) y = y + load<kWidth>(residual + c);
  if (row.relu) y = norm_relu(y);
  store<kWidth>(out + c, y);
}

// What the norm's result gets of the upstream gradient; what the residual gets is written to d_residual, or null.
template <int kWidth>
S2V_HD Pack<kWidth> norm_upstream(const NormRow& row, const NormChannels& channels, int64_t c, const Pack<kWidth>& x,
                                  const float* out, const float* grad, float* d_residual) {
  Pack<kWidth> g = load<kWidth>(grad + c);
  if (row.relu && out != nullptr) g = norm_positive(load<kWidth>(out + c), g);
  if (d_residual != nullptr) store<kWidth>(d_residual + c, g);
  if (row.relu_first || (row.relu && out == nullptr)) g = norm_positive(norm_affine(channels, c, x), g);
  return g;
}

// The scale of each channel.
inline std::vector<float> norm_scales(int64_t channels, const float* weight, const float* variance, double eps) {
  std::vector<float> scale(channels);
  for (int64_t c = 0; c < channels; ++c) scale[c] = float(double(weight[c]) / std::sqrt(double(variance[c]) + eps));
  return scale;
}

}  // namespace s2v
