// batch_norm on the host: rows are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "batch_norm.h"

#include <algorithm>
#include <cmath>

#include "batch_norm.cuh"
#include "lanes.h"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int64_t kRange = 1024;  // rows of a range: a multiple of kNormRows

// Sums of one matrix's x - shift and of their squares; shift is the matrix's first row.
template <int kLanes>
S2V_HD void sum_range(const float* __restrict__ x, int64_t width, int64_t begin, int64_t end, double* sums) {
  norm_sums<kLanes>(begin, end, width, sums, sums + width, [&](int64_t r, int64_t c, auto& sum, auto& square) {
    constexpr int kWidth = sizeof(sum) / sizeof(float);
    const Pack<kWidth> value = load<kWidth>(x + r * width + c) - load<kWidth>(x + c);
    sum = sum + value;
    square = square + value * value;
  });
}

template <int kLanes>
S2V_HD void forward_range(const NormRow& row, const NormChannels& channels, int64_t offset, const float* x,
                          const float* residual, float* out, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t to = r * row.channels;
    each_pack<kLanes>(0, row.width, [&](int64_t at, auto lanes) {
      norm_forward<lanes()>(row, channels, offset + at, x + r * row.width + at,
                            residual == nullptr ? nullptr : residual + to, out + to);
    });
  }
}

// Sums [2, width] over rows of the upstream gradient g and of g * (x - mean).
template <int kLanes>
S2V_HD void gradient_sums(const NormRow& row, const NormChannels& channels, int64_t offset, const float* __restrict__ x,
                          const float* __restrict__ out, const float* __restrict__ grad, float* __restrict__ d_residual,
                          int64_t begin, int64_t end, double* sums) {
  const auto values = [&](int64_t r, int64_t at, auto& sum, auto& product) {
    constexpr int kWidth = sizeof(sum) / sizeof(float);
    const int64_t to = r * row.channels, c = offset + at;
    const Pack<kWidth> value = load<kWidth>(x + r * row.width + at);
    const Pack<kWidth> g = norm_upstream(row, channels, c, value, out == nullptr ? nullptr : out + to, grad + to,
                                         d_residual == nullptr ? nullptr : d_residual + to);
    sum = sum + g;
    product = product + g * (value - load<kWidth>(channels.mean + c));
  };
  norm_sums<kLanes>(begin, end, row.width, sums, sums + row.width, values);
}

// means: [2, C], of g and of g * (x - mean) / (variance + eps).
template <int kLanes>
S2V_HD void gradient_range(const NormRow& row, const NormChannels& channels, const float* means, int64_t offset,
                           const float* x, const float* out, const float* grad, float* d_x, int64_t begin,
                           int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t to = r * row.channels;
    each_pack<kLanes>(0, row.width, [&](int64_t at, auto lanes) {
      constexpr int kWidth = lanes();
      const int64_t c = offset + at;
      const Pack<kWidth> value = load<kWidth>(x + r * row.width + at);
      const Pack<kWidth> g = norm_upstream(row, channels, c, value, out == nullptr ? nullptr : out + to, grad + to,
                                           static_cast<float*>(nullptr));
      const Pack<kWidth> centred = value - load<kWidth>(channels.mean + c);
      store<kWidth>(d_x + r * row.width + at,
                    (g - load<kWidth>(means + c) - centred * load<kWidth>(means + row.channels + c)) *
                        load<kWidth>(channels.scale + c));
    });
  }
}

// C; raises for what cannot be.
template <class Call>
int64_t checked(const Call& call) {
  require(call.rows >= 0 && call.widths.size() == call.x.size() && !call.x.empty(),
          "batch_norm: rows >= 0, and a width for each of one matrix or more");
  int64_t channels = 0;
  for (size_t i = 0; i < call.x.size(); ++i) {
    require(call.widths[i] >= 0, "batch_norm: a negative width");
    require(call.x[i] != nullptr || call.rows * call.widths[i] == 0, "batch_norm: x is a null pointer");
    channels += call.widths[i];
  }
  require((call.weight != nullptr && call.bias != nullptr && call.mean != nullptr && call.variance != nullptr) ||
              channels == 0,
          "batch_norm: weight, bias, mean or variance is a null pointer");
  return channels;
}

