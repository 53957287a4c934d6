// What rows of numbers are worked on with, on the host and on the device: a few neighbouring columns at a time.
// A sum over rows is always made in one order, so results depend on sizes alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE__) && defined(__has_builtin) && !defined(__CUDACC__)
#if __has_builtin(__builtin_shufflevector)
#include <xmmintrin.h>
#define S2V_SSE_ROOTS
#endif
#endif

#include "cuda_launch.h"
#include "philox.cuh"  // S2V_HD

// On the host, one copy of a function for each instruction set, chosen when the library is loaded. No fused
// multiply-add is made in any of them (-ffp-contract=off), so all give the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define S2V_CLONES __attribute__((target_clones("avx2", "default"), flatten))
#else
#define S2V_CLONES
#endif

namespace s2v {

// A bfloat16, the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

S2V_HD float widen(float value) { return value; }
S2V_HD float widen(Bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

S2V_HD void narrow(float value, float& out) { out = value; }
// To the nearest, ties to even, as PyTorch does; a NaN stays one.
S2V_HD void narrow(float value, Bf16& out) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = 0u - uint32_t((bits & 0x7FFFFFFFu) > 0x7F800000u);  // all bits or none: no branch
  out.bits = uint16_t((rounded & ~nan) | (0x7FC0u & nan));
}

// A float16.
struct Half {
  uint16_t bits;
};

// Exact for all numbers; infinities and NaNs stay such.
S2V_HD float widen(Half value) {
  const uint32_t magnitude = uint32_t(value.bits & 0x7FFFu) << 13;
  const uint32_t bias = 0x77800000u;  // 2 ** 112: the difference of the exponents' biases
  float number, scale;
  memcpy(&number, &magnitude, sizeof number);
  memcpy(&scale, &bias, sizeof scale);
  number *= scale;
  uint32_t bits;
  memcpy(&bits, &number, sizeof bits);
  bits |= (magnitude >= (0x7C00u << 13) ? 0x7F800000u : 0u) | (uint32_t(value.bits & 0x8000u) << 16);
  memcpy(&number, &bits, sizeof number);
  return number;
}

// kWidth neighbouring numbers in float: a vector register on the host, registers of a lane on the device.
template <int kWidth>
struct Pack {
#if defined(__CUDACC__)
  float at[kWidth];
#else
  typedef float Vector __attribute__((vector_size(4 * kWidth)));
  typedef float InMemory __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
  Vector at;
#endif
};

#if defined(__CUDACC__)
#define S2V_PACK(operation)                                                       \
  Pack<kWidth> out;                                                               \
  for (int i = 0; i < kWidth; ++i) out.at[i] = x.at[i] operation y.at[i];         \
  return out
#else
#define S2V_PACK(operation) return {x.at operation y.at}
#endif
template <int kWidth>
S2V_HD Pack<kWidth> operator+(const Pack<kWidth>& x, const Pack<kWidth>& y) { S2V_PACK(+); }
template <int kWidth>
S2V_HD Pack<kWidth> operator-(const Pack<kWidth>& x, const Pack<kWidth>& y) { S2V_PACK(-); }
template <int kWidth>
S2V_HD Pack<kWidth> operator*(const Pack<kWidth>& x, const Pack<kWidth>& y) { S2V_PACK(*); }
template <int kWidth>
S2V_HD Pack<kWidth> operator/(const Pack<kWidth>& x, const Pack<kWidth>& y) { S2V_PACK(/); }
#undef S2V_PACK

template <int kWidth>
S2V_HD Pack<kWidth> operator*(const Pack<kWidth>& x, float factor) {
#if defined(__CUDACC__)
  Pack<kWidth> out;
  for (int i = 0; i < kWidth; ++i) out.at[i] = x.at[i] * factor;
  return out;
#else
  return {x.at * factor};
#endif
}

template <int kWidth>
S2V_HD Pack<kWidth> operator+(const Pack<kWidth>& x, float shift) {
#if defined(__CUDACC__)
  Pack<kWidth> out;
  for (int i = 0; i < kWidth; ++i) out.at[i] = x.at[i] + shift;
  return out;
#else
  return {x.at + shift};
#endif
}

// Square roots, correctly rounded.
template <int kWidth>
S2V_HD Pack<kWidth> roots(const Pack<kWidth>& x) {
  float numbers[kWidth];
  memcpy(numbers, &x.at, sizeof numbers);
  for (int i = 0; i < kWidth; ++i) numbers[i] = sqrtf(numbers[i]);
  Pack<kWidth> out;
  memcpy(&out.at, numbers, sizeof numbers);
  return out;
}
#if defined(S2V_SSE_ROOTS)
// A call of sqrtf, which may set errno, would not become a vector.
template <>
S2V_HD Pack<8> roots(const Pack<8>& x) {
  const __m128 low = _mm_sqrt_ps(__builtin_shufflevector(x.at, x.at, 0, 1, 2, 3));
  const __m128 high = _mm_sqrt_ps(__builtin_shufflevector(x.at, x.at, 4, 5, 6, 7));
  return {__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7)};
}
#endif

