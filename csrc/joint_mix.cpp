// joint_mix on the host: tracks are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "joint_mix.h"

#include <algorithm>
#include <limits>

#include "joint_mix.cuh"
#include "numbers.h"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int kLanes = 16;  // channels in a register

// Calls tile<frames, joints>(t, w) for tiles that cover all frames and joints; `rows` stands for frames.
template <class Full, class Narrow, class Short, class One>
S2V_HD void cover(int32_t rows, int32_t joints, const Full& full, const Narrow& narrow, const Short& brief,
                  const One& one) {
  const int32_t even_rows = rows / kMixFrames * kMixFrames, even_joints = joints / kMixJoints * kMixJoints;
  for (int32_t w = 0; w < even_joints; w += kMixJoints) {
    for (int32_t t = 0; t < even_rows; t += kMixFrames) full(t, w);
    for (int32_t t = even_rows; t < rows; ++t) brief(t, w);
  }
  for (int32_t w = even_joints; w < joints; ++w) {
    for (int32_t t = 0; t < even_rows; t += kMixFrames) narrow(t, w);
    for (int32_t t = even_rows; t < rows; ++t) one(t, w);
  }
}

#define S2V_COVER(rows, joints, kWidth, name, ...)                                                      \
  cover(                                                                                                \
      rows, joints, [&](int32_t a, int32_t b) { name<kWidth, kMixFrames, kMixJoints>(__VA_ARGS__); },   \
      [&](int32_t a, int32_t b) { name<kWidth, kMixFrames, 1>(__VA_ARGS__); },                          \
      [&](int32_t a, int32_t b) { name<kWidth, 1, kMixJoints>(__VA_ARGS__); },                          \
      [&](int32_t a, int32_t b) { name<kWidth, 1, 1>(__VA_ARGS__); })

// Of a range of tracks, for up to kLanes channels; registers of them lie in one cache line each.
struct Scratch {
  Numbers maps, x, grad, sums, d_maps, d_common;
  Scratch(const JointMixShape& shape, bool backward)
      : maps(shape.maps() * kLanes),
        x(shape.subsets * shape.near() * kLanes),
        grad(backward ? shape.near() * kLanes : 0),
        sums(backward ? shape.joints * kLanes : 0),
        d_maps(backward ? shape.maps() * kLanes : 0),
        d_common(backward ? shape.maps() * kLanes : 0) {
    if (backward) std::fill_n(d_common.at(), shape.maps() * kLanes, 0.0f);
  }
};

// Constant maps laid out by channels: [I, V, V, kLanes] of the first ones, and so on; [I, V, V] of each of those that
// remain. Where registers hold whole rounds of groups they all hold the same, which is there once.
class CommonMaps {
 public:
  CommonMaps(const JointMixShape& shape, const float* constant)
      : size_(shape.maps()),
        full_(shape.channels / kLanes * kLanes),
        laid_(kLanes % shape.groups == 0 ? std::min(full_, kLanes) : full_),
        numbers_((laid_ + shape.channels - full_) * size_) {
    for (int32_t c = 0; c < laid_; c += kLanes) joint_mix_common<kLanes>(shape, constant, c, numbers_.at() + c * size_);
    for (int32_t c = full_; c < shape.channels; ++c)
      joint_mix_common<1>(shape, constant, c, numbers_.at() + (laid_ + c - full_) * size_);
  }
  const float* of(int32_t c) const {
    return numbers_.at() + (c >= full_ ? laid_ + c - full_ : laid_ < full_ ? 0 : c) * size_;
  }

 private:
  int64_t size_;
  int32_t full_, laid_;
  Numbers numbers_;
};

template <int kWidth>
S2V_HD Pack<kWidth> gate_of(const float* gate) {
  return gate == nullptr ? Pack<kWidth>{} + 1.0f : load<kWidth>(gate);
}
S2V_HD const float* from_on(const float* numbers, int64_t at) { return numbers == nullptr ? nullptr : numbers + at; }

template <int kWidth>
S2V_HD void forward_channels(const JointMixShape& shape, const JointMixCall& call, const CommonMaps& common, int64_t b,
                             int32_t begin, int32_t end, Scratch& scratch) {
  const float* x = call.x + b * shape.out_numbers() * shape.subsets;
  const float* dynamic = call.dynamic + b * shape.maps() * shape.units;
  float *out = call.out + b * shape.out_numbers(), *maps = scratch.maps.at(), *near = scratch.x.at();
  for (int32_t c = begin; c < end; c += kWidth) {
    const Pack<kWidth> gate = gate_of<kWidth>(from_on(call.gate, b * shape.channels + c));
    joint_mix_maps<kWidth>(shape, dynamic, common.of(c), c, maps);
    joint_mix_near<kWidth>(shape, x + c, from_on(call.bias, c), shape.subsets, near);
    S2V_COVER(shape.frames, shape.joints, kWidth, joint_mix_tile, shape, near, maps, gate, a, b, out + c);
  }
}

