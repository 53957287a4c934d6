// clip_sample, the work for one sequence, shared by the host (one lane) and the device (a block's threads).
//
// Which frames make the clip (arXiv 2401.00921, section 4.2, and the other choices of ClipSpec), how they are centred,
// scaled and turned: s2vfast/reference/clip_sample.py is the specification. Draws and frames are the reference's bit
// for bit; coordinates differ by rounding, since scale, alignment, rotation and jitter are one matrix here.
//
// Memory: reads each chosen frame once, writes the clip once.
#pragma once

#include <cmath>
#include <cstdint>

#include "clip_sample.h"
#include "pack.cuh"

#if defined(__CUDACC__) || defined(__clang__)
#define S2V_UNROLL _Pragma("unroll")
#else
#define S2V_UNROLL _Pragma("GCC unroll 9")
#endif

namespace s2v {

// sinf of a device keeps an array in memory for huge angles; in half turns there is none, at the cost of one rounding.
S2V_HD void sine_cosine(float angle, float* sine, float* cosine) {
#if defined(__CUDA_ARCH__)
  sincospif(angle * 0.318309886183790672f, sine, cosine);
#else
  *sine = sinf(angle);
  *cosine = cosf(angle);
#endif
}

// Room for one sequence.
struct ClipScratch {
  int32_t* lower;   // [T] chosen frames of the main body
  float* weight;    // [T] of the frame after it
  int64_t* from;    // [2, T] rows of a body for these and the next frames; -1: not there
  uint64_t* order;  // [T + 1] draws to be ranked; then the frame whose root centres a frame
};

S2V_HD int32_t draw_below(uint32_t word, int32_t limit) { return int32_t((uint64_t(word) * uint64_t(limit)) >> 32); }

S2V_HD uint32_t clip_word(const ClipSampleSpec& spec, uint64_t id, uint32_t stream, uint32_t index) {
  const Words4 words = philox_block(spec.seed, spec.epoch, id, stream, index / 4);
  const uint32_t low = (index & 1) ? words.w1 : words.w0, high = (index & 1) ? words.w3 : words.w2;
  return (index & 2) ? high : low;
}

// lower and weight for a main body of `count` frames.
template <class Lanes>
S2V_HD void clip_picks(const ClipSampleSpec& spec, uint64_t id, int32_t count, const float* u, const ClipScratch& scratch,
                       const Lanes& lanes) {
  const int32_t T = spec.length;
  if (spec.crop) {
    const float last = float(count - 1);
    float start = 0.0f, length = last;
    if (spec.training) {
      length = last * (spec.crop_min + spec.crop_rest * u[5]);
      start = (last - length) * u[0];
    }
    const float steps = float(T > 1 ? T - 1 : 1);
    for (int32_t t = lanes.first(); t < T; t += lanes.step()) {
      float place = start + length * (float(t) / steps);
      place = place < last ? place : last;
      const float index = floorf(place);
      scratch.lower[t] = int32_t(index);
      scratch.weight[t] = place - index;
    }
    return;
  }
  for (int32_t t = lanes.first(); t < T; t += lanes.step()) scratch.weight[t] = 0.0f;
  if (count < T) {
    const int32_t start = spec.training ? draw_below(clip_word(spec, id, kStreamClip, 0), count) : 0;
    for (int32_t t = lanes.first(); t < T; t += lanes.step()) scratch.lower[t] = (start + t) % count;
  } else if (!spec.training) {
    for (int32_t t = lanes.first(); t < T; t += lanes.step())
      scratch.lower[t] = int32_t(int64_t(2 * t + 1) * count / (2 * int64_t(T)));
  } else if (count < 2 * T) {
    // The count - T lowest of T + 1 draws say where a frame is skipped; equal draws: the earlier one.
    for (int32_t block = lanes.first(); 4 * block <= T; block += lanes.step()) {
      const Words4 words = philox_block(spec.seed, spec.epoch, id, kStreamFrames, uint32_t(block));
      const uint32_t four[4] = {words.w0, words.w1, words.w2, words.w3};
      S2V_UNROLL for (int32_t i = 0; i < 4; ++i)
        if (4 * block + i <= T) scratch.order[4 * block + i] = (uint64_t(four[i]) << 32) | uint32_t(4 * block + i);
    }
    lanes.sync();
    for (int32_t t = lanes.first(); t <= T; t += lanes.step()) {
      const uint64_t own = scratch.order[t];
      int32_t rank = 0;
      for (int32_t other = 0; other <= T; ++other) rank += scratch.order[other] < own;
      if (t < T) scratch.lower[t] = rank < count - T;
    }
    lanes.sync();
    if (lanes.first() == 0) {
      int32_t skipped = 0;
      for (int32_t t = 0; t < T; ++t) {
        skipped += scratch.lower[t];
        scratch.lower[t] = t + skipped;
      }
    }
  } else {
    for (int32_t block = lanes.first(); 4 * block < T; block += lanes.step()) {
      const Words4 words = philox_block(spec.seed, spec.epoch, id, kStreamFrames, uint32_t(block));
      const uint32_t four[4] = {words.w0, words.w1, words.w2, words.w3};
      S2V_UNROLL for (int32_t i = 0; i < 4; ++i) {
        const int64_t t = 4 * block + i;
        const int32_t low = int32_t(t * count / T), high = int32_t((t + 1) * count / T);
        if (t < T) scratch.lower[t] = low + draw_below(four[i], high - low);
      }
    }
  }
}

// Row of the frame `number` in a track's `count` ascending frame numbers, or -1.
S2V_HD int64_t clip_find(const int32_t* __restrict__ frame_index, int64_t row, int32_t count, int32_t number) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (frame_index[row + middle] < number) low = middle + 1;
    else high = middle;
  }
  return low < count && frame_index[row + low] == number ? row + low : -1;
}

