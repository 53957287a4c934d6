// temporal_branches on the host: tracks are shared out over threads, columns over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "temporal_branches.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"
#include "parallel.h"
#include "require.h"
#include "temporal_branches.cuh"

namespace s2v {
namespace {

constexpr int64_t kTracks = 2;  // of a range

template <class Call>
void check(const Call& call) {
  const TemporalBranchesShape& shape = call.shape;
  require(shape.tracks >= 0 && shape.frames >= 1 && shape.joints >= 1 && shape.width >= 1 && shape.stride >= 1,
          "temporal_branches: sizes of 1 or more, and tracks of 0 or more");
  require(shape.taps % 2 == 1 && shape.taps <= kBranchTaps && shape.pool % 2 == 1,
          "temporal_branches: odd numbers of taps, at most 64, and of pooled frames");
  require(shape.columns >= shape.branched(), "temporal_branches: fewer columns than the branches take");
  for (const int64_t dilation : shape.dilations) require(dilation >= 1, "temporal_branches: a dilation below 1");
  require((call.x != nullptr && call.weight != nullptr) || shape.tracks == 0,
          "temporal_branches: x or weight is a null pointer");
  require(call.norm_weight == nullptr ||
              (call.norm_bias != nullptr && call.mean != nullptr && call.variance != nullptr),
          "temporal_branches: norm_bias, mean or variance is a null pointer");
}

int64_t weights_of(const TemporalBranchesShape& shape) {
  return int64_t(shape.dilations.size()) * shape.taps * shape.width * shape.width;
}

// Numbers of a track: of x, of the branches' results, of the remainder'.
struct Track {
  int64_t x, out, remainder, rows;
  explicit Track(const TemporalBranchesShape& shape)
      : x(shape.frames * shape.joints * shape.columns),
        out(shape.steps() * shape.joints * shape.branched()),
        remainder(shape.steps() * shape.joints * (shape.columns - shape.branched())),
        rows(shape.frames * shape.joints) {}
};

// Sums of x - shift and of their squares; shift is the first row.
template <int kLanes>
S2V_HD void sum_rows_of(const TemporalBranchesShape& shape, const float* x, int64_t begin, int64_t end, double* sums,
                        double* squares) {
  norm_sums<kLanes>(begin, end, shape.branched(), sums, squares, [&](int64_t r, int64_t c, auto& sum, auto& square) {
    constexpr int kWidth = sizeof(sum) / sizeof(float);
    const Pack<kWidth> value = load<kWidth>(x + r * shape.columns + c) - load<kWidth>(x + c);
    sum = sum + value;
    square = square + value * value;
  });
}

// mean and variance of the first E columns.
void statistics(const TemporalBranchesCall& call, int threads) {
  constexpr int64_t kRange = 1024;
  const TemporalBranchesShape& shape = call.shape;
  const int64_t E = shape.branched(), rows = shape.tracks * Track(shape).rows, ranges = (rows + kRange - 1) / kRange;
  std::vector<double> partial(ranges * 2 * E), sums(2 * E);
  // From the last range to the first: see batch_norm.cpp.
  parallel_for(ranges, 1, threads, [&](int64_t number, int64_t) {
    const int64_t range = ranges - 1 - number, begin = range * kRange;
    double* const to = &partial[range * 2 * E];
    for_lanes(lanes_in_use, [&](auto lanes) {
      sum_rows_of<lanes()>(shape, call.x, begin, std::min(begin + kRange, rows), to, to + E);
    });
  });
  for (int64_t range = 0; range < ranges; ++range)
    for (int64_t c = 0; c < 2 * E; ++c) sums[c] += partial[range * 2 * E + c];
  for (int64_t c = 0; c < E; ++c) {
    const double shift = sums[c] / double(std::max<int64_t>(rows, 1));
    call.mean[c] = rows ? float(double(call.x[c]) + shift) : 0.0f;
    call.variance[c] = rows ? float(std::max(sums[E + c] / double(rows) - shift * shift, 0.0)) : 0.0f;
  }
}

template <int kLanes>
S2V_HD void forward_range(const TemporalBranchesCall& call, const NormChannels& channels, const float* weights,
                          float* scratch, int64_t begin, int64_t end) {
  const TemporalBranchesShape& shape = call.shape;
  const Track track(shape);
  for (int64_t b = begin; b < end; ++b) {
    const float* const x = call.x + b * track.x;
    BranchRows z = {x, shape.columns};
    if (channels.mean != nullptr) {
      branch_normalise<kLanes>(shape, channels, x, scratch);
      z = {scratch, shape.branched()};
    }
    branch_forward<kLanes>(shape, z, x, weights, call.branches + b * track.out, call.remainder + b * track.remainder);
  }
}

// Leaves in d_x what the norm's result gets, and adds up [2, E] of it: g, and g * (x - mean).
template <int kLanes>
S2V_HD void backward_range(const TemporalBranchesBackwardCall& call, const NormChannels& channels, const float* weights,
                           float* scratch, double* sums, float* d_weight, int64_t begin, int64_t end) {
  const TemporalBranchesShape& shape = call.shape;
  const int64_t E = shape.branched(), W = shape.columns;
  const Track track(shape);
  for (int64_t b = begin; b < end; ++b) {
    const float* const x = call.x + b * track.x;
    float* const d_x = call.d_x + b * track.x;
    BranchRows z = {x, W};
    if (channels.mean != nullptr) {
      branch_normalise<kLanes>(shape, channels, x, scratch);
      z = {scratch, E};
    }
    branch_backward<kLanes>(shape, z, weights, call.grad + b * track.out, call.grad_remainder + b * track.remainder, d_x,
                            d_weight);
    if (channels.mean == nullptr) continue;
    norm_sums<kLanes>(0, track.rows, E, sums, sums + E, [&](int64_t r, int64_t c, auto& sum, auto& product) {
      constexpr int kWidth = sizeof(sum) / sizeof(float);
      const Pack<kWidth> g = norm_positive(load<kWidth>(scratch + r * E + c), load<kWidth>(d_x + r * W + c));
      store<kWidth>(d_x + r * W + c, g);
      sum = sum + g;
      product = product + g * (load<kWidth>(x + r * W + c) - load<kWidth>(channels.mean + c));
    });
  }
}

template <int kWidth>
S2V_HD void through_norm(const NormChannels& channels, const float* means, int64_t E, int64_t c, const float* x,
                         float* d_x) {
  const Pack<kWidth> centred = load<kWidth>(x + c) - load<kWidth>(channels.mean + c);
  store<kWidth>(d_x + c, (load<kWidth>(d_x + c) - load<kWidth>(means + c) - centred * load<kWidth>(means + E + c)) *
                             load<kWidth>(channels.scale + c));
}

// means: [2, E], of g and of g * (x - mean) / (variance + eps).
template <int kLanes>
S2V_HD void norm_range(const TemporalBranchesBackwardCall& call, const NormChannels& channels, const float* means,
                       int64_t begin, int64_t end) {
  const int64_t E = call.shape.branched(), W = call.shape.columns;
  for (int64_t r = begin; r < end; ++r)
    each_pack<kLanes>(0, E, [&](int64_t c, auto lanes) {
      through_norm<lanes()>(channels, means, E, c, call.x + r * W, call.d_x + r * W);
    });
}

}  // namespace

int64_t temporal_branches_parts(int64_t tracks) { return (tracks + kTracks - 1) / kTracks; }

void temporal_branches(const TemporalBranchesCall& call, int threads) {
  check(call);
  const TemporalBranchesShape& shape = call.shape;
  const int64_t E = shape.branched();
  std::vector<float> scale;
  NormChannels channels = {};
  if (call.norm_weight != nullptr) {
    statistics(call, threads);
    scale = norm_scales(E, call.norm_weight, call.variance, call.eps);
    channels = {call.mean, scale.data(), call.norm_bias};
  }
  if (shape.tracks == 0) return;
  require(call.branches != nullptr, "temporal_branches: branches is a null pointer");
  std::vector<float> weights(weights_of(shape));
  branch_weights(shape, call.weight, false, weights.data());
  parallel_for(shape.tracks, kTracks, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(channels.mean == nullptr ? 0 : Track(shape).rows * E);
    for_lanes(lanes_in_use, [&](auto lanes) {
      forward_range<lanes()>(call, channels, weights.data(), scratch.data(), begin, end);
    });
  });
}

