// tube_mask on a GPU: a warp for a tube of a track, joints over its lanes; scratch in shared memory. Bound by reading
// the clips once.
#include <stdexcept>

#include "cuda_launch.h"
#include "tube_mask.cuh"
#include "tube_mask.h"

namespace s2v {
namespace {

constexpr int kWarps = 4;

struct Warp {
  __device__ __forceinline__ int32_t first() const { return int32_t(threadIdx.x); }
  __device__ __forceinline__ int32_t step() const { return 32; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  template <class V>
  __device__ __forceinline__ V min(V value) const {
    for (int apart = 16; apart >= 1; apart /= 2) {
      const V other = __shfl_xor_sync(0xFFFFFFFFu, value, apart);
      value = other < value ? other : value;
    }
    return value;
  }
  template <class V>
  __device__ __forceinline__ V max(V value) const {
    for (int apart = 16; apart >= 1; apart /= 2) {
      const V other = __shfl_xor_sync(0xFFFFFFFFu, value, apart);
      value = other > value ? other : value;
    }
    return value;
  }
};

// Numbers of four bytes that a warp needs.
__host__ __device__ int64_t scratch_words(const TubeMaskShape& shape) {
  return int64_t(shape.segment_frames) * shape.joints * shape.channels + 4 * int64_t(shape.joints);
}

template <int kChannels>
__global__ void __launch_bounds__(32 * kWarps, 8)  // registers for all that is held: no stack
    tube_mask_kernel(TubeMaskShape shape, int64_t tracks, const float* __restrict__ clips, float motion_weight,
                     const float* __restrict__ noise, uint64_t seed, uint32_t epoch, const int64_t* __restrict__ ids,
                     int32_t* __restrict__ visible, int32_t* __restrict__ masked) {
  extern __shared__ float room[];
  const int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (item >= tracks * shape.tubes()) return;
  const int64_t n = item / shape.tubes();
  const int32_t tube = int32_t(item % shape.tubes());
  float* motion = room + threadIdx.y * scratch_words(shape);
  float* token = motion + int64_t(shape.segment_frames) * shape.joints * shape.channels;
  float* sums = token + shape.joints;
  int32_t* key = reinterpret_cast<int32_t*>(sums + shape.joints);
  const TubeScratch<float, int32_t> scratch = {motion, token, sums, key, key + shape.joints};
  const int64_t first = int64_t(tube) * shape.joints;
  const float* given = noise == nullptr ? nullptr : noise + n * shape.tubes() * shape.joints + first;
  const uint64_t id = noise == nullptr ? uint64_t(ids[n]) : 0;
  const auto draw = [=](int32_t joint) {
    return given != nullptr ? given[joint] : philox_uniform_at(seed, epoch, id, kStreamMask, uint32_t(first + joint));
  };
  tube_mask_item<kChannels>(shape, clips + n * shape.frames * shape.joints * shape.channels, tube, motion_weight, draw,
                            scratch, visible + n * shape.visible(), masked + n * shape.masked(), Warp());
}

}  // namespace

void tube_mask_cuda(const TubeMaskCall& call, const CudaTarget& target) {
  tube_mask_check(call);
  if (call.itemsize != 4) throw std::invalid_argument("tube_mask: on a GPU it takes float32 clips");
  const CudaCall cuda("tube_mask", target);
  const TubeMaskShape shape = {int32_t(call.frames),         int32_t(call.joints),   int32_t(call.channels),
                               int32_t(call.segment_frames), int32_t(call.tube_len), int32_t(call.keep)};
  auto kernel = call.channels == 3 ? tube_mask_kernel<3> : call.channels == 6 ? tube_mask_kernel<6> : tube_mask_kernel<0>;
  const int64_t blocks = (call.tracks * shape.tubes() + kWarps - 1) / kWarps;
  cuda.launch_sharing(4 * kWarps * scratch_words(shape), kernel, blocks, 1, dim3(32, kWarps), shape, call.tracks,
                      static_cast<const float*>(call.clips), float(call.motion_weight),
                      static_cast<const float*>(call.noise), call.seed, call.epoch, call.ids, call.visible, call.masked);
}

}  // namespace s2v
