// mask_fill on the device: a block for a tile of tokens, a warp for a row. Backward, a warp sums a token over the tracks.
#include "cuda_launch.h"
#include "mask_fill.cuh"
#include "mask_fill.h"

namespace s2v {
namespace {

constexpr int kTile = 32;   // tokens a block
constexpr int kWarps = 8;
constexpr int kTaken = 64;  // latents a block

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    forward_kernel(MaskFillShape shape, const T* __restrict__ latents, const float* __restrict__ mask_token,
                   const float* __restrict__ positions, const int32_t* __restrict__ visible, T* __restrict__ out) {
  __shared__ int32_t places[kTile];
  const int64_t per_track = (shape.tokens + kTile - 1) / kTile;
  const int64_t n = blockIdx.x / per_track;
  const int32_t first = int32_t(blockIdx.x % per_track) * kTile;
  const int32_t count = shape.tokens - first < kTile ? shape.tokens - first : kTile;
  mask_fill_places(shape, visible + n * shape.kept, first, count, places, BlockLanes());
  mask_fill_tile<kWidth>(shape, latents + n * shape.kept * shape.width, mask_token, positions, places, first, count, 0,
                         shape.width, out + n * shape.tokens * shape.width, BlockLanes());
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    take_kernel(MaskFillShape shape, const T* __restrict__ grad, const int32_t* __restrict__ visible,
                T* __restrict__ d_latents) {
  const int64_t per_track = (shape.kept + kTaken - 1) / kTaken;
  const int64_t n = blockIdx.x / per_track;
  const int32_t first = int32_t(blockIdx.x % per_track) * kTaken;
  const int32_t last = shape.kept - first < kTaken ? shape.kept : first + kTaken;
  mask_fill_take<kWidth>(shape, grad + n * shape.tokens * shape.width, visible + n * shape.kept, first, last, 0,
                         shape.width, d_latents + n * shape.kept * shape.width, BlockLanes());
}

__global__ void flag_kernel(MaskFillShape shape, const int32_t* __restrict__ visible, uint8_t* __restrict__ has_latent) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= shape.tracks * shape.kept) return;
  const int32_t id = visible[i];
  if (id >= 0 && id < shape.tokens) has_latent[id * shape.tracks + i / shape.kept] = 1;
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    token_sums_kernel(MaskFillShape shape, const T* __restrict__ grad, const uint8_t* __restrict__ has_latent,
                      float* __restrict__ masked, float* __restrict__ all) {
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (token < shape.tokens)
    mask_fill_token_sums<kWidth, 1>(shape, grad, has_latent, int32_t(token), 0, shape.width, masked, all, BlockLanes());
}

template <int kWidth, class T>
void forward(const MaskFillShape& shape, const MaskFillCall& call, const CudaTarget& target) {
  const int64_t tiles = shape.tracks * ((shape.tokens + kTile - 1) / kTile);
  cuda_launch("mask_fill", target, forward_kernel<kWidth, T>, tiles, dim3(32, kWarps), shape,
              static_cast<const T*>(call.latents), call.mask_token, call.positions, call.visible,
              static_cast<T*>(call.out));
}
