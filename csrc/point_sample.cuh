// point_sample, the work for one frame of one clip: s2vfast/reference/point_sample.py is the specification, whose draws
// and points these are bit for bit.
//
// Memory: reads the chosen points once, writes the clip once.
#pragma once

#include <limits>

#include "pack.cuh"
#include "point_sample.h"

namespace s2v {

// One of the n things in bin i of `bins` equal ones: the one that the word draws, or, without a draw, the middle one.
S2V_HD int64_t point_pick(int64_t bins, int64_t i, int64_t n, bool drawn, uint32_t word) {
  const int64_t low = i * n / bins, width = (i + 1) * n / bins - low;
  return low + (drawn ? int64_t((uint64_t(word) * uint64_t(width)) >> 32) : width / 2);
}

S2V_HD uint32_t point_word(const PointSampleCall& call, uint64_t id, uint32_t stream, uint32_t index) {
  const Words4 words = philox_block(call.seed, call.epoch, id, stream, index / 4);
  const uint32_t low = (index & 1) ? words.w1 : words.w0, high = (index & 1) ? words.w3 : words.w2;
  return (index & 2) ? high : low;
}

// Which of the sequence's `count` frames is frame t of the clip.
S2V_HD int64_t point_frame(const PointSampleCall& call, uint64_t id, int64_t count, int32_t t) {
  const int64_t span = int64_t(call.length - 1) * call.stride + 1;
  if (call.even || count < span) {
    const bool drawn = call.training || !call.even;  // a window that does not fit: at the start of each bin
    const uint32_t word = call.training && call.even ? point_word(call, id, kStreamPointFrames, 1 + t) : 0;
    return point_pick(call.length, t, count, drawn, word);
  }
  const int64_t starts = count - span + 1;
  const int64_t start =
      call.training ? int64_t((uint64_t(point_word(call, id, kStreamPointFrames, 0)) * uint64_t(starts)) >> 32)
                    : (2 * int64_t(call.window) + 1) * starts / (2 * int64_t(call.windows));
  return start + int64_t(t) * call.stride;
}

// Frame t of the clip of sequence `id`, into out [P, 3].
template <class T>
S2V_HD void point_item(const PointSampleCall& call, int64_t id, int32_t t, float* __restrict__ out) {
  const int64_t frame = call.row[id] + point_frame(call, uint64_t(id), call.count[id], t);
  const int64_t n = call.size[frame];
  const float* __restrict__ origin = call.origin + id * 3;
  if (n == 0) {
    for (int64_t i = 0; i < call.drawn * int64_t(3); ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const T* __restrict__ points = static_cast<const T*>(call.points) + call.begin[frame] * 3;
  Words4 words = {};
  for (int32_t p = 0; p < call.drawn; ++p) {
    uint32_t word = 0;
    if (call.training) {
      const uint32_t index = uint32_t(t) * uint32_t(call.drawn) + uint32_t(p);
      if (p == 0 || index % 4 == 0) words = philox_block(call.seed, call.epoch, uint64_t(id), kStreamPoints, index / 4);
      word = index % 4 == 0 ? words.w0 : index % 4 == 1 ? words.w1 : index % 4 == 2 ? words.w2 : words.w3;
    }
    const int64_t at = point_pick(call.drawn, p, n, call.training, word);
    for (int c = 0; c < 3; ++c) out[p * int64_t(3) + c] = widen(points[at * 3 + c]) - origin[c];
  }
}

}  // namespace s2v