// The numbers of a pack added up, neighbours first: the same tree everywhere.
template <int kWidth>
S2V_HD float total(const Pack<kWidth>& x) {
  float sums[kWidth];
  memcpy(sums, &x.at, sizeof sums);
  for (int left = kWidth / 2; left >= 1; left /= 2)
    for (int i = 0; i < left; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  return sums[0];
}

// How a pack lies in memory. On the device one access reads or writes all of it, so addresses must be aligned to it.
template <int kWidth, class T>
#if defined(__CUDACC__)
struct alignas(kWidth * sizeof(T)) Stored {
#else
struct Stored {
#endif
  T at[kWidth];
};

template <int kWidth, class T>
S2V_HD Pack<kWidth> load(const T* from) {
#if defined(__CUDACC__)
  const Stored<kWidth, T> stored = *reinterpret_cast<const Stored<kWidth, T>*>(from);
#else
  Stored<kWidth, T> stored;
  memcpy(&stored, from, sizeof stored);
#endif
  float wide[kWidth];
  for (int i = 0; i < kWidth; ++i) wide[i] = widen(stored.at[i]);
  Pack<kWidth> pack;
  memcpy(&pack.at, wide, sizeof wide);
  return pack;
}

template <int kWidth, class T>
S2V_HD void store(T* to, const Pack<kWidth>& pack) {
  float wide[kWidth];
  memcpy(wide, &pack.at, sizeof wide);
  Stored<kWidth, T> stored;
  for (int i = 0; i < kWidth; ++i) narrow(wide[i], stored.at[i]);
#if defined(__CUDACC__)
  *reinterpret_cast<Stored<kWidth, T>*>(to) = stored;
#else
  memcpy(to, &stored, sizeof stored);
#endif
}

#if !defined(__CUDACC__)
// A float needs no conversion: whole registers.
template <int kWidth>
S2V_HD Pack<kWidth> load(const float* from) {
  return {*reinterpret_cast<const typename Pack<kWidth>::InMemory*>(from)};
}
template <int kWidth>
S2V_HD void store(float* to, const Pack<kWidth>& pack) {
  *reinterpret_cast<typename Pack<kWidth>::InMemory*>(to) = pack.at;
}
#endif

// A number of lanes that is known when a function is built.
template <int kCount>
using LaneCount = std::integral_constant<int, kCount>;

// Calls each(at, LaneCount<lanes>(), LaneCount<packs>()) for kPacks packs of kLanes numbers at a time from at on, and for
// fewer and narrower ones that remain.
template <int kLanes, int kPacks, class Each>
S2V_HD void each_packs(int64_t at, int64_t end, const Each& each) {
  for (; at + kPacks * kLanes <= end; at += kPacks * kLanes) each(at, LaneCount<kLanes>(), LaneCount<kPacks>());
  if constexpr (kPacks > 1) each_packs<kLanes, kPacks / 2>(at, end, each);
  else if constexpr (kLanes > 4) each_packs<kLanes / 2, 1>(at, end, each);
  else if constexpr (kLanes > 1) each_packs<1, 1>(at, end, each);
}

// The same for one at a time: each(at, LaneCount<lanes>()).
template <int kLanes, class Each>
S2V_HD void each_pack(int64_t at, int64_t end, const Each& each) {
  each_packs<kLanes, 1>(at, end, [&](int64_t first, auto lanes, auto) { each(first, lanes); });
}

// Who works on an item: rows are shared out over row() of rows(), a row's columns over first() of step().
struct HostLane {
  S2V_HD int32_t row() const { return 0; }
  S2V_HD int32_t rows() const { return 1; }
  S2V_HD int32_t first() const { return 0; }
  S2V_HD int32_t step() const { return 1; }
  S2V_HD void sync() const {}
  S2V_HD float sum(float value) const { return value; }
};

#if defined(__CUDACC__)
// A block whose warps are the rows; blocks along y share out the columns.
struct BlockLanes {
  __device__ __forceinline__ int32_t row() const { return int32_t(threadIdx.y); }
  __device__ __forceinline__ int32_t rows() const { return int32_t(blockDim.y); }
  __device__ __forceinline__ int32_t first() const { return int32_t(blockIdx.y * 32 + threadIdx.x); }
  __device__ __forceinline__ int32_t step() const { return int32_t(gridDim.y * 32); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  // Over the lanes of a warp; every lane gets it.
  __device__ __forceinline__ float sum(float value) const {
#pragma unroll
    for (int apart = 16; apart >= 1; apart /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, apart);
    return value;
  }
};

// One warp that does all rows.
struct WarpLanes : BlockLanes {
  __device__ __forceinline__ int32_t row() const { return 0; }
  __device__ __forceinline__ int32_t rows() const { return 1; }
};
#endif

// out[c - begin] = sum of partial[r][c] over rows r = row(), row() + rows(), ... in that order, columns [begin, end).
template <int kWidth, class Lanes>
S2V_HD void sum_rows_item(const float* __restrict__ partial, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                          float* __restrict__ out, const Lanes& lanes) {
  for (int64_t c = begin + lanes.first() * kWidth; c < end; c += lanes.step() * kWidth) {
    Pack<kWidth> sum = {};
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (int64_t r = lanes.row(); r < rows; r += lanes.rows()) sum = sum + load<kWidth>(partial + r * columns + c);
    store<kWidth>(out + (c - begin), sum);
  }
}

#if defined(__CUDACC__)
constexpr int kSumWarps = 32;

// out[c] = sum of partial[r][c] over all rows. A block takes 32 packs of columns: each of its warps every 32nd row,
// then one of them the warps' sums.
template <int kWidth>
__global__ void __launch_bounds__(32 * kSumWarps)
    sum_rows_kernel(const float* __restrict__ partial, int64_t rows, int64_t columns, float* __restrict__ out) {
  alignas(16) __shared__ float sums[kSumWarps][32 * kWidth];
  const int64_t begin = int64_t(blockIdx.x) * 32 * kWidth, width = 32 * kWidth;
  const int64_t count = columns - begin < width ? columns - begin : width;
  sum_rows_item<kWidth>(partial, rows, columns, begin, begin + count, sums[threadIdx.y], BlockLanes());
  __syncthreads();
  if (threadIdx.y == 0) sum_rows_item<kWidth>(sums[0], kSumWarps, width, 0, count, out + begin, WarpLanes());
}

// Whether packs of kWidth numbers can be read from all of these addresses, whose rows are `columns` numbers apart.
template <int kWidth, class... T>
bool packs_fit(int64_t columns, const T*... addresses) {
  return columns % kWidth == 0 && ((reinterpret_cast<uintptr_t>(addresses) % (kWidth * sizeof(T)) == 0) && ...);
}

inline int64_t cuda_blocks(int64_t items, int64_t a_block) { return (items + a_block - 1) / a_block; }

// out [columns] = the sum of partial [rows, columns] over its rows.
inline void sum_rows(const CudaCall& cuda, const float* partial, int64_t rows, int64_t columns, float* out) {
  const dim3 block(32, kSumWarps);
  if (packs_fit<4>(columns, partial, out))
    cuda.launch(sum_rows_kernel<4>, cuda_blocks(columns, 32 * 4), 1, block, partial, rows, columns, out);
  else
    cuda.launch(sum_rows_kernel<1>, cuda_blocks(columns, 32), 1, block, partial, rows, columns, out);
}
#endif

}  // namespace s2v
