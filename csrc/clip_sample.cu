// clip_sample on a GPU: a block for a sequence, joints and frames over its threads; what was chosen in shared memory.
#include "clip_sample.cuh"
#include "clip_sample.h"

namespace s2v {
namespace {

constexpr int kThreads = 256;

struct Block {
  float* room;  // [kThreads / 32]

  __device__ __forceinline__ int32_t first() const { return int32_t(threadIdx.x); }
  __device__ __forceinline__ int32_t step() const { return kThreads; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  // Over all threads, always in the same order; every thread gets it.
  __device__ float sum(float value) const {
    for (int apart = 16; apart >= 1; apart /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, apart);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < kThreads / 32; ++warp) total += room[warp];
    return total;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3)  // registers for all that is held: no stack
    clip_sample_kernel(ClipSampleSpec spec, const T* __restrict__ frames, const int32_t* __restrict__ frame_index,
                       const int64_t* __restrict__ row, const int32_t* __restrict__ count,
                       const int64_t* __restrict__ ids, float* __restrict__ out) {
  extern __shared__ uint64_t shared[];
  __shared__ float sums[kThreads / 32];
  const int32_t length = spec.length;
  int64_t* from = reinterpret_cast<int64_t*>(shared + length + 1);
  float* weight = reinterpret_cast<float*>(from + 2 * int64_t(length));
  const ClipScratch scratch = {reinterpret_cast<int32_t*>(weight + length), weight, from, shared};
  const int64_t id = ids[blockIdx.x];
  const int64_t size = int64_t(spec.bodies) * length * spec.joints * (spec.velocity != 0.0f ? 6 : 3);
  clip_item(spec, frames, frame_index, row + id * spec.bodies, count + id * spec.bodies, uint64_t(id), scratch,
            out + blockIdx.x * size, Block{sums});
}

template <class T>
void run(const ClipSampleCall& call, const CudaCall& cuda) {
  const int64_t bytes = 8 * (int64_t(call.spec.length) + 1) + (16 + 8) * int64_t(call.spec.length);
  cuda.launch_sharing(bytes, clip_sample_kernel<T>, call.samples, 1, dim3(kThreads), call.spec,
                      static_cast<const T*>(call.frames), call.frame_index, call.row, call.count, call.ids, call.out);
}

}  // namespace

void clip_sample_cuda(const ClipSampleCall& call, const CudaTarget& target) {
  clip_sample_check(call);
  const CudaCall cuda("clip_sample", target);
  if (call.kind == kFloat32) run<float>(call, cuda);
  else if (call.kind == kFloat16) run<Half>(call, cuda);
  else run<Bf16>(call, cuda);
}

}  // namespace s2v
