// voxelize on the host: frames, clips and offsets are shared out over threads.
#include "voxelize.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "require.h"
#include "voxelize.cuh"

namespace s2v {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// counts[i] becomes the sum of those before it; returns the sum of all, which must not exceed the capacity.
int64_t summed(std::vector<int64_t>& counts, int64_t capacity) {
  int64_t sum = 0;
  for (int64_t& count : counts) {
    const int64_t before = sum;
    sum += count;
    count = before;
  }
  if (sum > capacity)
    throw std::invalid_argument("voxelize: capacity: " + std::to_string(sum) + " cells where there are " +
                                std::to_string(capacity) + " rows");
  return sum;
}

int64_t cells_in(const int64_t* keys, int64_t rows) { return std::lower_bound(keys, keys + rows, kVoxelEmpty) - keys; }

}  // namespace

void voxel_cells(const VoxelCellsCall& call, int threads) {
  const int64_t frames = call.clips * call.frames;
  require(call.clips >= 0 && call.frames >= 0 && call.points >= 0 && call.capacity >= 0, "voxelize: a negative size");
  require(call.clips < (int64_t(1) << 20) && call.frames <= 1022 && call.points <= kMost && call.capacity <= kMost,
          "voxelize: too many clips, frames, points or rows");
  require((call.xyz != nullptr || frames * call.points == 0) &&
              ((call.keys != nullptr && call.features != nullptr) || call.capacity == 0),
          "voxelize: a null pointer");
  std::vector<uint64_t> order(frames * call.points);
  std::vector<int64_t> points(frames), cells(frames);
  parallel_for(frames, 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      uint64_t* const list = order.data() + f * call.points;
      points[f] = voxel_frame(call.xyz + f * call.points * 3, call.points, call.factor, list);
      cells[f] = voxel_different(list, points[f]);
    }
  });
  const int64_t count = summed(cells, call.capacity);
  parallel_for(frames, 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      const int64_t first = (f / call.frames << kVoxelClip) + ((f % call.frames + 1) << kVoxelFrame);
      voxel_means(call.xyz + f * call.points * 3, call.factor, order.data() + f * call.points, points[f], first,
                  call.keys + cells[f], call.features + cells[f] * 4);
    }
  });
  std::fill_n(call.keys + count, call.capacity - count, kVoxelEmpty);
  std::fill_n(call.features + count * 4, (call.capacity - count) * 4, 0.0f);
}

void voxel_coarsen(const VoxelCoarsenCall& call, int threads) {
  require(call.rows >= 0 && call.rows <= kMost && call.capacity >= 0 && call.capacity <= kMost,
          "voxelize: a number of rows that cannot be");
  require(call.frames >= 1 && call.frames <= 16 && call.cells >= 1 && call.cells <= 16, "voxelize: strides of 1 to 16");
  if (call.capacity == 0) return;
  require(call.keys != nullptr && call.parents != nullptr && call.children != nullptr, "voxelize: a null pointer");
  const int64_t rows = cells_in(call.keys, call.rows);
  std::vector<int64_t> starts;  // of clips
  for (int64_t r = 0; r < rows; ++r)
    if (r == 0 || call.keys[r] >> kVoxelClip != call.keys[r - 1] >> kVoxelClip) starts.push_back(r);
  const int64_t clips = int64_t(starts.size());
  starts.push_back(rows);
  std::vector<VoxelParent> parents(rows);
  std::vector<int64_t> counts(clips);
  parallel_for(clips, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t clip = begin; clip < end; ++clip) {
      for (int64_t r = starts[clip]; r < starts[clip + 1]; ++r)
        parents[r] = voxel_parent(call.keys[r], call.frames, call.cells, int32_t(r));
      std::sort(parents.begin() + starts[clip], parents.begin() + starts[clip + 1],
                [](const VoxelParent& a, const VoxelParent& b) { return a.key < b.key; });
      for (int64_t i = starts[clip]; i < starts[clip + 1]; ++i)
        counts[clip] += i == starts[clip] || parents[i].key != parents[i - 1].key;
    }
  });
  const int64_t count = summed(counts, call.capacity);
  std::fill_n(call.children, call.frames * call.cells * call.cells * call.cells * call.capacity, -1);
  parallel_for(clips, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t clip = begin; clip < end; ++clip) {
      int64_t to = counts[clip] - 1;
      for (int64_t i = starts[clip]; i < starts[clip + 1]; ++i) {
        if (i == starts[clip] || parents[i].key != parents[i - 1].key) call.parents[++to] = parents[i].key;
        call.children[parents[i].child * call.capacity + to] = parents[i].row;
      }
    }
  });
  std::fill_n(call.parents + count, call.capacity - count, kVoxelEmpty);
}

void voxel_neighbors(const VoxelNeighborsCall& call, int threads) {
  require(call.rows >= 0 && call.rows <= kMost && call.offsets >= 0, "voxelize: a number of rows that cannot be");
  if (call.rows * call.offsets == 0) return;
  require(call.keys != nullptr && call.deltas != nullptr && call.neighbors != nullptr, "voxelize: a null pointer");
  const int64_t count = cells_in(call.keys, call.rows);
  parallel_for(call.offsets, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      voxel_walk(call.keys, call.rows, count, call.deltas[o], call.neighbors + o * call.rows);
  });
}

}  // namespace s2v