struct Point {
  float x, y, z;

  S2V_HD bool seen() const { return x != 0.0f || y != 0.0f || z != 0.0f; }
};

S2V_HD Point operator-(const Point& a, const Point& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

template <class T>
S2V_HD Point clip_point(const T* __restrict__ frames, int64_t row, int32_t joints, int32_t joint) {
  if (row < 0) return {0.0f, 0.0f, 0.0f};
  const T* at = frames + (row * joints + joint) * 3;
  return {widen(at[0]), widen(at[1]), widen(at[2])};
}

// Between two frames; where a joint is missing in one, the other's. A weight of 0 names one frame.
template <class T>
S2V_HD Point clip_blended(const T* __restrict__ frames, int64_t row0, int64_t row1, float weight, int32_t joints,
                          int32_t joint) {
  const Point a = clip_point(frames, row0, joints, joint);
  if (weight == 0.0f) return a;
  const Point b = clip_point(frames, row1, joints, joint);
  if (!a.seen()) return b;
  if (!b.seen()) return a;
  return {a.x + weight * (b.x - a.x), a.y + weight * (b.y - a.y), a.z + weight * (b.z - a.z)};
}

// The mean of an anchor's joints that the frame has: it is there if one of them is.
struct Anchored {
  Point at;
  bool seen;
};

template <class T>
S2V_HD Anchored clip_anchored(const T* __restrict__ frames, int64_t row0, int64_t row1, float weight, int32_t joints,
                              const ClipAnchor& anchor) {
  Point sum = clip_blended(frames, row0, row1, weight, joints, anchor.joint[0]);
  float number = sum.seen() ? 1.0f : 0.0f;
  S2V_UNROLL for (int32_t i = 1; i < kMaxAnchor; ++i) {  // no index that is known only at run time, as above
    if (i >= anchor.count) continue;
    const Point point = clip_blended(frames, row0, row1, weight, joints, anchor.joint[i]);
    sum = {sum.x + point.x, sum.y + point.y, sum.z + point.z};  // a missing joint is zeros
    number += point.seen() ? 1.0f : 0.0f;
  }
  if (number > 1.0f) sum = {sum.x / number, sum.y / number, sum.z / number};
  return {sum, number > 0.0f};
}

// Scale, alignment, rotation and jitter as one matrix, rows first. main0, main1: rows of the main body.
template <class T, class Lanes>
S2V_HD void clip_matrix(const ClipSampleSpec& spec, const T* __restrict__ frames, const int64_t* __restrict__ from,
                        const float* __restrict__ weight, const float* u, const Lanes& lanes, float* matrix) {
  const int32_t T_ = spec.length;
  float length = 0.0f, trunks = 0.0f, lines = 0.0f;  // sums over the frames that have both ends, and their numbers
  Point side = {0.0f, 0.0f, 0.0f};
  if (spec.torso || spec.yaw) {
    for (int32_t t = lanes.first(); t < T_; t += lanes.step()) {
      const auto joint = [&](int32_t j) {
        return clip_blended(frames, from[t], from[T_ + t], weight[t], spec.joints, j);
      };
      if (spec.torso) {  // a difference: where the clip is centred does not matter
        const auto end = [&](const ClipAnchor& anchor) {
          return clip_anchored(frames, from[t], from[T_ + t], weight[t], spec.joints, anchor);
        };
        const Anchored upper = end(spec.upper), lower = end(spec.lower);
        const Point trunk = upper.at - lower.at;
        if (upper.seen && lower.seen) {
          length += sqrtf(trunk.x * trunk.x + trunk.y * trunk.y + trunk.z * trunk.z);
          trunks += 1.0f;
        }
      }
      if (spec.yaw) {
        const Point left = joint(spec.left), right = joint(spec.right), across = left - right;
        if (left.seen() && right.seen()) {
          side = {side.x + across.x, side.y + across.y, side.z + across.z};
          lines += 1.0f;
        }
      }
    }
    length = lanes.sum(length) / fmaxf(lanes.sum(trunks), 1.0f);
    lines = fmaxf(lanes.sum(lines), 1.0f);
    side = {lanes.sum(side.x) / lines, lanes.sum(side.y) / lines, lanes.sum(side.z) / lines};
  }
  float factor = spec.torso && length > 1e-6f ? 1.0f / length : 1.0f;
  float turn[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  if (spec.yaw) {
    // The two horizontal axes; no index that is known only at run time, which would put the matrix into memory.
    const float a = (spec.up == 0 ? side.y : side.x) * factor, b = (spec.up == 2 ? side.y : side.z) * factor;
    const float size = sqrtf(a * a + b * b);
    if (size >= 1e-6f) {
      const float c = a / size, s = b / size;
      turn[0] = spec.up == 0 ? 1.0f : c;
      turn[4] = spec.up == 1 ? 1.0f : c;
      turn[8] = spec.up == 2 ? 1.0f : c;
      turn[1] = spec.up == 2 ? s : 0.0f;
      turn[3] = -turn[1];
      turn[2] = spec.up == 1 ? s : 0.0f;
      turn[6] = -turn[2];
      turn[5] = spec.up == 0 ? s : 0.0f;
      turn[7] = -turn[5];
    }
  }
  if (spec.training) {
    float sine[3], cosine[3];
    S2V_UNROLL for (int i = 0; i < 3; ++i)
      sine_cosine((2.0f * u[1 + i] - 1.0f) * spec.rotate[i], &sine[i], &cosine[i]);
    const float sx = sine[0], sy = sine[1], sz = sine[2], cx = cosine[0], cy = cosine[1], cz = cosine[2];
    const float rotation[9] = {cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz,
                               cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz,
                               -sy,     sx * cy,                cx * cy};
    factor *= 1.0f + spec.scale_jitter * (2.0f * u[4] - 1.0f);
    S2V_UNROLL for (int i = 0; i < 3; ++i)
      S2V_UNROLL for (int j = 0; j < 3; ++j)
        matrix[3 * i + j] = (rotation[3 * i] * turn[j] + rotation[3 * i + 1] * turn[3 + j] +
                             rotation[3 * i + 2] * turn[6 + j]) * factor;
  } else {
    S2V_UNROLL for (int i = 0; i < 9; ++i) matrix[i] = turn[i] * factor;
  }
}

// All of one sequence: out [M, T, V, C]. row, count: [M], of its bodies.
template <class T, class Lanes>
S2V_HD void clip_item(const ClipSampleSpec& spec, const T* __restrict__ frames, const int32_t* __restrict__ frame_index,
                      const int64_t* __restrict__ row, const int32_t* __restrict__ count, uint64_t id,
                      const ClipScratch& scratch, float* __restrict__ out, const Lanes& lanes) {
  const int32_t length = spec.length, joints = spec.joints;
  float u[6];
  const Words4 first = philox_block(spec.seed, spec.epoch, id, kStreamClip, 0);
  const Words4 second = philox_block(spec.seed, spec.epoch, id, kStreamClip, 1);
  const uint32_t words[6] = {first.w0, first.w1, first.w2, first.w3, second.w0, second.w1};
  S2V_UNROLL for (int i = 0; i < 6; ++i) u[i] = philox_uniform(words[i]);
  clip_picks(spec, id, count[0], u, scratch, lanes);
  lanes.sync();

  float matrix[9];
  const auto root = [&](int32_t t) {
    const int64_t at = row[0] + scratch.lower[t];
    const int64_t next = scratch.lower[t] + 1 < count[0] ? at + 1 : row[0] + count[0] - 1;
    return clip_anchored(frames, at, next, scratch.weight[t], joints, spec.root);
  };
  Point origin = {0.0f, 0.0f, 0.0f};
  if (spec.center == kCenterFirst) {
    const Anchored start = clip_anchored(frames, row[0], row[0], 0.0f, joints, spec.root);
    origin = start.at;
    if (!start.seen) {  // the earliest frame of the clip that has the root
      int32_t earliest = -1;
      for (int32_t t = 0; t < length; ++t)
        if ((earliest < 0 || scratch.lower[t] < scratch.lower[earliest]) && root(t).seen) earliest = t;
      if (earliest >= 0) origin = root(earliest).at;
    }
  } else if (spec.center == kCenterFrame) {
    for (int32_t t = lanes.first(); t < length; t += lanes.step()) {
      int32_t nearest = t;
      for (int32_t apart = 0; apart < length; ++apart) {
        if (t - apart >= 0 && root(t - apart).seen) nearest = t - apart;
        else if (t + apart < length && root(t + apart).seen) nearest = t + apart;
        else continue;
        break;
      }
      scratch.order[t] = uint64_t(nearest);
    }
  }
  const int64_t values = int64_t(length) * joints;
  const int32_t channels = spec.velocity != 0.0f ? 6 : 3;
  for (int32_t m = 0; m < spec.bodies; ++m) {
    for (int32_t t = lanes.first(); t < length; t += lanes.step()) {
      const int32_t next = scratch.lower[t] + 1 < count[0] ? scratch.lower[t] + 1 : count[0] - 1;
      const int64_t at[2] = {row[0] + scratch.lower[t], row[0] + next};
      for (int i = 0; i < 2; ++i)
        scratch.from[i * length + t] = m == 0 ? at[i] : clip_find(frame_index, row[m], count[m], frame_index[at[i]]);
    }
    lanes.sync();
    if (m == 0) clip_matrix(spec, frames, scratch.from, scratch.weight, u, lanes, matrix);
    const auto placed = [&](int32_t t, int32_t joint, bool* seen) {
      const float weight = scratch.weight[t];
      Point point = clip_blended(frames, scratch.from[t], scratch.from[length + t], weight, joints, joint);
      *seen = point.seen();
      if (!*seen) return Point{0.0f, 0.0f, 0.0f};
      if (spec.center == kCenterFirst) {
        point = point - origin;
      } else if (spec.center == kCenterFrame) {
        point = point - root(int32_t(scratch.order[t])).at;
      }
      if (!point.seen()) return Point{kAtOrigin, 0.0f, 0.0f};
      return Point{point.x * matrix[0] + point.y * matrix[1] + point.z * matrix[2],
                   point.x * matrix[3] + point.y * matrix[4] + point.z * matrix[5],
                   point.x * matrix[6] + point.y * matrix[7] + point.z * matrix[8]};
    };
    float* __restrict__ body = out + m * values * channels;
    for (int64_t i = lanes.first(); i < values; i += lanes.step()) {
      const int32_t t = int32_t(i / joints), joint = int32_t(i % joints);
      bool seen = false;
      const Point here = placed(t, joint, &seen);
      float* to = body + i * channels;
      to[0] = here.x;
      to[1] = here.y;
      to[2] = here.z;
      if (channels == 6) {
        Point step = {0.0f, 0.0f, 0.0f};
        bool later = false;
        if (seen && t + 1 < length) {
          const Point after = placed(t + 1, joint, &later);
          if (later) step = after - here;
        }
        to[3] = spec.velocity * step.x;
        to[4] = spec.velocity * step.y;
        to[5] = spec.velocity * step.z;
      }
    }
    lanes.sync();  // before the rows of the next body take the place of these
  }
}

}  // namespace s2v
