// tube_mask on the host: tracks are shared out over threads, joints over vector lanes.
#include "tube_mask.h"

#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "require.h"
#include "tube_mask.cuh"

// One copy of a function for each instruction set, chosen when the library is loaded. No fused multiply-add is made in
// any of them (-ffp-contract=off), so all give the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define S2V_CLONES __attribute__((target_clones("avx2", "default"), flatten))
#else
#define S2V_CLONES
#endif

namespace s2v {
namespace {

template <class T>
struct Task {
  TubeMaskShape shape;
  const T* clips;
  T motion_weight;
  const T* noise;  // [N, tubes, V], or null: draws of the counter-based generator
  uint64_t seed;
  uint32_t epoch;
  const int64_t* ids;  // [N], where noise is null
  int32_t* visible;
  int32_t* masked;
};

// Scratch of one range of tracks.
template <class T>
struct Buffers {
  using Key = typename KeyType<T>::type;
  std::vector<T> motion, token, tube, noise;
  std::vector<Key> key;
  std::vector<int32_t> order;

  Buffers(const TubeMaskShape& shape, bool draws)
      : motion(int64_t(shape.segment_frames) * shape.joints * shape.channels), token(shape.joints), tube(shape.joints),
        noise(draws ? (int64_t(shape.tubes()) * shape.joints + 3) / 4 * 4 : 0), key(shape.joints),
        order(shape.joints) {}
};

template <int kChannels, class T>
S2V_HD void tracks(const Task<T>& task, Buffers<T>& buffers, int64_t begin, int64_t end) {
  const TubeMaskShape shape = task.shape;
  const int64_t clip_size = int64_t(shape.frames) * shape.joints * shape.channels;
  const int64_t noise_size = int64_t(shape.tubes()) * shape.joints;
  const TubeScratch<T, typename KeyType<T>::type> scratch = {
      buffers.motion.data(), buffers.token.data(), buffers.tube.data(), buffers.key.data(), buffers.order.data()};
  for (int64_t n = begin; n < end; ++n) {
    const T* noise = task.noise + (task.noise != nullptr ? n * noise_size : 0);
    if (task.noise == nullptr) {
      T* __restrict__ draws = buffers.noise.data();
      const uint32_t blocks = uint32_t((noise_size + 3) / 4);
      const uint64_t id = uint64_t(task.ids[n]);
      for (uint32_t block = 0; block < blocks; ++block) {
        const Words4 words = philox_block(task.seed, task.epoch, id, kStreamMask, block);
        draws[4 * block + 0] = philox_uniform(words.w0);
        draws[4 * block + 1] = philox_uniform(words.w1);
        draws[4 * block + 2] = philox_uniform(words.w2);
        draws[4 * block + 3] = philox_uniform(words.w3);
      }
      noise = draws;
    }
    for (int32_t tube = 0; tube < shape.tubes(); ++tube) {
      const T* row = noise + int64_t(tube) * shape.joints;
      tube_mask_item<kChannels>(
          shape, task.clips + n * clip_size, tube, task.motion_weight, [row](int32_t joint) { return row[joint]; },
          scratch, task.visible + n * shape.visible(), task.masked + n * shape.masked(), OneLane());
    }
  }
}

S2V_CLONES void tracks_f32_c3(const Task<float>& task, Buffers<float>& buffers, int64_t begin, int64_t end) {
  tracks<3>(task, buffers, begin, end);
}
S2V_CLONES void tracks_f32_c6(const Task<float>& task, Buffers<float>& buffers, int64_t begin, int64_t end) {
  tracks<6>(task, buffers, begin, end);
}
S2V_CLONES void tracks_f32(const Task<float>& task, Buffers<float>& buffers, int64_t begin, int64_t end) {
  tracks<0>(task, buffers, begin, end);
}
S2V_CLONES void tracks_f64(const Task<double>& task, Buffers<double>& buffers, int64_t begin, int64_t end) {
  tracks<0>(task, buffers, begin, end);
}

void range(const Task<float>& task, Buffers<float>& buffers, int64_t begin, int64_t end) {
  // Coordinates, and coordinates with velocities: a known C lets the compiler turn strided sums into vectors.
  if (task.shape.channels == 3) tracks_f32_c3(task, buffers, begin, end);
  else if (task.shape.channels == 6) tracks_f32_c6(task, buffers, begin, end);
  else tracks_f32(task, buffers, begin, end);
}
void range(const Task<double>& task, Buffers<double>& buffers, int64_t begin, int64_t end) {
  tracks_f64(task, buffers, begin, end);
}

template <class T>
void run(const TubeMaskCall& call, int threads) {
  Task<T> task;
  task.shape = {int32_t(call.frames), int32_t(call.joints), int32_t(call.channels),
                int32_t(call.segment_frames), int32_t(call.tube_len), int32_t(call.keep)};
  task.clips = static_cast<const T*>(call.clips);
  task.motion_weight = T(call.motion_weight);
  task.noise = static_cast<const T*>(call.noise);
  task.seed = call.seed;
  task.epoch = call.epoch;
  task.ids = call.ids;
  task.visible = call.visible;
  task.masked = call.masked;
  // About 64 KB of coordinates a range: a fraction of what waking a thread costs, small enough to share out evenly.
  const int64_t clip_bytes = call.frames * call.joints * call.channels * int64_t(sizeof(T));
  const int64_t grain = clip_bytes >= 65536 ? 1 : 65536 / clip_bytes;
  parallel_for(call.tracks, grain, threads, [&task](int64_t begin, int64_t end) {
    Buffers<T> buffers(task.shape, task.noise == nullptr);
    range(task, buffers, begin, end);
  });
}

}  // namespace

void tube_mask_check(const TubeMaskCall& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.itemsize == 4 || call.itemsize == 8, "tube_mask: itemsize is 4 (float32) or 8 (float64)");
  require(call.tracks >= 0, "tube_mask: a negative number of tracks");
  require(call.frames >= 1 && call.joints >= 1 && call.channels >= 1, "tube_mask: frames, joints, channels >= 1");
  require(call.frames <= most && call.joints <= most / call.frames && call.channels <= most / (call.frames * call.joints),
          "tube_mask: a clip of 2**31 numbers or more");
  require(call.segment_frames >= 1 && call.frames % call.segment_frames == 0,
          "tube_mask: frames is no multiple of segment_frames");
  require(call.tube_len >= 1 && (call.frames / call.segment_frames) % call.tube_len == 0,
          "tube_mask: the number of segments is no multiple of tube_len");
  require(call.keep >= 0 && call.keep <= call.joints, "tube_mask: keep is not within 0 ... joints");
  if (call.tracks == 0) return;
  require(call.clips != nullptr, "tube_mask: clips is a null pointer");
  require(call.visible != nullptr || call.keep == 0, "tube_mask: visible is a null pointer");
  require(call.masked != nullptr || call.keep == call.joints, "tube_mask: masked is a null pointer");
  require((call.noise != nullptr) != (call.ids != nullptr), "tube_mask: give either noise or ids");
}

void tube_mask(const TubeMaskCall& call, int threads) {
  tube_mask_check(call);
  if (call.tracks == 0) return;
  if (call.itemsize == 4) run<float>(call, threads);
  else run<double>(call, threads);
}

}  // namespace s2v
