// tube_mask, the work for one tube of one track, shared by the host (one lane) and the device (a warp's lanes).
//
// Motion-aware tube masking, Skeleton2vec (arXiv 2401.00921, section 3.3). A token is one joint over segment_frames
// frames, a tube is tube_len segments that share one choice of joints. In every tube the `keep` joints with the lowest
// score u + w * (intensity / (largest intensity + 1e-6)) stay visible; equal scores go to the lower joint, and a NaN
// counts as larger than every number. Every operation is rounded on its own, in the order of the reference
// (s2vfast/reference/tube_mask.py): build with -ffp-contract=off (g++) or -fmad=false (nvcc), never with fast math.
//
// Memory: reads the frames of the tube once, writes each token id once.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.cuh"

namespace s2v {

struct TubeMaskShape {
  int32_t frames, joints, channels;         // T, V, C
  int32_t segment_frames, tube_len, keep;   // s, segments a tube, visible joints a tube

  S2V_HD int32_t segments() const { return frames / segment_frames; }
  S2V_HD int32_t tubes() const { return segments() / tube_len; }
  S2V_HD int64_t visible() const { return int64_t(segments()) * keep; }
  S2V_HD int64_t masked() const { return int64_t(segments()) * (joints - keep); }
};

// Room for one tube: motion [s, V, C], the others [V].
template <class T, class Key>
struct TubeScratch {
  T* motion;
  T* token;
  T* tube;
  Key* key;
  int32_t* order;  // visible joints, then masked joints, each ascending
};

// Lanes that work on one tube together. The host has one; a device version strides by its warp and reduces by shuffles.
struct OneLane {
  S2V_HD int32_t first() const { return 0; }
  S2V_HD int32_t step() const { return 1; }
  S2V_HD void sync() const {}
  template <class V>
  S2V_HD V min(V value) const { return value; }
  template <class V>
  S2V_HD V max(V value) const { return value; }
};

template <class T>
struct KeyType;
template <>
struct KeyType<float> {
  using type = int32_t;
  static constexpr int32_t infinity = 0x7f800000;
};
template <>
struct KeyType<double> {
  using type = int64_t;
  static constexpr int64_t infinity = 0x7ff0000000000000;
};

// Integers in the order of the floats: -0 equals +0, all NaNs are one value above infinity. Integers make maximum,
// minimum and comparison the same everywhere, and loops over them vectorise without fast math.
template <class T, class Key = typename KeyType<T>::type>
S2V_HD Key order_key(T value) {
  constexpr Key low_bits = Key(~(uint64_t(1) << 63) >> (64 - 8 * sizeof(Key)));  // all but the sign bit
  const T no_minus_zero = value + T(0);
  Key bits;
  memcpy(&bits, &no_minus_zero, sizeof bits);
  const Key ordered = bits ^ (Key(bits >> (8 * sizeof(Key) - 1)) & low_bits);
  // Asked of the bits: a comparison of floats would become a branch, and the loops around it would not be vectorised.
  return (bits & low_bits) <= KeyType<T>::infinity ? ordered : Key(low_bits - 1);
}

template <class T, class Key>
S2V_HD T value_of_key(Key key) {
  constexpr Key low_bits = Key(~(uint64_t(1) << 63) >> (64 - 8 * sizeof(Key)));
  const Key bits = key ^ (Key(key >> (8 * sizeof(Key) - 1)) & low_bits);
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

S2V_HD float absolute(float x) { return fabsf(x); }
S2V_HD double absolute(double x) { return fabs(x); }

// clip: the track's [T, V, C]. noise(joint): u in the dtype of the clip. visible, masked: the track's [K] and [L - K].
// kChannels: C where it is known at compile time, else 0.
template <int kChannels, class T, class Key, class Noise, class Lanes>
S2V_HD void tube_mask_item(const TubeMaskShape& shape, const T* __restrict__ clip, int32_t tube, T motion_weight,
                           const Noise& noise, const TubeScratch<T, Key>& scratch, int32_t* __restrict__ visible,
                           int32_t* __restrict__ masked, const Lanes& lanes) {
  const int32_t joints = shape.joints, keep = shape.keep, drop = joints - keep;
  const int32_t channels = kChannels ? kChannels : shape.channels;
  const int64_t row = int64_t(joints) * channels;
  const int32_t first_segment = tube * shape.tube_len;
  T* __restrict__ motion = scratch.motion;
  T* __restrict__ token_sum = scratch.token;
  T* __restrict__ tube_sum = scratch.tube;
  Key* __restrict__ key = scratch.key;
  int32_t* __restrict__ order = scratch.order;

  for (int32_t j = lanes.first(); j < joints; j += lanes.step()) tube_sum[j] = T(0);
  for (int32_t segment = first_segment; segment < first_segment + shape.tube_len; ++segment) {
    const int32_t start = segment * shape.segment_frames;
    // The last frame of the clip has no successor: its motion is 0.
    const int32_t frames =
        start + shape.segment_frames < shape.frames ? shape.segment_frames : shape.frames - 1 - start;
    const T* __restrict__ here = clip + start * row;
    const int32_t numbers = int32_t(frames * row);
    for (int32_t k = lanes.first(); k < numbers; k += lanes.step()) motion[k] = absolute(here[k + row] - here[k]);
    lanes.sync();
    for (int32_t j = lanes.first(); j < joints; j += lanes.step()) token_sum[j] = T(0);
    for (int32_t f = 0; f < frames; ++f) {
      const T* __restrict__ frame = motion + f * row;
      const T* __restrict__ place = here + f * row;
      for (int32_t j = lanes.first(); j < joints; j += lanes.step()) {
        T sum = token_sum[j];
        bool seen = false, seen_after = false;  // zeros are a joint that was not seen, which does not move
        for (int32_t c = 0; c < channels; ++c) {
          sum += frame[j * channels + c];
          seen |= place[j * channels + c] != T(0);
          seen_after |= place[row + j * channels + c] != T(0);
        }
        token_sum[j] = seen & seen_after ? sum : token_sum[j];
      }
    }
    lanes.sync();
    const T count = T(shape.segment_frames * channels);
    for (int32_t j = lanes.first(); j < joints; j += lanes.step()) tube_sum[j] += token_sum[j] / count;
  }

  const T length = T(shape.tube_len);
  Key largest = order_key(T(0));  // an intensity is never negative
  for (int32_t j = lanes.first(); j < joints; j += lanes.step()) {
    const T intensity = tube_sum[j] / length;
    tube_sum[j] = intensity;
    const Key as_key = order_key(intensity);
    largest = as_key > largest ? as_key : largest;
  }
  const T bottom = value_of_key<T>(lanes.max(largest)) + T(1e-6);
  for (int32_t j = lanes.first(); j < joints; j += lanes.step())
    key[j] = order_key(noise(j) + motion_weight * (tube_sum[j] / bottom));

  // Take the lowest key `keep` times; a joint that is taken gets a key above all others.
  constexpr Key taken = Key(~(uint64_t(1) << 63) >> (64 - 8 * sizeof(Key)));
  for (int32_t pick = 0; pick < keep; ++pick) {
    Key lowest = taken;
    for (int32_t j = lanes.first(); j < joints; j += lanes.step()) lowest = key[j] < lowest ? key[j] : lowest;
    lowest = lanes.min(lowest);
    int32_t who = joints;
    for (int32_t j = lanes.first(); j < joints; j += lanes.step()) {
      const int32_t candidate = key[j] == lowest ? j : joints;
      who = candidate < who ? candidate : who;
    }
    who = lanes.min(who);
    if (who % lanes.step() == lanes.first()) key[who] = taken;
  }

  lanes.sync();
  if (lanes.first() == 0) {
    int32_t n_visible = 0, n_masked = keep;
    for (int32_t j = 0; j < joints; ++j) {
      const int32_t is_visible = key[j] == taken;  // arithmetic instead of a branch that cannot be predicted
      order[is_visible ? n_visible : n_masked] = j;
      n_visible += is_visible;
      n_masked += 1 - is_visible;
    }
  }
  lanes.sync();
  for (int32_t segment = first_segment; segment < first_segment + shape.tube_len; ++segment) {
    const int32_t base = segment * joints;
    for (int32_t i = lanes.first(); i < keep; i += lanes.step())
      visible[int64_t(segment) * keep + i] = base + order[i];
    for (int32_t i = lanes.first(); i < drop; i += lanes.step())
      masked[int64_t(segment) * drop + i] = base + order[keep + i];
  }
}

}  // namespace s2v