void temporal_branches_backward(const TemporalBranchesBackwardCall& call, int threads) {
  check(call);
  const TemporalBranchesShape& shape = call.shape;
  const int64_t E = shape.branched(), rows = shape.tracks * Track(shape).rows, numbers = weights_of(shape);
  const int64_t parts = temporal_branches_parts(shape.tracks);
  const bool norm = call.norm_weight != nullptr;
  require(!norm || (call.d_norm_weight != nullptr && call.d_norm_bias != nullptr),
          "temporal_branches: d_norm_weight or d_norm_bias is a null pointer");
  require((call.grad != nullptr && call.d_x != nullptr && call.d_weight != nullptr) || shape.tracks == 0,
          "temporal_branches: grad, d_x or d_weight is a null pointer");
  std::vector<float> scale, weights(numbers);
  NormChannels channels = {};
  if (norm) {
    scale = norm_scales(E, call.norm_weight, call.variance, call.eps);
    channels = {call.mean, scale.data(), call.norm_bias};
  }
  branch_weights(shape, call.weight, true, weights.data());
  std::vector<double> partial(parts * 2 * E), sums(2 * E);
  parallel_for(shape.tracks, kTracks, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(norm ? Track(shape).rows * E : 0);
    float* const d_weight = call.d_weight + begin / kTracks * numbers;
    std::fill_n(d_weight, numbers, 0.0f);
    for_lanes(lanes_in_use, [&](auto lanes) {
      backward_range<lanes()>(call, channels, weights.data(), scratch.data(), &partial[begin / kTracks * 2 * E],
                              d_weight, begin, end);
    });
  });
  if (!norm) return;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < 2 * E; ++c) sums[c] += partial[part * 2 * E + c];
  std::vector<float> means(2 * E);
  for (int64_t c = 0; c < E; ++c) {
    const double variance = double(call.variance[c]) + call.eps, count = double(std::max<int64_t>(rows, 1));
    call.d_norm_bias[c] = float(sums[c]);
    call.d_norm_weight[c] = float(sums[E + c] / std::sqrt(variance));
    means[c] = float(sums[c] / count);
    means[E + c] = float(sums[E + c] / variance / count);
  }
  parallel_for(rows, 1024, threads, [&](int64_t begin, int64_t end) {
    for_lanes(lanes_in_use, [&](auto lanes) { norm_range<lanes()>(call, channels, means.data(), begin, end); });
  });
}

}  // namespace s2v
