// embed_gather on a GPU: a warp's lanes are columns. Forward: a warp for a few rows, which share one reading of the
// map. Backward: a warp for a few numbers of the tokens over a range of rows, then the ranges added up; a warp for a
// token's sums over the tracks; a warp for the gradient of a token's numbers.
#include "embed_gather.cuh"
#include "embed_gather.h"

namespace s2v {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 8;     // of a warp, forward
constexpr int kNumbers = 4;  // of a token, of a warp, backward
const dim3 kBlock(32, kWarps);

// Which item is this warp's.
__device__ __forceinline__ int64_t warp_item() { return int64_t(blockIdx.x) * kWarps + threadIdx.y; }

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    rows_kernel(EmbedGatherShape shape, const float* __restrict__ clips, const float* __restrict__ weight_t,
                const float* __restrict__ bias, const float* __restrict__ positions,
                const int32_t* __restrict__ visible, T* __restrict__ out) {
  int64_t row = warp_item() * kRows;
  const int64_t end = row + kRows < shape.rows() ? row + kRows : shape.rows();
  if (row + kRows <= end)
    embed_gather_rows<kRows, kWidth>(shape, clips, weight_t, bias, positions, visible, row, 0, shape.width, out,
                                     BlockLanes());
  else
    for (; row < end; ++row)
      embed_gather_rows<1, kWidth>(shape, clips, weight_t, bias, positions, visible, row, 0, shape.width, out,
                                   BlockLanes());
}

// How many warps share out a token's numbers; the last one sums the gradient alone, for the bias.
S2V_HD int32_t number_groups(const EmbedGatherShape& shape) { return (shape.numbers() + kNumbers - 1) / kNumbers + 1; }

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps, 2)
    map_sums_kernel(EmbedGatherShape shape, const float* __restrict__ clips, const int32_t* __restrict__ visible,
                    const T* __restrict__ grad, float* __restrict__ partial) {
  const int32_t groups = number_groups(shape);
  const int64_t tile = warp_item() / groups, tile_rows = embed_gather_tile_rows(shape.rows());
  const int64_t first = tile * tile_rows, last = first + tile_rows < shape.rows() ? first + tile_rows : shape.rows();
  if (first >= last) return;
  const auto piece = [&shape, visible](int64_t row) {
    return embed_gather_piece(shape, row / shape.kept, embed_gather_token(shape, visible, row));
  };
  const int32_t group = int32_t(warp_item() % groups);
  int32_t number = group * kNumbers;
  float* __restrict__ sums = partial + tile * (shape.numbers() + 1) * shape.width;
  if (group == groups - 1) {
    embed_gather_map_sums<true, 1, kWidth, 1>(shape, clips, grad, piece, first, last, 0, 0, shape.width,
                                              sums + int64_t(shape.numbers()) * shape.width, BlockLanes());
  } else if (number + kNumbers <= shape.numbers()) {
    embed_gather_map_sums<false, kNumbers, kWidth, 1>(shape, clips, grad, piece, first, last, number, 0, shape.width,
                                                      sums + int64_t(number) * shape.width, BlockLanes());
  } else {
    for (; number < shape.numbers(); ++number)
      embed_gather_map_sums<false, 1, kWidth, 1>(shape, clips, grad, piece, first, last, number, 0, shape.width,
                                                 sums + int64_t(number) * shape.width, BlockLanes());
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    place_kernel(EmbedGatherShape shape, const int32_t* __restrict__ visible, int32_t* __restrict__ places) {
  const int64_t row = warp_item() * 32 + threadIdx.x;
  if (row >= shape.rows()) return;
  const int32_t token = visible[row];
  if (embed_gather_exists(shape, token)) places[token * shape.tracks + row / shape.kept] = int32_t(row % shape.kept);
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps, 2)  // registers for all reads of a round
    position_sums_kernel(EmbedGatherShape shape, const T* __restrict__ grad, const int32_t* __restrict__ places,
                         float* __restrict__ d_positions) {
  if (warp_item() < shape.tokens())
    embed_gather_position_sums<kWidth, 1, 8>(shape, grad, places, int32_t(warp_item()), 0, shape.width, d_positions,
                                             BlockLanes());
}

template <int kWidth, class T>
__global__ void __launch_bounds__(32 * kWarps)
    clip_gradient_kernel(EmbedGatherShape shape, const T* __restrict__ grad, const float* __restrict__ weight_t,
                         const int32_t* __restrict__ places, float* __restrict__ d_clips) {
  if (warp_item() < shape.tracks * shape.tokens())
    embed_gather_clip_gradient<kWidth>(shape, grad, weight_t, places, warp_item() / shape.tokens(),
                                       int32_t(warp_item() % shape.tokens()), d_clips, BlockLanes());
}

template <class Call>
EmbedGatherShape shape_of(const Call& call) {
  return {call.tracks, int32_t(call.frames), int32_t(call.joints), int32_t(call.channels), int32_t(call.segment_frames),
          int32_t(call.width), int32_t(call.kept)};
}

template <int kWidth, class T>
void forward(const EmbedGatherCall& call, const CudaCall& cuda) {
  const EmbedGatherShape shape = shape_of(call);
  cuda.launch(rows_kernel<kWidth, T>, cuda_blocks(shape.rows(), kRows * kWarps), cuda_blocks(shape.width, 32 * kWidth),
              kBlock, shape, call.clips, call.weight_t, call.bias, call.positions, call.visible,
              static_cast<T*>(call.out));
}

template <class T>
void forward_of(const EmbedGatherCall& call, const CudaCall& cuda) {
  const bool wide = packs_fit<4>(call.width, call.weight_t, call.bias, call.positions, static_cast<T*>(call.out));
  if (wide) forward<4, T>(call, cuda);
  else forward<1, T>(call, cuda);
}

template <int kWidth, class T>
void backward(const EmbedGatherBackwardCall& call, const CudaCall& cuda) {
  const EmbedGatherShape shape = shape_of(call);
  const T* grad = static_cast<const T*>(call.grad);
  const int64_t slices = cuda_blocks(shape.width, 32 * kWidth);
  if (call.d_map != nullptr) {
    cuda.launch(map_sums_kernel<kWidth, T>, cuda_blocks(call.map_tiles * number_groups(shape), kWarps), slices, kBlock,
                shape, call.clips, call.visible, grad, call.partial);
    sum_rows(cuda, call.partial, call.map_tiles, (shape.numbers() + int64_t(1)) * shape.width, call.d_map);
  }
  if (call.d_positions == nullptr && call.d_clips == nullptr) return;
  const int32_t* places = nullptr;
  if (!embed_gather_takes_all(shape, call.visible)) {
    cuda.fill(call.places, 0xFF, shape.tokens() * shape.tracks * int64_t(sizeof(int32_t)));  // -1: not there
    cuda.launch(place_kernel, cuda_blocks(shape.rows(), 32 * kWarps), 1, kBlock, shape, call.visible, call.places);
    places = call.places;
  }
  if (call.d_positions != nullptr)
    cuda.launch(position_sums_kernel<kWidth, T>, cuda_blocks(shape.tokens(), kWarps), slices, kBlock, shape, grad,
                places, call.d_positions);
  if (call.d_clips != nullptr)
    cuda.launch(clip_gradient_kernel<kWidth, T>, cuda_blocks(shape.tracks * shape.tokens(), kWarps), 1, kBlock, shape,
                grad, call.weight_t, places, call.d_clips);
}

template <class T>
void backward_of(const EmbedGatherBackwardCall& call, const CudaCall& cuda) {
  const bool wide = packs_fit<4>(call.width, static_cast<const T*>(call.grad), call.weight_t, call.d_positions,
                                 call.partial);
  if (wide) backward<4, T>(call, cuda);
  else backward<1, T>(call, cuda);
}

}  // namespace

void embed_gather_cuda(const EmbedGatherCall& call, const CudaTarget& target) {
  const CudaCall cuda("embed_gather", target);
  if (call.itemsize == 4) forward_of<float>(call, cuda);
  else forward_of<Bf16>(call, cuda);
}

void embed_gather_backward_cuda(const EmbedGatherBackwardCall& call, const CudaTarget& target) {
  const CudaCall cuda("embed_gather_backward", target);
  if (call.itemsize == 4) backward_of<float>(call, cuda);
  else backward_of<Bf16>(call, cuda);
}

}  // namespace s2v
