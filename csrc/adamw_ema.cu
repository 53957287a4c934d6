// adamw_ema on a GPU, in two launches: partial sums of squares; then every block adds these up in one order, all to the
// same bits, and updates its share. Whether anything changes is decided on the device.
#include "adamw_ema.cuh"
#include "adamw_ema.h"

namespace s2v {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRange = 4 * 4 * kThreads;  // numbers of a block at a time
const dim3 kBlock(kThreads);

// Over all threads of the block, in one order; every thread gets it.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double sums[kThreads / 32];
#pragma unroll
  for (int apart = 16; apart >= 1; apart /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, apart);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp];
  return total;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* __restrict__ grad, int64_t numel, double* __restrict__ partial) {
  const int64_t numbers = adamw_ema_partial_numbers(numel), begin = blockIdx.x * numbers;
  const int64_t end = begin + numbers < numel ? begin + numbers : numel;
  const double sum = block_sum(adamw_ema_squares<kWidth, 1>(grad, begin, end, int32_t(threadIdx.x), kThreads));
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    update_kernel(AdamwEmaBuffers buffers, AdamwEmaNumbers numbers, AdamwEmaOptions options,
                  const double* __restrict__ partial, int64_t partials, float* __restrict__ norm) {
  __shared__ AdamwEmaFactors factors;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < partials; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    const float found = adamw_ema_norm(sum);
    factors = adamw_ema_factors(found, numbers, options);
    if (blockIdx.x == 0) *norm = found;
  }
  __syncthreads();
  for (int64_t begin = blockIdx.x * kRange; begin < buffers.numel; begin += gridDim.x * kRange) {
    const int64_t end = begin + kRange < buffers.numel ? begin + kRange : buffers.numel;
    adamw_ema_item<kWidth>(factors, buffers, begin, end, int32_t(threadIdx.x), kThreads);
  }
}

template <int kWidth>
void run(const AdamwEmaCall& call, const CudaCall& cuda) {
  const AdamwEmaBuffers buffers = {call.param, call.grad, call.exp_avg, call.exp_avg_sq, call.teacher, call.numel,
                                   call.teacher_numel, call.spans, call.span_count};
  const AdamwEmaNumbers numbers = {{call.step_at, call.step}, {call.lr_at, call.lr}, {call.tau_at, call.tau}};
  const AdamwEmaOptions options = {call.beta1, call.beta2, call.eps, call.weight_decay, call.clip};
  const int64_t partials = adamw_ema_partials(call.numel);
  cuda.launch(squares_kernel<kWidth>, partials, 1, kBlock, call.grad, call.numel, call.partial);
  // As many blocks as run at once; with no parameters one, for the norm.
  const int64_t ranges = cuda_blocks(call.numel, kRange), most = 8 * int64_t(cuda.multiprocessors());
  cuda.launch(update_kernel<kWidth>, ranges < 1 ? 1 : ranges < most ? ranges : most, 1, kBlock, buffers, numbers,
              options, call.partial, partials, call.norm);
}

}  // namespace

void adamw_ema_cuda(const AdamwEmaCall& call, const CudaTarget& target) {
  const CudaCall cuda("adamw_ema", target);
  if (packs_fit<4>(0, call.param, call.grad, call.exp_avg, call.exp_avg_sq, call.teacher)) run<4>(call, cuda);
  else run<1>(call, cuda);
}

}  // namespace s2v
