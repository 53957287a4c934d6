// The matrix units (sm_80 and newer) as kernels use them: mma.sync.m16n8k16, ldmatrix, and cp.async into tiles of
// shared memory, for 2-byte numbers with float32 accumulators.
//
// A fragment is a part of a matrix spread over the lanes of a warp. With g = lane / 4 and t = lane % 4 a lane holds of
//   A [16, 16], four registers of two numbers: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with its right
//     neighbour;
//   B [16, 8], two registers: (2t, g) and (2t + 8, g), each with its neighbour below;
//   C [16, 8], four floats: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
// So two fragments C side by side, rounded and packed, are a fragment A: the result of one product goes into the next
// without leaving its lane.
#pragma once

#include "pack.cuh"

namespace s2v {

constexpr int kFragmentRows = 16;

// Numbers between the starts of two rows of a tile. A row is an odd number of 16-byte pieces, so the eight rows that
// ldmatrix reads at a time begin in eight different groups of banks.
S2V_HD constexpr int tile_stride(int columns) { return columns + 8; }

constexpr bool tile_without_bank_conflicts(int columns) {
  const int pieces = tile_stride(columns) / 8;
  unsigned groups = 0;
  for (int row = 0; row < 8; ++row) groups |= 1u << (row * pieces % 8);
  return tile_stride(columns) % 8 == 0 && groups == 0xFFu;
}
static_assert(tile_without_bank_conflicts(32) && tile_without_bank_conflicts(64) && tile_without_bank_conflicts(96) &&
                  tile_without_bank_conflicts(128) && tile_without_bank_conflicts(256),
              "eight rows of a tile in eight groups of banks");

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return uint32_t(__cvta_generic_to_shared(address));
}

template <class T>
__device__ __forceinline__ constexpr uint32_t bytes(int numbers) {
  return uint32_t(numbers * int(sizeof(T)));
}

// threadIdx.x, read at each call: what is computed from it occupies no registers between two calls.
__device__ __forceinline__ int thread_index() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// 16 bytes from global to shared memory, without waiting. Out of range nothing is read and zeros are written.
__device__ __forceinline__ void copy_piece(void* to, const void* from, bool in_range) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(in_range ? 16 : 0)
               : "memory");
}

// Afterwards this thread's copies have arrived; those of other threads after a barrier.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

// Copies a tile of 16 * kFragments rows for each warp of a block of `threads` threads. Its rows lie kStride numbers
// apart; rows from `rows` on and columns from `columns` on are zeros.
template <int kColumns, int kStride, int kFragments, class T>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, int32_t stride, int rows, int columns, int threads) {
  constexpr int kPieces = kColumns / 8;
  const int thread = thread_index(), column = thread % kPieces * 8, step = threads / kPieces;
  int row = thread / kPieces;
  tile += row * kStride + column;
  from += int64_t(row) * stride + column;
#pragma unroll
  for (int i = 0; i < kFragments * kPieces / 2; ++i) {
    copy_piece(tile, from, row < rows && column < columns);
    row += step;
    tile += step * kStride;
    from += step * stride;
  }
}

// Where the row begins that this lane names to ldmatrix, which reads four parts of 8 x 8 numbers. For a fragment A the
// parts go down first; for two fragments B, whose columns are the tile's rows, across first. Read transposed it is the
// other way round: a_offset for two fragments B, whose rows are the tile's, b_offset for a fragment A.
__device__ __forceinline__ int a_offset(int stride) {
  const int lane = thread_index() % 32;
  return lane % 16 * stride + lane / 16 * 8;
}
__device__ __forceinline__ int b_offset(int stride) {
  const int lane = thread_index() % 32;
  return (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
}

__device__ __forceinline__ void load_matrix(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// c += a * b; the first argument says of which numbers a and b are.
__device__ __forceinline__ void multiply(Bf16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(Half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for what one ldmatrix reads: two fragments B side by side, hence two of C.
template <class T>
__device__ __forceinline__ void multiply_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
  multiply(T{}, left, a, b[0], b[1]);
  multiply(T{}, right, a, b[2], b[3]);
}

// Two numbers in one register, the first in its lower half.
__device__ __forceinline__ uint32_t pack_pair(Bf16, float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
__device__ __forceinline__ uint32_t pack_pair(Half, float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// Two fragments C side by side as a fragment A.
template <class T>
__device__ __forceinline__ void pack_fragment(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack_pair(T{}, left[0], left[1]);
  a[1] = pack_pair(T{}, left[2], left[3]);
  a[2] = pack_pair(T{}, right[0], right[1]);
  a[3] = pack_pair(T{}, right[2], right[3]);
}

// 2 ** x on the special function units: relative error 2 ** -22, and 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Writes 16 rows of a warp's fragments C, rows g times `upper` and rows g + 8 times `lower`, to global memory: the
// first `rows` of them and `columns` numbers of each. They go through 16 rows of a tile that no other warp uses
// meanwhile, so that every access to global memory has 16 bytes.
template <int kColumns, int kStride, class T>
__device__ __forceinline__ void store_rows(T* tile, const float (&c)[kColumns / 8][4], float upper, float lower, T* to,
                                           int32_t stride, int rows, int columns) {
  constexpr int kPieces = kColumns / 8;
  const int lane = thread_index() % 32;
  uint32_t* const pairs = reinterpret_cast<uint32_t*>(tile + lane / 4 * kStride + lane % 4 * 2);
  __syncwarp();  // every lane has read what the tile held
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    pairs[n * 4] = pack_pair(T{}, c[n][0] * upper, c[n][1] * upper);
    pairs[n * 4 + 4 * kStride] = pack_pair(T{}, c[n][2] * lower, c[n][3] * lower);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPieces / 2; ++i) {
    const int row = (i * 32 + lane) / kPieces, column = lane % kPieces * 8;
    if (row < rows && column < columns)
      *reinterpret_cast<uint4*>(to + int64_t(row) * stride + column) =
          *reinterpret_cast<const uint4*>(tile + row * kStride + column);
  }
}

#endif

}  // namespace s2v
