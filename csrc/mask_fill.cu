// mask_fill on a GPU. Forward: a block for a tile of tokens, a warp for a row. Backward: the latents' gradient
// likewise; a warp for a token's sums over the tracks, 32 packs of columns at a time.
#include "mask_fill.cuh"
#include "mask_fill.h"

namespace s2v {
namespace {

constexpr int kTile = 32;   // tokens a block
constexpr int kTaken = 64;  // latents a block
constexpr int kWarps = 8;
const dim3 kBlock(32, kWarps);

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    forward_kernel(MaskFillShape shape, const T* __restrict__ latents, const float* __restrict__ mask_token,
                   const float* __restrict__ positions, const int32_t* __restrict__ visible, T* __restrict__ out) {
  __shared__ int32_t places[kTile];
  const int32_t tiles = (shape.tokens + kTile - 1) / kTile;
  const int64_t n = blockIdx.x / tiles;
  const int32_t first = int32_t(blockIdx.x % tiles) * kTile;
  const int32_t count = shape.tokens - first < kTile ? shape.tokens - first : kTile;
  mask_fill_places(shape, visible + n * shape.kept, first, count, places, BlockLanes());
  mask_fill_tile<kWidth>(shape, latents + n * shape.kept * shape.width, mask_token, positions, places, first, count, 0,
                         shape.width, out + n * shape.tokens * shape.width, BlockLanes());
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    take_kernel(MaskFillShape shape, const T* __restrict__ grad, const int32_t* __restrict__ visible,
                T* __restrict__ d_latents) {
  const int32_t tiles = (shape.kept + kTaken - 1) / kTaken;
  const int64_t n = blockIdx.x / tiles;
  const int32_t first = int32_t(blockIdx.x % tiles) * kTaken;
  const int32_t last = shape.kept - first < kTaken ? shape.kept : first + kTaken;
  mask_fill_take<kWidth>(shape, grad + n * shape.tokens * shape.width, visible + n * shape.kept, first, last, 0,
                         shape.width, d_latents + n * shape.kept * shape.width, BlockLanes());
}

__global__ void __launch_bounds__(32 * kWarps)
    flag_kernel(MaskFillShape shape, const int32_t* __restrict__ visible, uint8_t* __restrict__ has_latent) {
  const int64_t i = int64_t(blockIdx.x) * (32 * kWarps) + threadIdx.y * 32 + threadIdx.x;
  if (i >= shape.tracks * shape.kept) return;
  const int32_t id = visible[i];
  if (id >= 0 && id < shape.tokens) has_latent[id * shape.tracks + i / shape.kept] = 1;
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps, 2)  // registers for all reads of a round
    token_sums_kernel(MaskFillShape shape, const T* __restrict__ grad, const uint8_t* __restrict__ has_latent,
                      float* __restrict__ masked, float* __restrict__ all) {
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (token < shape.tokens)
    mask_fill_token_sums<kWidth, 1, 8>(shape, grad, has_latent, int32_t(token), 0, shape.width, masked, all,
                                       BlockLanes());
}

MaskFillShape shape_of(int64_t tracks, int64_t kept, int64_t tokens, int64_t width) {
  return {tracks, int32_t(kept), int32_t(tokens), int32_t(width)};
}

template <int kWidth, class T>
void forward(const MaskFillShape& shape, const MaskFillCall& call, const CudaCall& cuda) {
  cuda.launch(forward_kernel<kWidth, T>, shape.tracks * cuda_blocks(shape.tokens, kTile), shape.width > 0, kBlock,
              shape, static_cast<const T*>(call.latents), call.mask_token, call.positions, call.visible,
              static_cast<T*>(call.out));
}

template <class T>
void forward_of(const MaskFillCall& call, const CudaCall& cuda) {
  const MaskFillShape shape = shape_of(call.tracks, call.kept, call.tokens, call.width);
  const T* latents = static_cast<const T*>(call.latents);
  constexpr int kWide = 16 / sizeof(T);  // 16 bytes of T at a time
  const bool wide = packs_fit<kWide>(call.width, latents, call.mask_token, call.positions, static_cast<T*>(call.out));
  if (wide) forward<kWide, T>(shape, call, cuda);
  else forward<1, T>(shape, call, cuda);
}

template <int kWidth, class T>
void backward(const MaskFillShape& shape, const MaskFillBackwardCall& call, const CudaCall& cuda) {
  const T* grad = static_cast<const T*>(call.grad);
  if (call.d_latents != nullptr)
    cuda.launch(take_kernel<kWidth, T>, shape.tracks * cuda_blocks(shape.kept, kTaken), shape.width > 0, kBlock, shape,
                grad, call.visible, static_cast<T*>(call.d_latents));
  if (call.d_mask_token == nullptr) return;
  cuda.fill(call.has_latent, 0, shape.tokens * shape.tracks);
  cuda.launch(flag_kernel, cuda_blocks(shape.tracks * shape.kept, 32 * kWarps), 1, kBlock, shape, call.visible,
              call.has_latent);
  cuda.launch(token_sums_kernel<kWidth, T>, cuda_blocks(shape.tokens, kWarps), cuda_blocks(shape.width, 32 * kWidth),
              kBlock, shape, grad, call.has_latent, call.masked_sums, call.d_positions);
  sum_rows(cuda, call.masked_sums, shape.tokens, shape.width, call.d_mask_token);
}

template <class T>
void backward_of(const MaskFillBackwardCall& call, const CudaCall& cuda) {
  const MaskFillShape shape = shape_of(call.tracks, call.kept, call.tokens, call.width);
  const bool wide = packs_fit<4>(call.width, static_cast<const T*>(call.grad), static_cast<T*>(call.d_latents),
                                 call.d_positions, call.masked_sums);
  if (wide) backward<4, T>(shape, call, cuda);
  else backward<1, T>(shape, call, cuda);
}

}  // namespace

void mask_fill_cuda(const MaskFillCall& call, const CudaTarget& target) {
  const CudaCall cuda("mask_fill", target);
  if (call.itemsize == 4) forward_of<float>(call, cuda);
  else forward_of<Bf16>(call, cuda);
}

void mask_fill_backward_cuda(const MaskFillBackwardCall& call, const CudaTarget& target) {
  const CudaCall cuda("mask_fill_backward", target);
  if (call.itemsize == 4) backward_of<float>(call, cuda);
  else backward_of<Bf16>(call, cuda);
}

}  // namespace s2v
