// voxelize, the work for one frame of points, one run of keys, one offset.
//
// A key is clip, frame + 1, x + 1024, y + 1024, z + 1024, from the highest bit down, 63 bits in all. Frames are sorted by
// themselves, as keys begin with clip and frame; a point's number in its frame goes with its key, so that points of a
// cell are added up in their order. For one offset the neighbours' keys ascend as the keys do: one walk through both
// finds all of them, without a search.
#pragma once

#include <algorithm>
#include <cmath>

#include "pack.cuh"
#include "voxelize.h"

namespace s2v {

constexpr int64_t kVoxelEmpty = INT64_MAX;
constexpr int kVoxelClip = 43, kVoxelFrame = 33, kVoxelX = 22, kVoxelY = 11;  // where fields of a key begin
constexpr int64_t kVoxelBias = 1024;
constexpr float kVoxelLowest = -1022.0f, kVoxelHighest = 1022.0f;  // cells are in [lowest, highest)
constexpr int kVoxelIndexBits = 31;

S2V_HD int64_t voxel_place(int64_t x, int64_t y, int64_t z) {
  return ((x + kVoxelBias) << kVoxelX) + ((y + kVoxelBias) << kVoxelY) + (z + kVoxelBias);
}

// Lists (place, number) of the points of a frame that are in a cell, sorted; returns how many. order: [P].
inline int64_t voxel_frame(const float* __restrict__ xyz, int64_t points, float factor, uint64_t* __restrict__ order) {
  int64_t count = 0;
  for (int64_t p = 0; p < points; ++p) {
    float scaled[3];
    bool inside = true;
    for (int c = 0; c < 3; ++c) {
      scaled[c] = xyz[p * 3 + c] * factor;
      inside = inside && scaled[c] >= kVoxelLowest && scaled[c] < kVoxelHighest;  // not so for NaN
    }
    if (!inside) continue;
    const int64_t place =
        voxel_place(int64_t(floorf(scaled[0])), int64_t(floorf(scaled[1])), int64_t(floorf(scaled[2])));
    order[count++] = uint64_t(place) << kVoxelIndexBits | uint64_t(p);
  }
  std::sort(order, order + count);
  return count;
}

// Different places in a frame's list.
S2V_HD int64_t voxel_different(const uint64_t* __restrict__ order, int64_t count) {
  int64_t different = 0;
  for (int64_t i = 0; i < count; ++i)
    different += i == 0 || order[i] >> kVoxelIndexBits != order[i - 1] >> kVoxelIndexBits;
  return different;
}

// Keys and features of a frame's cells. first: the key of the frame's place 0.
S2V_HD void voxel_means(const float* __restrict__ xyz, float factor, const uint64_t* __restrict__ order, int64_t count,
                        int64_t first, int64_t* __restrict__ keys, float* __restrict__ features) {
  for (int64_t i = 0; i < count;) {
    const uint64_t place = order[i] >> kVoxelIndexBits;
    float sums[3] = {}, number = 0.0f;
    for (; i < count && order[i] >> kVoxelIndexBits == place; ++i) {
      const int64_t p = int64_t(order[i] & ((uint64_t(1) << kVoxelIndexBits) - 1));
      for (int c = 0; c < 3; ++c) {
        const float scaled = xyz[p * 3 + c] * factor;
        sums[c] += scaled - (floorf(scaled) + 0.5f);
      }
      number += 1.0f;
    }
    *keys++ = first + int64_t(place);
    *features++ = 1.0f;
    for (int c = 0; c < 3; ++c) *features++ = sums[c] / number;
  }
}

// The largest whole number that is not above a / b.
S2V_HD int64_t voxel_floor(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// A cell among those `frames` and `cells` times as large: its key there and its place in that cell.
struct VoxelParent {
  int64_t key;
  int32_t child, row;
};
S2V_HD VoxelParent voxel_parent(int64_t key, int64_t frames, int64_t cells, int32_t row) {
  const int64_t t = (key >> kVoxelFrame & 1023) - 1;
  int64_t child = t % frames, up[3];
  const int shifts[3] = {kVoxelX, kVoxelY, 0};
  for (int c = 0; c < 3; ++c) {
    const int64_t at = (key >> shifts[c] & 2047) - kVoxelBias;
    up[c] = voxel_floor(at, cells);
    child = child * cells + at - up[c] * cells;
  }
  const int64_t clip = key >> kVoxelClip;
  return {(clip << kVoxelClip) + ((t / frames + 1) << kVoxelFrame) + voxel_place(up[0], up[1], up[2]), int32_t(child),
          row};
}

// neighbors[r] = the row of keys[r] + delta, -1 where there is none; the first `count` of keys hold cells.
S2V_HD void voxel_walk(const int64_t* __restrict__ keys, int64_t rows, int64_t count, int64_t delta,
                       int32_t* __restrict__ neighbors) {
  int64_t at = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t key = keys[r] + delta;
    while (at < count && keys[at] < key) ++at;
    neighbors[r] = at < count && keys[at] == key ? int32_t(at) : -1;
  }
  for (int64_t r = count; r < rows; ++r) neighbors[r] = -1;
}

}  // namespace s2v
