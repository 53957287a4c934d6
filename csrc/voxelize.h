// The stages of voxelize as the bindings call them: raw pointers and sizes. Keys and tables are those of
// s2vfast/ops/voxelize.py.
#pragma once

#include <cstdint>

namespace s2v {

struct VoxelCellsCall {
  int64_t clips, frames, points, capacity;  // N, T, P, R
  const float* xyz;                         // [N, T, P, 3]
  float factor;                             // cells a metre
  int64_t* keys;                            // out [R]
  float* features;                          // out [R, 4]
};

struct VoxelCoarsenCall {
  int64_t rows, capacity, frames, cells;  // R, R', and how many of them along time and space make one
  const int64_t* keys;                    // [R]
  int64_t* parents;                       // out [R']
  int32_t* children;                      // out [frames * cells ** 3, R']
};

struct VoxelNeighborsCall {
  int64_t rows, offsets;   // R, O
  const int64_t* keys;     // [R]
  const int64_t* deltas;   // [O]
  int32_t* neighbors;      // out [O, R]
};

// On the host, on `threads` threads (0: one for each core). Throw std::invalid_argument for sizes or pointers that cannot
// be, and where there are more cells than `capacity`.
void voxel_cells(const VoxelCellsCall& call, int threads);
void voxel_coarsen(const VoxelCoarsenCall& call, int threads);
void voxel_neighbors(const VoxelNeighborsCall& call, int threads);

}  // namespace s2v
