// joint_mix and its gradient, the work for kWidth neighbouring channels of one track.
//
// out[t, w, c] = gate[c] * sum over i, v of (x[t, v, i, c] + bias[i, c]) * map[i, v, w, c], where map is the track's own
// map of the channel's unit plus the constant map of its group (FreqMixFormer, Wu et al., ACM MM 2024). Maps of the
// channels at hand are laid out side by side once, [I, V, V, kWidth], and so are their numbers of all frames, by joint:
// [I, V, T, kWidth]. Both stay in the second cache, and what a tile of sums takes lies together.
//
// Forward reads x once and writes out once; the gradient reads x and grad once and writes d_x once.
#pragma once

#include "pack.cuh"
#include "prefetch.h"

namespace s2v {

struct JointMixShape {
  int64_t tracks;                                              // B
  int32_t frames, joints, channels, subsets, units, groups;    // T, V, C, I, U, R

  S2V_HD int64_t square() const { return int64_t(joints) * joints; }
  S2V_HD int64_t maps() const { return subsets * square(); }  // numbers of a channel's maps
  S2V_HD int64_t near() const { return int64_t(joints) * frames; }  // and of its numbers in a track, of one subset
  S2V_HD int64_t out_numbers() const { return near() * channels; }  // of a track
  S2V_HD int32_t unit(int32_t channel) const { return channel / (channels / units); }
};

// Sums that are held in registers, 32 of 512 bits or 16: so many frames of so many joints.
constexpr int mix_frames(int lanes) { return lanes == 16 ? 4 : 2; }
constexpr int kMixJoints = 5;

// common [I, V, V, kWidth]: constant maps of channels first ... first + kWidth.
template <int kWidth>
S2V_HD void joint_mix_common(const JointMixShape& shape, const float* __restrict__ constant, int32_t first,
                             float* __restrict__ common) {
  const int64_t square = shape.square();
  for (int32_t i = 0; i < shape.subsets; ++i)
    for (int64_t at = 0; at < square; ++at)
      for (int lane = 0; lane < kWidth; ++lane)
        *common++ = constant[(int64_t(i) * shape.groups + (first + lane) % shape.groups) * square + at];
}

// maps [I, V, V, kWidth] of channels first ... first + kWidth. dynamic: the track's [I, U, V, V].
template <int kWidth>
S2V_HD void joint_mix_maps(const JointMixShape& shape, const float* __restrict__ dynamic,
                           const float* __restrict__ common, int32_t first, float* __restrict__ maps) {
  const int64_t square = shape.square();
  float numbers[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) numbers[lane] = float(lane);
  const Pack<kWidth> lanes = load<kWidth>(numbers);
  const int32_t begin = shape.unit(first), end = shape.unit(first + kWidth - 1), width = shape.channels / shape.units;
  for (int32_t i = 0; i < shape.subsets; ++i) {
    const float* __restrict__ own = dynamic + (int64_t(i) * shape.units + begin) * square;
    for (int64_t at = 0; at < square; ++at, common += kWidth, maps += kWidth) {
      Pack<kWidth> map = Pack<kWidth>{} + own[at];
      for (int32_t unit = begin + 1; unit <= end; ++unit) {
        const Pack<kWidth> next = Pack<kWidth>{} + own[(unit - begin) * square + at];
        map.at = lanes.at >= float(unit * width - first) ? next.at : map.at;
      }
      store<kWidth>(maps, map + load<kWidth>(common));
    }
  }
}

// near [count, V, T, kWidth] of from [T, V, count * C], the track's at the first channel, and of bias [count * C] at it.
template <int kWidth>
S2V_HD void joint_mix_near(const JointMixShape& shape, const float* __restrict__ from, const float* __restrict__ bias,
                           int32_t count, float* __restrict__ near) {
  for (int32_t t = 0; t < shape.frames; ++t)
    for (int32_t v = 0; v < shape.joints; ++v)
      for (int32_t i = 0; i < count; ++i, from += shape.channels) {
        const Pack<kWidth> x = load<kWidth>(from);
        store<kWidth>(near + ((int64_t(i) * shape.joints + v) * shape.frames + t) * kWidth,
                      bias == nullptr ? x : x + load<kWidth>(bias + i * shape.channels));
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

// Frames t ... t + kFrames, joints w ... w + kJoints of out, the track's at the first channel. x: near; gate: at the first
// channel.
template <int kWidth, int kFrames, int kJoints>
S2V_HD void joint_mix_tile(const JointMixShape& shape, const float* __restrict__ x, const float* __restrict__ maps,
                           const Pack<kWidth>& gate, int32_t t, int32_t w, float* __restrict__ out) {
  Pack<kWidth> sums[kFrames][kJoints] = {};
  joint_mix_sums<kWidth, kFrames, kJoints>(x + int64_t(t) * kWidth, kWidth, int64_t(shape.frames) * kWidth,
                                           maps + int64_t(w) * kWidth, int64_t(shape.joints) * kWidth, kWidth,
                                           shape.subsets * shape.joints, sums);
  for (int f = 0; f < kFrames; ++f)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(out + (int64_t(t + f) * shape.joints + w + j) * shape.channels, sums[f][j] * gate);
}

// The same tile of d_x, joints v ... v + kJoints of one subset. grad: near; d_x: the track's, at the first channel.
template <int kWidth, int kFrames, int kJoints>
S2V_HD void joint_mix_grad_tile(const JointMixShape& shape, const float* __restrict__ grad,
                                const float* __restrict__ maps, const Pack<kWidth>& gate, int32_t subset, int32_t t,
                                int32_t v, float* __restrict__ d_x) {
  for (int f = 0; f < kFrames; ++f)
    for (int j = 0; j < kJoints; ++j)
      prefetch_to_write(d_x + ((int64_t(t + f) * shape.joints + v + j) * shape.subsets + subset) * shape.channels);
  Pack<kWidth> sums[kFrames][kJoints] = {};
  joint_mix_sums<kWidth, kFrames, kJoints>(grad + int64_t(t) * kWidth, kWidth, int64_t(shape.frames) * kWidth,
                                           maps + (subset * shape.square() + int64_t(v) * shape.joints) * kWidth,
                                           kWidth, shape.joints * kWidth, shape.joints, sums);
  for (int f = 0; f < kFrames; ++f)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(d_x + ((int64_t(t + f) * shape.joints + v + j) * shape.subsets + subset) * shape.channels,
                    sums[f][j] * gate);
}

// The gradient of maps [v ... v + kRows][w ... w + kJoints] of one subset, summed over frames, into d_maps [I, V, V,
// kWidth], without the gate. x, grad: near.
template <int kWidth, int kRows, int kJoints>
S2V_HD void joint_mix_map_tile(const JointMixShape& shape, const float* __restrict__ x,
                               const float* __restrict__ grad, int32_t subset, int32_t v, int32_t w,
                               float* __restrict__ d_maps) {
  const int64_t joint = int64_t(shape.frames) * kWidth;
  Pack<kWidth> sums[kRows][kJoints] = {};
  joint_mix_sums<kWidth, kRows, kJoints>(x + (int64_t(subset) * shape.joints + v) * joint, joint, kWidth,
                                         grad + w * joint, kWidth, joint, shape.frames, sums);
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kJoints; ++j)
      store<kWidth>(d_maps + (subset * shape.square() + int64_t(v + r) * shape.joints + w + j) * kWidth, sums[r][j]);
}

// Brings the gate to d_maps, and returns its gradient: its numbers weigh all that the maps give.
template <int kWidth>
S2V_HD Pack<kWidth> joint_mix_gate_grad(const JointMixShape& shape, const float* __restrict__ maps,
                                        const Pack<kWidth>& gate, float* __restrict__ d_maps) {
  const int64_t all = shape.maps() * kWidth;
  Pack<kWidth> sum = {};
  for (int64_t at = 0; at < all; at += kWidth) {
    const Pack<kWidth> d_map = load<kWidth>(d_maps + at);
    sum = sum + load<kWidth>(maps + at) * d_map;
    store<kWidth>(d_maps + at, d_map * gate);
  }
  return sum;
}

// The track's part of d_bias [I * C], at the first channel: of every frame the same, so of grad's sum over frames, which
// is left in sums [V, kWidth]. grad: near.
template <int kWidth>
S2V_HD void joint_mix_bias_grad(const JointMixShape& shape, const float* __restrict__ maps, const Pack<kWidth>& gate,
                                const float* __restrict__ grad, float* __restrict__ sums, float* __restrict__ d_bias) {
  const int32_t V = shape.joints;
  for (int32_t w = 0; w < V; ++w) {
    Pack<kWidth> sum = {};
    for (int32_t t = 0; t < shape.frames; ++t, grad += kWidth) sum = sum + load<kWidth>(grad);
    store<kWidth>(sums + w * kWidth, sum);
  }
  for (int32_t i = 0; i < shape.subsets; ++i) {
    Pack<kWidth> sum = {};
    for (int32_t v = 0; v < V; ++v)
      for (int32_t w = 0; w < V; ++w, maps += kWidth)
        sum = sum + load<kWidth>(maps) * load<kWidth>(sums + w * kWidth);
    store<kWidth>(d_bias + int64_t(i) * shape.channels, sum * gate);
  }
}

// Adds d_maps of channels first ... first + kWidth to the track's gradient of its own maps, and to d_common.
template <int kWidth>
S2V_HD void joint_mix_add_maps(const JointMixShape& shape, const float* __restrict__ d_maps, int32_t first,
                               float* __restrict__ d_dynamic, float* __restrict__ d_common) {
  const int64_t square = shape.square(), all = shape.maps() * kWidth;
  const int32_t width = shape.channels / shape.units;
  for (int64_t at = 0; at < all; at += kWidth)
    store<kWidth>(d_common + at, load<kWidth>(d_common + at) + load<kWidth>(d_maps + at));
  for (int32_t unit = shape.unit(first); unit <= shape.unit(first + kWidth - 1); ++unit) {
    const int32_t begin = unit * width > first ? unit * width - first : 0;
    const int32_t end = (unit + 1) * width < first + kWidth ? (unit + 1) * width - first : kWidth;
    for (int32_t i = 0; i < shape.subsets; ++i) {
      const float* __restrict__ from = d_maps + i * square * kWidth;
      float* __restrict__ own = d_dynamic + (int64_t(i) * shape.units + unit) * square;
      for (int64_t at = 0; at < square; ++at)
        for (int32_t lane = begin; lane < end; ++lane) own[at] += from[at * kWidth + lane];
    }
  }
}

// Adds d_common to the track's gradient of constant maps, and makes it zero.
template <int kWidth>
S2V_HD void joint_mix_add_common(const JointMixShape& shape, int32_t first, float* __restrict__ d_common,
                                 float* __restrict__ d_constant) {
  const int64_t square = shape.square();
  for (int32_t i = 0; i < shape.subsets; ++i)
    for (int64_t at = 0; at < square; ++at)
      for (int lane = 0; lane < kWidth; ++lane, ++d_common) {
        d_constant[(int64_t(i) * shape.groups + (first + lane) % shape.groups) * square + at] += *d_common;
        *d_common = 0.0f;
      }
}

}  // namespace s2v