template <int kWidth>
S2V_HD void backward_channels(const JointMixShape& shape, const JointMixBackwardCall& call, const CommonMaps& common,
                              int64_t b, int32_t begin, int32_t end, Scratch& scratch) {
  const float* dynamic = call.dynamic + b * shape.maps() * shape.units;
  const float* x = call.x + b * shape.out_numbers() * shape.subsets;
  const float* grad = call.grad + b * shape.out_numbers();
  float *maps = scratch.maps.at(), *near = scratch.x.at(), *near_grad = scratch.grad.at();
  float* const d_maps = scratch.d_maps.at();
  for (int32_t c = begin; c < end; c += kWidth) {
    const Pack<kWidth> gate = gate_of<kWidth>(from_on(call.gate, b * shape.channels + c));
    joint_mix_near<kWidth>(shape, grad + c, nullptr, 1, near_grad);
    joint_mix_maps<kWidth>(shape, dynamic, common.of(c), c, maps);
    if (call.d_x != nullptr) {
      float* d_x = call.d_x + b * shape.out_numbers() * shape.subsets;
      for (int32_t i = 0; i < shape.subsets; ++i)
        S2V_COVER(shape.frames, shape.joints, kWidth, joint_mix_grad_tile, shape, near_grad, maps, gate, i, a, b,
                  d_x + c);
    }
    if (call.d_bias != nullptr)
      joint_mix_bias_grad<kWidth>(shape, maps, gate, near_grad, scratch.sums.at(),
                                  call.d_bias + b * shape.subsets * shape.channels + c);
    if (call.d_dynamic != nullptr) {
      joint_mix_near<kWidth>(shape, x + c, from_on(call.bias, c), shape.subsets, near);
      for (int32_t i = 0; i < shape.subsets; ++i)
        S2V_COVER(shape.joints, shape.joints, kWidth, joint_mix_map_tile, shape, near, near_grad, i, a, b, d_maps);
      if (call.d_gate != nullptr)
        store<kWidth>(call.d_gate + b * shape.channels + c, joint_mix_gate_grad<kWidth>(shape, maps, gate, d_maps));
      joint_mix_add_maps<kWidth>(shape, d_maps, c, call.d_dynamic + b * shape.maps() * shape.units,
                                 scratch.d_common.at());
      // Lanes of the next channels mostly belong to the same constant maps.
      if (c + kWidth >= end || kWidth % shape.groups != 0)
        joint_mix_add_common<kWidth>(shape, c, scratch.d_common.at(),
                                     call.d_constant + b * shape.maps() * shape.groups);
    }
  }
}

S2V_WIDE_CLONES void forward_range(const JointMixShape& shape, const JointMixCall& call, const CommonMaps& common,
                                   Scratch& scratch, int64_t begin, int64_t end) {
  const int32_t full = shape.channels / kLanes * kLanes;
  for (int64_t b = begin; b < end; ++b) {
    forward_channels<kLanes>(shape, call, common, b, 0, full, scratch);
    forward_channels<1>(shape, call, common, b, full, shape.channels, scratch);
  }
}
S2V_WIDE_CLONES void backward_range(const JointMixShape& shape, const JointMixBackwardCall& call, const CommonMaps& common,
                                    Scratch& scratch, int64_t begin, int64_t end) {
  const int32_t full = shape.channels / kLanes * kLanes;
  for (int64_t b = begin; b < end; ++b) {
    backward_channels<kLanes>(shape, call, common, b, 0, full, scratch);
    backward_channels<1>(shape, call, common, b, full, shape.channels, scratch);
  }
}

template <class Call>
JointMixShape checked(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.tracks >= 0 && call.frames >= 0 && call.joints >= 0 && call.channels >= 0, "joint_mix: a negative size");
  require(call.subsets >= 1 && call.units >= 1 && call.groups >= 1, "joint_mix: subsets, units, groups >= 1");
  require(call.frames <= most && call.joints <= most && call.channels <= most && call.subsets <= most &&
              call.units <= most && call.groups <= most,
          "joint_mix: a size of 2**31 or more");
  require(call.channels % call.units == 0, "joint_mix: channels is no multiple of units");
  const JointMixShape shape = {call.tracks, int32_t(call.frames), int32_t(call.joints), int32_t(call.channels),
                               int32_t(call.subsets), int32_t(call.units), int32_t(call.groups)};
  require((call.x != nullptr && call.dynamic != nullptr && call.constant != nullptr) ||
              shape.tracks * shape.out_numbers() == 0,
          "joint_mix: x, dynamic or constant is a null pointer");
  return shape;
}

}  // namespace

void joint_mix(const JointMixCall& call, int threads) {
  const JointMixShape shape = checked(call);
  if (shape.tracks * shape.out_numbers() == 0) return;
  require(call.out != nullptr, "joint_mix: out is a null pointer");
  const CommonMaps common(shape, call.constant);
  parallel_for(shape.tracks, 1, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch(shape, false);
    forward_range(shape, call, common, scratch, begin, end);
  });
}

void joint_mix_backward(const JointMixBackwardCall& call, int threads) {
  const JointMixShape shape = checked(call);
  require((call.d_dynamic != nullptr) == (call.d_constant != nullptr) || shape.tracks * shape.square() == 0,
          "joint_mix: give d_dynamic and d_constant, or neither");
  require(call.gate == nullptr || (call.d_gate != nullptr) == (call.d_dynamic != nullptr) ||
              shape.tracks * shape.square() == 0,
          "joint_mix: d_gate comes with d_dynamic");
  if (call.d_dynamic != nullptr) {
    const int64_t maps = shape.tracks * shape.subsets * shape.square();
    std::fill_n(call.d_dynamic, maps * shape.units, 0.0f);
    std::fill_n(call.d_constant, maps * shape.groups, 0.0f);
  }
  if (shape.near() == 0) {
    if (call.d_bias != nullptr) std::fill_n(call.d_bias, shape.tracks * shape.subsets * shape.channels, 0.0f);
    if (call.d_gate != nullptr) std::fill_n(call.d_gate, shape.tracks * shape.channels, 0.0f);
  }
  if (shape.tracks * shape.out_numbers() == 0) return;
  require(call.grad != nullptr, "joint_mix: grad is a null pointer");
  const CommonMaps common(shape, call.constant);
  parallel_for(shape.tracks, 1, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch(shape, true);
    backward_range(shape, call, common, scratch, begin, end);
  });
}

}  // namespace s2v
