// joint_mix and its gradient, the work for kWidth neighbouring channels of one track.
//
// out[t, w, c] = sum over i, v of x[t, v, i, c] * map[i, v, w, c], where map is the track's own map of the channel's unit
// plus the constant map of its group (FreqMixFormer, Wu et al., ACM MM 2024). Maps of the channels at hand are laid out
// side by side once, [I, V, V, kWidth], and stay in the first cache while all frames go through them.
//
// Forward reads x once and writes out once; the gradient reads x and grad twice and writes d_x once.
#pragma once

#include "pack.cuh"

namespace s2v {

struct JointMixShape {
  int64_t tracks;                                              // B
  int32_t frames, joints, channels, subsets, units, groups;    // T, V, C, I, U, R

  S2V_HD int64_t square() const { return int64_t(joints) * joints; }
  S2V_HD int64_t out_numbers() const { return int64_t(frames) * joints * channels; }  // of a track
  S2V_HD int32_t unit(int32_t channel) const { return channel / (channels / units); }
};

constexpr int kMixFrames = 4, kMixJoints = 5;  // sums that are held in registers: so many frames of so many joints

// maps [I, V, V, kWidth] of channels first ... first + kWidth. dynamic: the track's [I, U, V, V].
template <int kWidth>
S2V_HD void joint_mix_maps(const JointMixShape& shape, const float* __restrict__ dynamic,
                           const float* __restrict__ constant, int32_t first, float* __restrict__ maps) {
  const int64_t square = shape.square();
  for (int32_t i = 0; i < shape.subsets; ++i) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const int32_t c = first + lane;
      const float* __restrict__ own = dynamic + (int64_t(i) * shape.units + shape.unit(c)) * square;
      const float* __restrict__ common = constant + (int64_t(i) * shape.groups + c % shape.groups) * square;
      float* __restrict__ to = maps + i * square * kWidth + lane;
      for (int64_t at = 0; at < square; ++at) to[at * kWidth] = own[at] + common[at];
    }
  }
}

// sums[f][j] += sum over k < count of from[f * from_frame + k * from_step] * maps[(k * map_step + j * map_joint)].
template <int kWidth, int kFrames, int kJoints>
S2V_HD void joint_mix_sums(const float* __restrict__ from, int64_t from_frame, int64_t from_step,
                           const float* __restrict__ maps, int64_t map_step, int64_t map_joint, int32_t count,
                           Pack<kWidth> (&sums)[kFrames][kJoints]) {
  for (int32_t k = 0; k < count; ++k) {
    Pack<kWidth> read[kFrames];
    for (int f = 0; f < kFrames; ++f) read[f] = load<kWidth>(from + f * from_frame + k * from_step);
    for (int j = 0; j < kJoints; ++j) {
      const Pack<kWidth> map = load<kWidth>(maps + k * map_step + j * map_joint);
      for (int f = 0; f < kFrames; ++f) sums[f][j] = sums[f][j] + read[f] * map;
    }
  }
}

// Frames t ... t + kFrames, joints w ... w + kJoints of out. x, out: the track's, at the first channel.
template <int kWidth, int kFrames, int kJoints>
S2V_HD void joint_mix_tile(const JointMixShape& shape, const float* __restrict__ x, const float* __restrict__ maps,
                           int32_t t, int32_t w, float* __restrict__ out) {
  const int64_t row = int64_t(shape.subsets) * shape.channels, frame = shape.joints * row;
  Pack<kWidth> sums[kFrames][kJoints] = {};
  for (int32_t i = 0; i < shape.subsets; ++i)
    joint_mix_sums<kWidth, kFrames, kJoints>(x + t * frame + int64_t(i) * shape.channels, frame, row,
                                             maps + (i * shape.square() + w) * kWidth, shape.joints * kWidth, kWidth,
                                             shape.joints, sums);
  for (int f = 0; f < kFrames; ++f)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(out + (int64_t(t + f) * shape.joints + w + j) * shape.channels, sums[f][j]);
}

// The same tile of d_x, joints v ... v + kJoints of one subset. grad, d_x: the track's, at the first channel.
template <int kWidth, int kFrames, int kJoints>
S2V_HD void joint_mix_grad_tile(const JointMixShape& shape, const float* __restrict__ grad,
                                const float* __restrict__ maps, int32_t subset, int32_t t, int32_t v,
                                float* __restrict__ d_x) {
  const int64_t frame = int64_t(shape.joints) * shape.channels;
  Pack<kWidth> sums[kFrames][kJoints] = {};
  joint_mix_sums<kWidth, kFrames, kJoints>(grad + t * frame, frame, shape.channels,
                                           maps + (subset * shape.square() + int64_t(v) * shape.joints) * kWidth,
                                           kWidth, shape.joints * kWidth, shape.joints, sums);
  for (int f = 0; f < kFrames; ++f)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(d_x + ((int64_t(t + f) * shape.joints + v + j) * shape.subsets + subset) * shape.channels,
                    sums[f][j]);
}

// The gradient of maps [v ... v + kRows][w ... w + kJoints] of one subset, summed over frames, into d_maps [I, V, V,
// kWidth].
template <int kWidth, int kRows, int kJoints>
S2V_HD void joint_mix_map_tile(const JointMixShape& shape, const float* __restrict__ x,
                               const float* __restrict__ grad, int32_t subset, int32_t v, int32_t w,
                               float* __restrict__ d_maps) {
  const int64_t row = int64_t(shape.subsets) * shape.channels;
  x += v * row + int64_t(subset) * shape.channels;
  grad += int64_t(w) * shape.channels;
  Pack<kWidth> sums[kRows][kJoints] = {};
  joint_mix_sums<kWidth, kRows, kJoints>(x, row, shape.joints * row, grad, int64_t(shape.joints) * shape.channels,
                                         shape.channels, shape.frames, sums);
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(d_maps + (subset * shape.square() + int64_t(v + r) * shape.joints + w + j) * kWidth, sums[r][j]);
}

// Adds d_maps of channels first ... first + kWidth to the track's gradients of both kinds of maps.
template <int kWidth>
S2V_HD void joint_mix_add_maps(const JointMixShape& shape, const float* __restrict__ d_maps, int32_t first,
                               float* __restrict__ d_dynamic, float* __restrict__ d_constant) {
  const int64_t square = shape.square();
  for (int32_t i = 0; i < shape.subsets; ++i) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const int32_t c = first + lane;
      float* __restrict__ own = d_dynamic + (int64_t(i) * shape.units + shape.unit(c)) * square;
      float* __restrict__ common = d_constant + (int64_t(i) * shape.groups + c % shape.groups) * square;
      const float* __restrict__ from = d_maps + i * square * kWidth + lane;
      for (int64_t at = 0; at < square; ++at) {
        own[at] += from[at * kWidth];
        common[at] += from[at * kWidth];
      }
    }
  }
}

}  // namespace s2v
