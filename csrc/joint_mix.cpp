// joint_mix on the host: tracks are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "joint_mix.h"

#include <algorithm>
#include <limits>

#include "joint_mix.cuh"
#include "lanes.h"
#include "numbers.h"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

// Calls tile(a, b, LaneCount<rows>(), LaneCount<joints>()) for tiles that cover all rows and joints.
template <int kRows, class Tile>
S2V_HD void cover(int32_t rows, int32_t joints, const Tile& tile) {
  const auto all_rows = [&](int32_t w, auto width) {
    int32_t t = 0;
    for (; t + kRows <= rows; t += kRows) tile(t, w, LaneCount<kRows>(), width);
    for (; t < rows; ++t) tile(t, w, LaneCount<1>(), width);
  };
  int32_t w = 0;
  for (; w + kMixJoints <= joints; w += kMixJoints) all_rows(w, LaneCount<kMixJoints>());
  for (; w < joints; ++w) all_rows(w, LaneCount<1>());
}

// Of a range of tracks, for channels of one register.
struct Scratch {
  Numbers maps, x, grad, sums, d_maps, d_common;
  Scratch(const JointMixShape& shape, int lanes, bool backward)
      : maps(shape.maps() * lanes),
        x(shape.subsets * shape.near() * lanes),
        grad(backward ? shape.near() * lanes : 0),
        sums(backward ? shape.joints * lanes : 0),
        d_maps(backward ? shape.maps() * lanes : 0),
        d_common(backward ? shape.maps() * lanes : 0) {
    if (backward) std::fill_n(d_common.at(), shape.maps() * lanes, 0.0f);
  }
};

// Constant maps laid out by channels: [I, V, V, lanes] of the first ones, and so on; of fewer lanes of what remains.
// Where registers hold whole rounds of groups they all hold the same, which is there once.
class CommonMaps {
 public:
  CommonMaps(const JointMixShape& shape, const float* constant, int lanes)
      : size_(shape.maps()),
        full_(shape.channels / lanes * lanes),
        laid_(lanes % shape.groups == 0 ? std::min(full_, lanes) : full_),
        numbers_((laid_ + shape.channels - full_) * size_) {
    // Once a call, so not built for each CPU.
    if (lanes == 16) lay<16>(shape, constant);
    else if (lanes == 8) lay<8>(shape, constant);
    else lay<4>(shape, constant);
  }
  const float* of(int64_t c) const {
    return numbers_.at() + (c >= full_ ? laid_ + c - full_ : laid_ < full_ ? 0 : c) * size_;
  }

 private:
  template <int kLanes>
  void lay(const JointMixShape& shape, const float* constant) {
    const auto some = [&](int64_t c, auto lanes) {
      float* const to = numbers_.at() + (c < full_ ? c : laid_ + c - full_) * size_;
      joint_mix_common<lanes()>(shape, constant, int32_t(c), to);
    };
    each_pack<kLanes>(0, laid_, some);
    each_pack<kLanes>(full_, shape.channels, some);
  }

  int64_t size_;
  int32_t full_, laid_;
  Numbers numbers_;
};

template <int kWidth>
S2V_HD Pack<kWidth> gate_of(const float* gate) {
  return gate == nullptr ? Pack<kWidth>{} + 1.0f : load<kWidth>(gate);
}
S2V_HD const float* from_on(const float* numbers, int64_t at) { return numbers == nullptr ? nullptr : numbers + at; }

// Channels c ... c + kWidth of a track.
template <int kWidth, int kRows>
S2V_HD void forward_channels(const JointMixShape& shape, const JointMixCall& call, const CommonMaps& common, int64_t b,
                             int64_t c, const Scratch& scratch) {
  const float* x = call.x + b * shape.out_numbers() * shape.subsets;
  const float* dynamic = call.dynamic + b * shape.maps() * shape.units;
  float *out = call.out + b * shape.out_numbers() + c, *maps = scratch.maps.at(), *near = scratch.x.at();
  const Pack<kWidth> gate = gate_of<kWidth>(from_on(call.gate, b * shape.channels + c));
  joint_mix_maps<kWidth>(shape, dynamic, common.of(c), int32_t(c), maps);
  joint_mix_near<kWidth>(shape, x + c, from_on(call.bias, c), shape.subsets, near);
  cover<kRows>(shape.frames, shape.joints, [&](int32_t t, int32_t w, auto frames, auto joints) {
    joint_mix_tile<kWidth, frames(), joints()>(shape, near, maps, gate, t, w, out);
  });
}