// Sums [2, C] over all rows: those of ranges, added in their order. body makes [2, width] of a range and a matrix.
template <class Call, class Body>
std::vector<double> summed(const Call& call, int64_t channels, int threads, const Body& body) {
  const int64_t ranges = (call.rows + kRange - 1) / kRange;
  std::vector<double> partial(ranges * 2 * channels), sums(2 * channels);
  // From the last range to the first: the last rows are those that were written last and are in a cache yet, and the
  // first ones will be when the next pass begins with them.
  parallel_for(ranges, 1, threads, [&](int64_t number, int64_t) {
    const int64_t range = ranges - 1 - number, begin = range * kRange, end = std::min(begin + kRange, call.rows);
    for (size_t i = 0, offset = 0; i < call.x.size(); offset += call.widths[i++])
      body(i, offset, begin, end, &partial[range * 2 * channels + 2 * offset]);
  });
  for (int64_t range = 0; range < ranges; ++range)
    for (size_t i = 0, offset = 0; i < call.x.size(); offset += call.widths[i++])
      for (int64_t at = 0; at < 2 * call.widths[i]; ++at)
        sums[(at < call.widths[i] ? at : at - call.widths[i] + channels) + offset] +=
            partial[range * 2 * channels + 2 * offset + at];
  return sums;
}

}  // namespace

void batch_norm(const BatchNormCall& call, int threads) {
  const int64_t channels = checked(call);
  if (call.rows * channels == 0) {
    std::fill_n(call.mean, channels, 0.0f);
    std::fill_n(call.variance, channels, 0.0f);
    return;
  }
  require(call.out != nullptr, "batch_norm: out is a null pointer");
  const std::vector<double> sums =
      summed(call, channels, threads, [&](size_t i, int64_t, int64_t begin, int64_t end, double* to) {
        for_lanes(lanes_in_use, [&](auto lanes) { sum_range<lanes()>(call.x[i], call.widths[i], begin, end, to); });
      });
  for (size_t i = 0, offset = 0; i < call.x.size(); offset += call.widths[i++])
    for (int64_t at = 0; at < call.widths[i]; ++at) {
      const int64_t c = offset + at;
      const double shift = sums[c] / double(call.rows);
      call.mean[c] = float(double(call.x[i][at]) + shift);
      call.variance[c] = float(std::max(sums[channels + c] / double(call.rows) - shift * shift, 0.0));
    }
  const std::vector<float> scale = norm_scales(channels, call.weight, call.variance, call.eps);
  const NormChannels numbers = {call.mean, scale.data(), call.bias};
  parallel_for(call.rows, kRange, threads, [&](int64_t begin, int64_t end) {
    for_lanes(lanes_in_use, [&](auto lanes) {
      for (size_t i = 0, offset = 0; i < call.x.size(); offset += call.widths[i++])
        forward_range<lanes()>({call.widths[i], channels, call.relu_first, call.relu}, numbers, offset, call.x[i],
                               call.residual, call.out, begin, end);
    });
  });
}

void batch_norm_backward(const BatchNormBackwardCall& call, int threads) {
  const int64_t channels = checked(call);
  require(call.d_x.size() == call.x.size(), "batch_norm: a gradient for each matrix");
  if (call.rows * channels == 0) {
    std::fill_n(call.d_weight, channels, 0.0f);
    std::fill_n(call.d_bias, channels, 0.0f);
    return;
  }
  require(call.grad != nullptr && call.d_weight != nullptr && call.d_bias != nullptr,
          "batch_norm: grad, d_weight or d_bias is a null pointer");
  const std::vector<float> scale = norm_scales(channels, call.weight, call.variance, call.eps);
  const NormChannels numbers = {call.mean, scale.data(), call.bias};
  const std::vector<double> sums =
      summed(call, channels, threads, [&](size_t i, int64_t offset, int64_t begin, int64_t end, double* to) {
        for_lanes(lanes_in_use, [&](auto lanes) {
          gradient_sums<lanes()>({call.widths[i], channels, call.relu_first, call.relu}, numbers, offset, call.x[i],
                                 call.out, call.grad, call.d_residual, begin, end, to);
        });
      });
  std::vector<float> means(2 * channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double variance = double(call.variance[c]) + call.eps;
    call.d_bias[c] = float(sums[c]);
    call.d_weight[c] = float(sums[channels + c] / std::sqrt(variance));
    means[c] = float(sums[c] / double(call.rows));
    means[channels + c] = float(sums[channels + c] / variance / double(call.rows));
  }
  // What the residual got has been cut by the last ReLU.
  const bool cut = call.d_residual != nullptr;
  const float *grad = cut ? call.d_residual : call.grad, *out = cut ? nullptr : call.out;
  parallel_for(call.rows, kRange, threads, [&](int64_t begin, int64_t end) {
    for_lanes(lanes_in_use, [&](auto lanes) {
      for (size_t i = 0, offset = 0; i < call.x.size(); offset += call.widths[i++])
        gradient_range<lanes()>({call.widths[i], channels, call.relu_first, call.relu && !cut}, numbers, means.data(),
                                offset, call.x[i], out, grad, call.d_x[i], begin, end);
    });
  });
}

}  // namespace s2v
