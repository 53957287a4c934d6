// Branches over time, the work for one track: batch norm and ReLU of its rows, dilated convolutions, a maximum.
//
// The normalised rows of a track are made when they are wanted, forward and backward, and stay in the second cache. A
// convolution is a sum of products of matrices, one a tap, of frames that need no padding: taps beyond the ends are left
// out. The gradient of rows goes straight to where it belongs, a row of all columns.
#pragma once

#include "batch_norm.cuh"
#include "temporal_branches.h"

namespace s2v {

constexpr int kBranchTaps = 64;  // at most

// Rows of one frame, and the matrix that they go through.
struct BranchTap {
  const float *rows, *weight;
};

// out[r][n] = sum over taps and c < depth of rows[r][c] * weight[c][n], for kRows rows and kPacks registers of columns.
template <int kWidth, int kRows, int kPacks>
S2V_HD void branch_tile(const BranchTap* taps, int count, int64_t depth, int64_t row, int64_t r, int64_t n,
                        float* __restrict__ out, int64_t out_row) {
  Pack<kWidth> sums[kRows][kPacks] = {};
  for (int tap = 0; tap < count; ++tap) {
    const float* __restrict__ from = taps[tap].rows + r * row;
    const float* __restrict__ weight = taps[tap].weight + n;
    for (int64_t c = 0; c < depth; ++c) {
      Pack<kWidth> read[kPacks];
      for (int p = 0; p < kPacks; ++p) read[p] = load<kWidth>(weight + c * depth + p * kWidth);
      for (int i = 0; i < kRows; ++i) {
        const float factor = from[i * row + c];
        for (int p = 0; p < kPacks; ++p) sums[i][p] = sums[i][p] + read[p] * factor;
      }
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kPacks; ++p) store<kWidth>(out + (r + i) * out_row + n + p * kWidth, sums[i][p]);
}

template <int kWidth, int kPacks>
S2V_HD void branch_rows(const BranchTap* taps, int count, int64_t depth, int64_t row, int64_t rows, int64_t n,
                        float* out, int64_t out_row) {
  int64_t r = 0;
  if constexpr (kWidth == 16)  // there are 32 registers
    for (; r + 10 <= rows; r += 10) branch_tile<kWidth, 10, kPacks>(taps, count, depth, row, r, n, out, out_row);
  for (; r + 5 <= rows; r += 5) branch_tile<kWidth, 5, kPacks>(taps, count, depth, row, r, n, out, out_row);
  for (; r < rows; ++r) branch_tile<kWidth, 1, kPacks>(taps, count, depth, row, r, n, out, out_row);
}

// out [rows, depth], its rows out_row apart, of rows that are `row` apart. Without a tap it is zero.
template <int kLanes>
S2V_HD void branch_product(const BranchTap* taps, int count, int64_t depth, int64_t row, int64_t rows, float* out,
                           int64_t out_row) {
  each_packs<kLanes, 2>(0, depth, [&](int64_t n, auto lanes, auto packs) {
    branch_rows<lanes(), packs()>(taps, count, depth, row, rows, n, out, out_row);
  });
}

// Frames of x that a result's taps fall on: step t's tap k is frame t * stride + k * dilation + begin.
struct BranchFrames {
  int64_t frames, steps, stride, dilation, begin;

  S2V_HD int64_t frame(int64_t t, int64_t k) const { return t * stride + k * dilation + begin; }
  S2V_HD bool inside(int64_t frame) const { return frame >= 0 && frame < frames; }
};

S2V_HD BranchFrames branch_frames(const TemporalBranchesShape& shape, int64_t branch) {
  const int64_t dilation = shape.dilations[branch];
  return {shape.frames, shape.steps(), shape.stride, dilation, -(shape.taps / 2) * dilation};
}

// Where the rows of a track are read, E columns of each, and how far apart they lie.
struct BranchRows {
  const float* at;
  int64_t row;
};

// rows[i] = relu(norm of x's first E columns), for all rows of a track.
template <int kLanes>
S2V_HD void branch_normalise(const TemporalBranchesShape& shape, const NormChannels& channels, const float* x,
                             float* rows) {
  const int64_t E = shape.branched();
  for (int64_t r = 0; r < shape.frames * shape.joints; ++r) {
    each_pack<kLanes>(0, E, [&](int64_t c, auto lanes) {
      store<lanes()>(rows + r * E + c, norm_relu(norm_affine(channels, c, load<lanes()>(x + r * shape.columns + c))));
    });
  }
}

// weights [K, k, b, b], by tap: [in, out] for the way forward, [out, in] back. weight: [K, out, in, k].
S2V_HD void branch_weights(const TemporalBranchesShape& shape, const float* weight, bool back, float* weights) {
  const int64_t b = shape.width, k = shape.taps;
  for (size_t i = 0; i < shape.dilations.size(); ++i)
    for (int64_t out = 0; out < b; ++out)
      for (int64_t in = 0; in < b; ++in)
        for (int64_t tap = 0; tap < k; ++tap)
          weights[((i * k + tap) * b + (back ? out : in)) * b + (back ? in : out)] =
              weight[((i * b + out) * b + in) * k + tap];
}

// The largest of each column of one joint in frames first ... last of z, a NaN where there is one. z: the joint's row of
// frame 0, and how far frames lie apart.
S2V_HD void branch_largest(const BranchRows& z, int64_t first, int64_t last, int64_t columns, float* __restrict__ out) {
  const float* __restrict__ from = z.at + first * z.row;
  for (int64_t c = 0; c < columns; ++c) out[c] = from[c];
  for (int64_t f = first + 1; f < last; ++f) {
    from = z.at + f * z.row;
    for (int64_t c = 0; c < columns; ++c) out[c] = from[c] > out[c] || from[c] != from[c] ? from[c] : out[c];
  }
}

// Adds its gradient to the number that is the largest, and stands first, in frames that lie d_row apart.
S2V_HD void branch_largest_grad(const BranchRows& z, int64_t first, int64_t last, int64_t columns,
                                const float* __restrict__ grad, float* d, int64_t d_row) {
  constexpr int64_t kColumns = 64;
  float best[kColumns], left[kColumns];
  for (int64_t begin = 0; begin < columns; begin += kColumns) {
    const int64_t count = columns - begin < kColumns ? columns - begin : kColumns;
    branch_largest({z.at + begin, z.row}, first, last, count, best);
    for (int64_t c = 0; c < count; ++c) left[c] = grad[begin + c];
    for (int64_t f = first; f < last; ++f) {
      const float* __restrict__ from = z.at + f * z.row + begin;
      float* __restrict__ to = d + f * d_row + begin;
      for (int64_t c = 0; c < count; ++c) {
        const bool here = from[c] == best[c];
        to[c] += here ? left[c] : 0.0f;
        left[c] = here ? 0.0f : left[c];
      }
    }
  }
}

// All results of a track; pointers are the track's. z: rows as the branches see them. weights: those of the way forward.
template <int kLanes>
S2V_HD void branch_forward(const TemporalBranchesShape& shape, const BranchRows& z, const float* x,
                           const float* weights, float* out, float* remainder) {
  const int64_t b = shape.width, V = shape.joints, E = shape.branched(), steps = shape.steps();
  const int64_t pooled = E - b, remaining = shape.columns - E;
  BranchTap taps[kBranchTaps];
  for (int64_t t = 0; t < steps; ++t) {
    float* const to = out + t * V * E;
    for (size_t i = 0; i < shape.dilations.size(); ++i) {
      const BranchFrames where = branch_frames(shape, i);
      int count = 0;
      for (int64_t k = 0; k < shape.taps; ++k)
        if (where.inside(where.frame(t, k)))
          taps[count++] = {z.at + where.frame(t, k) * V * z.row + i * b, weights + (i * shape.taps + k) * b * b};
      branch_product<kLanes>(taps, count, b, z.row, V, to + i * b, E);
    }
    const int64_t middle = t * shape.stride, half = shape.pool / 2;
    const int64_t first = middle > half ? middle - half : 0;
    const int64_t last = middle + half + 1 < shape.frames ? middle + half + 1 : shape.frames;
    for (int64_t r = 0; r < V; ++r) {
      branch_largest({z.at + r * z.row + pooled, V * z.row}, first, last, b, to + r * E + pooled);
      const float* const from = x + (middle * V + r) * shape.columns + E;
      for (int64_t at = 0; at < remaining; ++at) remainder[(t * V + r) * remaining + at] = from[at];
    }
  }
}

// d_weight[in ... in + kRows][out ... out + kPacks registers] += sum over steps and rows of z * grad, of one tap.
template <int kWidth, int kRows, int kPacks>
S2V_HD void branch_weight_tile(const BranchFrames& where, int64_t k, int64_t joints, const BranchRows& z,
                               const float* __restrict__ grad, int64_t grad_row, float* __restrict__ d_weight,
                               int64_t d_row) {
  Pack<kWidth> sums[kRows][kPacks] = {};
  for (int64_t t = 0; t < where.steps; ++t) {
    if (!where.inside(where.frame(t, k))) continue;
    const float* __restrict__ from = z.at + where.frame(t, k) * joints * z.row;
    const float* __restrict__ upstream = grad + t * joints * grad_row;
    for (int64_t r = 0; r < joints; ++r) {
      Pack<kWidth> read[kPacks];
      for (int p = 0; p < kPacks; ++p) read[p] = load<kWidth>(upstream + r * grad_row + p * kWidth);
      for (int i = 0; i < kRows; ++i) {
        const float factor = from[r * z.row + i];
        for (int p = 0; p < kPacks; ++p) sums[i][p] = sums[i][p] + read[p] * factor;
      }
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kPacks; ++p) {
      float* const to = d_weight + i * d_row + p * kWidth;
      store<kWidth>(to, load<kWidth>(to) + sums[i][p]);
    }
}

template <int kWidth, int kPacks>
S2V_HD void branch_weight_rows(const BranchFrames& where, int64_t k, int64_t joints, const BranchRows& z, int64_t b,
                               const float* grad, int64_t grad_row, float* d_weight) {
  constexpr int kRows = kWidth == 16 ? 8 : 4;
  int64_t in = 0;
  for (; in + kRows <= b; in += kRows)
    branch_weight_tile<kWidth, kRows, kPacks>(where, k, joints, {z.at + in, z.row}, grad, grad_row, d_weight + in * b,
                                              b);
  for (; in < b; ++in)
    branch_weight_tile<kWidth, 1, kPacks>(where, k, joints, {z.at + in, z.row}, grad, grad_row, d_weight + in * b, b);
}

// Adds a track's part to d_weight [K, k, in, out], and writes the gradient of its z to the first E columns of d_x.
// weights: those of the way back.
template <int kLanes>
S2V_HD void branch_backward(const TemporalBranchesShape& shape, const BranchRows& z, const float* weights,
                            const float* grad, const float* grad_remainder, float* d_x, float* d_weight) {
  const int64_t b = shape.width, V = shape.joints, E = shape.branched(), W = shape.columns, k = shape.taps;
  const int64_t pooled = E - b, remaining = W - E;
  BranchTap taps[kBranchTaps];
  for (size_t i = 0; i < shape.dilations.size(); ++i) {
    const BranchFrames where = branch_frames(shape, i);
    for (int64_t f = 0; f < shape.frames; ++f) {
      int count = 0;
      for (int64_t tap = 0; tap < k; ++tap) {
        const int64_t ahead = f - where.frame(0, tap), t = ahead / shape.stride;
        if (ahead >= 0 && ahead % shape.stride == 0 && t < where.steps)
          taps[count++] = {grad + t * V * E + i * b, weights + (i * k + tap) * b * b};
      }
      branch_product<kLanes>(taps, count, b, E, V, d_x + f * V * W + i * b, W);
    }
    const BranchRows rows = {z.at + i * b, z.row};
    for (int64_t tap = 0; tap < k; ++tap) {
      const float* const upstream = grad + i * b;
      float* const to = d_weight + (i * k + tap) * b * b;
      each_packs<kLanes, 2>(0, b, [&](int64_t n, auto lanes, auto packs) {
        branch_weight_rows<lanes(), packs()>(where, tap, V, rows, b, upstream + n, E, to + n);
      });
    }
  }
  for (int64_t r = 0; r < shape.frames * V; ++r)
    for (int64_t c = pooled; c < W; ++c) d_x[r * W + c] = 0.0f;
  for (int64_t t = 0; t < shape.steps(); ++t) {
    const int64_t middle = t * shape.stride, half = shape.pool / 2;
    const int64_t first = middle > half ? middle - half : 0;
    const int64_t last = middle + half + 1 < shape.frames ? middle + half + 1 : shape.frames;
    for (int64_t r = 0; r < V; ++r) {
      branch_largest_grad({z.at + r * z.row + pooled, V * z.row}, first, last, b, grad + (t * V + r) * E + pooled,
                          d_x + r * W + pooled, V * W);
      float* const to = d_x + (middle * V + r) * W + E;
      for (int64_t at = 0; at < remaining; ++at) to[at] = grad_remainder[(t * V + r) * remaining + at];
    }
  }
}

}  // namespace s2v