// The same; last: no channels of as wide a register come after.
template <int kWidth, int kRows>
S2V_HD void backward_channels(const JointMixShape& shape, const JointMixBackwardCall& call, const CommonMaps& common,
                              int64_t b, int64_t c, bool last, const Scratch& scratch) {
  const float* dynamic = call.dynamic + b * shape.maps() * shape.units;
  const float* x = call.x + b * shape.out_numbers() * shape.subsets;
  const float* grad = call.grad + b * shape.out_numbers();
  float *maps = scratch.maps.at(), *near = scratch.x.at(), *near_grad = scratch.grad.at();
  float* const d_maps = scratch.d_maps.at();
  const Pack<kWidth> gate = gate_of<kWidth>(from_on(call.gate, b * shape.channels + c));
  joint_mix_near<kWidth>(shape, grad + c, nullptr, 1, near_grad);
  joint_mix_maps<kWidth>(shape, dynamic, common.of(c), int32_t(c), maps);
  if (call.d_x != nullptr) {
    float* d_x = call.d_x + b * shape.out_numbers() * shape.subsets + c;
    for (int32_t i = 0; i < shape.subsets; ++i)
      cover<kRows>(shape.frames, shape.joints, [&](int32_t t, int32_t v, auto frames, auto joints) {
        joint_mix_grad_tile<kWidth, frames(), joints()>(shape, near_grad, maps, gate, i, t, v, d_x);
      });
  }
  if (call.d_bias != nullptr)
    joint_mix_bias_grad<kWidth>(shape, maps, gate, near_grad, scratch.sums.at(),
                                call.d_bias + b * shape.subsets * shape.channels + c);
  if (call.d_dynamic == nullptr) return;
  joint_mix_near<kWidth>(shape, x + c, from_on(call.bias, c), shape.subsets, near);
  for (int32_t i = 0; i < shape.subsets; ++i)
    cover<kRows>(shape.joints, shape.joints, [&](int32_t v, int32_t w, auto rows, auto joints) {
      joint_mix_map_tile<kWidth, rows(), joints()>(shape, near, near_grad, i, v, w, d_maps);
    });
  if (call.d_gate != nullptr)
    store<kWidth>(call.d_gate + b * shape.channels + c, joint_mix_gate_grad<kWidth>(shape, maps, gate, d_maps));
  joint_mix_add_maps<kWidth>(shape, d_maps, int32_t(c), call.d_dynamic + b * shape.maps() * shape.units,
                             scratch.d_common.at());
  // Lanes of the next channels mostly belong to the same constant maps.
  if (last || kWidth % shape.groups != 0)
    joint_mix_add_common<kWidth>(shape, int32_t(c), scratch.d_common.at(),
                                 call.d_constant + b * shape.maps() * shape.groups);
}

template <int kLanes>
S2V_HD void forward_range(const JointMixShape& shape, const JointMixCall& call, const CommonMaps& common,
                          const Scratch& scratch, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b)
    each_pack<kLanes>(0, shape.channels, [&](int64_t c, auto lanes) {
      forward_channels<lanes(), mix_frames(lanes())>(shape, call, common, b, c, scratch);
    });
}

template <int kLanes>
S2V_HD void backward_range(const JointMixShape& shape, const JointMixBackwardCall& call, const CommonMaps& common,
                           const Scratch& scratch, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b)
    each_pack<kLanes>(0, shape.channels, [&](int64_t c, auto lanes) {
      const bool last = c + 2 * lanes() > shape.channels;
      backward_channels<lanes(), mix_frames(lanes())>(shape, call, common, b, c, last, scratch);
    });
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
  const int lanes = lanes_in_use;
  const CommonMaps common(shape, call.constant, lanes);
  parallel_for(shape.tracks, 1, threads, [&](int64_t begin, int64_t end) {
    const Scratch scratch(shape, lanes, false);
    for_lanes(lanes, [&](auto width) { forward_range<width()>(shape, call, common, scratch, begin, end); });
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
  const int lanes = lanes_in_use;
  const CommonMaps common(shape, call.constant, lanes);
  parallel_for(shape.tracks, 1, threads, [&](int64_t begin, int64_t end) {
    const Scratch scratch(shape, lanes, true);
    for_lanes(lanes, [&](auto width) { backward_range<width()>(shape, call, common, scratch, begin, end); });
  });
}

}  // namespace s2v
