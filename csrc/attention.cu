// Flash attention on a GPU (Dao et al., 2022 and 2023), straight from packed queries, keys and values. Scores never
// leave the chip, statistics and sums are float32, and nothing is added atomically: the bits are the same every time.
//
// What bounds a kernel is said by a model, as no GPU has run them. In it a multiprocessor of an H200 does in a cycle 16
// exponentials, 2,600 operations by mma.sync (4,096 by wgmma, which sm_80 lacks), 128 bytes of shared memory and 23
// bytes of the second-level cache.
#include "attention.cuh"

#include <cmath>
#include <initializer_list>
#include <type_traits>

namespace s2v {
namespace {

constexpr int kForwardWarps = 4, kForwardThreads = 32 * kForwardWarps;
constexpr int kForwardN = kFragmentRows * kForwardWarps;  // keys of a tile: 64

template <int kFragments>
constexpr int kForwardM = kFragmentRows * kForwardWarps * kFragments;  // queries of a block

// A block owns a tile of queries of one head; it goes through all keys in tiles of 64 and copies the next tile while it
// works on one. A warp's queries stay in registers, as do scores, probabilities and accumulators. A score costs one
// exponential and one multiply-add before it, which applies scale and log2(e) and subtracts the maximum. Only the last
// tile is masked.
//
// Bound: 256 scores take 16 cycles of the special function units and 0.4 d cycles of the matrix units. At d = 32 the
// exponentials bind, from d = 64 on the matrix units.
template <class T, int kColumns, int kFragments>
__global__ void __launch_bounds__(kForwardThreads)
    attention_forward_kernel(AttentionShape shape, const T* __restrict__ qkv, T* __restrict__ out,
                             float* __restrict__ lse) {
  constexpr int kStride = tile_stride(kColumns), kBlockM = kForwardM<kFragments>, kTile = kForwardN * kStride;
  extern __shared__ uint4 attention_shared[];
  T* const q_tile = reinterpret_cast<T*>(attention_shared);  // [kBlockM][kStride]
  T* const k_tiles = q_tile + kBlockM * kStride;             // [2][kForwardN][kStride]
  T* const v_tiles = k_tiles + 2 * kTile;                    // the same

  const int query_tiles = (shape.tokens + kBlockM - 1) / kBlockM;
  const int64_t batch_head = blockIdx.x / query_tiles, first_token = batch_head / shape.heads * shape.tokens;
  const int query_start = int(blockIdx.x % query_tiles) * kBlockM;
  const int32_t row = shape.row(), column = int32_t(batch_head % shape.heads) * shape.width;
  const T* const q_ptr = qkv + first_token * 3 * row + column;
  const auto copy_keys = [&](int tile) {
    const int start = tile * kForwardN, rows = shape.tokens - start, offset = tile % 2 * kTile;
    const T* const start_ptr = q_ptr + int64_t(start) * 3 * row;
    copy_tile<kColumns, kStride, 1>(k_tiles + offset, start_ptr + row, 3 * row, rows, shape.width, kForwardThreads);
    copy_tile<kColumns, kStride, 1>(v_tiles + offset, start_ptr + 2 * row, 3 * row, rows, shape.width, kForwardThreads);
  };

  const int warp_row = int(threadIdx.x) / 32 * kFragmentRows * kFragments;
  const int queries = shape.tokens - query_start - warp_row;  // that exist, of this warp and beyond
  copy_tile<kColumns, kStride, kFragments>(q_tile, q_ptr + int64_t(query_start) * 3 * row, 3 * row,
                                           shape.tokens - query_start, shape.width, kForwardThreads);
  copy_keys(0);
  wait_for_copies();
  __syncthreads();

  AttentionQueries<T, kColumns, kFragments, kForwardN> warp_queries(q_tile + warp_row * kStride);
  const uint32_t key_address = shared_address(k_tiles + b_offset(kStride));
  const uint32_t value_address = shared_address(v_tiles + a_offset(kStride));
  const float scale_log2 = shape.scale * kLog2E;

  const int key_tiles = (shape.tokens + kForwardN - 1) / kForwardN;
  for (int tile = 0; tile < key_tiles; ++tile) {
    if (tile + 1 < key_tiles) copy_keys(tile + 1);
    const uint32_t offset = bytes<T>(tile % 2 * kTile);
    if (queries > 0)
      warp_queries.attend(key_address + offset, value_address + offset, shape.tokens - tile * kForwardN, scale_log2);
    wait_for_copies();
    __syncthreads();
  }

  if (queries <= 0) return;
  const int lane = thread_index() % 32;
  float* const lse_ptr = lse + batch_head * shape.tokens + query_start + warp_row;
  T* const out_ptr = out + (first_token + query_start + warp_row) * row + column;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float l_i = warp_queries.l_i[f][h];
      l_i += __shfl_xor_sync(0xFFFFFFFFu, l_i, 1);
      l_i += __shfl_xor_sync(0xFFFFFFFFu, l_i, 2);
      inverse[h] = 1.0f / l_i;
      const int query = f * kFragmentRows + h * 8 + lane / 4;
      if (lane % 4 == 0 && query < queries)
        lse_ptr[query] = (warp_queries.m_i[f][h] * scale_log2 + __log2f(l_i)) * kLn2;
    }
    store_rows<kColumns, kStride>(q_tile + (warp_row + f * kFragmentRows) * kStride, warp_queries.acc[f], inverse[0],
                                  inverse[1], out_ptr + f * kFragmentRows * int64_t(row), row,
                                  queries - f * kFragmentRows, shape.width);
  }
}

// What each query of a head needs in the backward pass: its log-sum-exp, negative and in base 2, and delta, the dot
// product of out and grad_out less the gradient of the log-sum-exp. A query that does not exist attends to nothing.
template <int kColumns, class T>
__device__ __forceinline__ void write_stats(float* stats, int padded_tokens, const AttentionShape& shape, const T* out,
                                            const T* grad_out, const float* lse, const float* grad_lse) {
  constexpr int kPieces = kColumns / 8;
  const int column = int(threadIdx.x) % kPieces * 8;
  for (int query = int(threadIdx.x) / kPieces; query < padded_tokens; query += int(blockDim.x) / kPieces) {
    const int64_t offset = int64_t(query) * shape.row() + column;
    const bool exists = query < shape.tokens;
    float delta = exists && column < shape.width ? dot_piece(out + offset, grad_out + offset) : 0.0f;
#pragma unroll
    for (int apart = kPieces / 2; apart >= 1; apart /= 2) delta += __shfl_xor_sync(0xFFFFFFFFu, delta, apart);
    if (column == 0) {
      if (exists && grad_lse != nullptr) delta -= grad_lse[query];
      stats[query] = exists ? lse[query] * -kLog2E : -kInfinity;
      stats[padded_tokens + query] = delta;
    }
  }
}

// All gradients in one pass: five products and one exponential a score. A block takes a head of a track and goes
// through tiles of keys and, for each, through all tiles of queries, whose copy runs one ahead.
//   A warp owns keys. For 16 queries at a time it makes their scores and probabilities, adds to the gradients of its
// keys and values in registers, and writes the scores' gradient to shared memory.
//   From there each warp takes 16 queries with all keys of the tile and adds to the queries' gradient, a float32 buffer
// that is the block's alone: a thread reads what it wrote itself. The last tile of keys writes the result instead, so
// tokens that fit in one tile need no buffer. Only the last tile of keys is masked.
//   Then the block takes another head with the same buffer; the buffers of all blocks stay in the second-level cache.
//
// Bound: 256 scores take 16 cycles of the special function units and d cycles of the matrix units. At d = 32 and 768
// tokens, with 192 keys a tile, the emulator counts for them 38 passes through shared memory (queries and grad_out for
// each warp, the scores' gradient there and back, keys once more) and 600 bytes of the second-level cache: 38 cycles of
// shared memory, 32 of the matrix units, 26 of the cache. Shared memory binds, the matrix units nearly. Wider heads
// have at most 128 keys a tile, and the cache binds. With fewer heads in all tracks than multiprocessors some of these
// stay idle.
template <class T, int kColumns>
__global__ void __launch_bounds__(32 * attention_limits(kColumns).warps, attention_limits(kColumns).blocks)
    attention_backward_kernel(AttentionShape shape, AttentionPlan plan, const T* __restrict__ qkv,
                              const T* __restrict__ out, const float* __restrict__ lse, const T* __restrict__ grad_out,
                              const float* __restrict__ grad_lse, float* workspace, T* __restrict__ grad_qkv) {
  using Keys = AttentionKeys<T, kColumns>;
  constexpr int kStride = tile_stride(kColumns), kQueryStride = tile_stride(2 * kColumns);
  constexpr int kFragments = Keys::kFragments;
  extern __shared__ uint4 attention_shared[];
  T* const k_tile = reinterpret_cast<T*>(attention_shared);
  T* const q_tiles = k_tile + plan.query_offset();
  float* const stat_tiles = reinterpret_cast<float*>(k_tile + plan.stats_offset());
  T* const score_tile = k_tile + plan.score_offset();
  T* const v_tile = k_tile + plan.value_offset();

  const int threads = int(blockDim.x), warps = threads / 32, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int block_m = plan.block_m(), query_tiles = plan.query_tiles(), key_tiles = plan.key_tiles();
  const int warp_key = warp * kFragmentRows * kFragments, warp_query = warp * kFragmentRows;
  const int32_t row = shape.row(), padded_tokens = plan.padded_tokens();
  float* const stats = workspace + blockIdx.x * plan.workspace_floats();          // [2][padded_tokens]
  float4* const grad_q_buffer = reinterpret_cast<float4*>(stats + 2 * padded_tokens);  // in order of use
  const float scale_log2 = shape.scale * kLog2E;

  for (int batch_head = int(blockIdx.x); batch_head < shape.batch_heads(); batch_head += int(gridDim.x)) {
    const int64_t first_token = int64_t(batch_head / shape.heads) * shape.tokens;
    const int64_t first_stat = int64_t(batch_head) * shape.tokens;
    const int32_t column = batch_head % shape.heads * shape.width;
    const T* const q_ptr = qkv + first_token * 3 * row + column;
    T* const grad_q_ptr = grad_qkv + first_token * 3 * row + column;
    const T* const grad_out_ptr = grad_out + first_token * row + column;
    const auto copy_queries = [&](int tile, int buffer) {
      const int start = tile * block_m, rows = shape.tokens - start;
      T* const q_tile = q_tiles + buffer * plan.query_tile();
      copy_tile<kColumns, kQueryStride, 1>(q_tile, q_ptr + int64_t(start) * 3 * row, 3 * row, rows, shape.width,
                                           threads);
      copy_tile<kColumns, kQueryStride, 1>(q_tile + kColumns, grad_out_ptr + int64_t(start) * row, row, rows,
                                           shape.width, threads);
      for (int piece = thread_index(); piece < block_m / 2; piece += threads) {
        const int kind = piece / (block_m / 4), query = piece % (block_m / 4) * 4;
        copy_piece(stat_tiles + (buffer * 2 + kind) * block_m + query, stats + kind * padded_tokens + start + query,
                   true);
      }
    };

    write_stats<kColumns>(stats, padded_tokens, shape, out + first_token * row + column, grad_out_ptr, lse + first_stat,
                          grad_lse == nullptr ? nullptr : grad_lse + first_stat);
    __syncthreads();
    int buffer = 0;
    copy_queries(0, buffer);

    for (int key_tile = 0; key_tile < key_tiles; ++key_tile) {
      const int key_start = key_tile * plan.block_n();
      const int keys = min(shape.tokens - key_start, plan.block_n()), warp_keys = keys - warp_key;  // that exist
      const T* const k_ptr = q_ptr + int64_t(key_start) * 3 * row + row;
      copy_tile<kColumns, kStride, kFragments>(k_tile, k_ptr, 3 * row, keys, shape.width, threads);
      copy_tile<kColumns, kStride, kFragments>(v_tile, k_ptr + row, 3 * row, keys, shape.width, threads);
      wait_for_copies();
      __syncthreads();
      Keys key_rows(k_tile + warp_key * kStride, v_tile + warp_key * kStride);
      if constexpr (Keys::kInRegisters) __syncthreads();  // values lie where scores are written

      for (int query_tile = 0; query_tile < query_tiles; ++query_tile) {
        const int query_start = query_tile * block_m;
        T* const q_tile = q_tiles + buffer * plan.query_tile();
        const bool last = query_tile + 1 == query_tiles;
        if (!last || key_tile + 1 < key_tiles) copy_queries(last ? 0 : query_tile + 1, buffer ^ 1);

        if (warp_keys > 0) {
          const int steps = (min(shape.tokens - query_start, block_m) + 15) / 16;
          const float* lse_ptr = stat_tiles + buffer * 2 * block_m + lane % 4 * 2;
          uint32_t b_address = shared_address(q_tile + b_offset(kQueryStride));
          uint32_t a_address = shared_address(q_tile + a_offset(kQueryStride));
          T* grad_score = score_tile + (warp_key + lane / 4) * Keys::kScoreStride + lane % 4 * 2;
#pragma unroll 1
          for (int step = 0; step < steps; ++step) {
            key_rows.attend(b_address, a_address, lse_ptr, lse_ptr + block_m, grad_score, keys == plan.block_n(),
                            warp_keys, scale_log2);
            b_address += bytes<T>(16 * kQueryStride);
            a_address += bytes<T>(16 * kQueryStride);
            lse_ptr += 16;
            grad_score += 16;
          }
        }

        const int queries = shape.tokens - query_start - warp_query;  // that exist, of this warp and beyond
        float4* const buffer_ptr =
            grad_q_buffer + (query_tile * warps + warp) * (kColumns / 8) * 32 + thread_index() % 32;
        float grad_q[kColumns / 8][4] = {};
        if (key_tile > 0 && queries > 0) {  // arrives while other warps finish
#pragma unroll
          for (int n = 0; n < kColumns / 8; ++n) {
            const float4 sum = buffer_ptr[n * 32];
            grad_q[n][0] = sum.x;
            grad_q[n][1] = sum.y;
            grad_q[n][2] = sum.z;
            grad_q[n][3] = sum.w;
          }
        }
        __syncthreads();
        if (queries > 0) {
          uint32_t a_address = shared_address(score_tile + b_offset(Keys::kScoreStride) + warp_query);
          uint32_t b_address = shared_address(k_tile + a_offset(kStride));
#pragma unroll 1
          for (int key = 0; key < keys; key += 16) {
            uint32_t a[4];
            load_matrix_transposed(a, a_address);
#pragma unroll
            for (int n = 0; n < kColumns / 16; ++n) {
              uint32_t b[4];
              load_matrix_transposed(b, b_address + bytes<T>(n * 16));
              multiply_pair<T>(grad_q[2 * n], grad_q[2 * n + 1], a, b);
            }
            a_address += bytes<T>(16 * Keys::kScoreStride);
            b_address += bytes<T>(16 * kStride);
          }
          if (key_tile + 1 < key_tiles) {
#pragma unroll
            for (int n = 0; n < kColumns / 8; ++n)
              buffer_ptr[n * 32] = make_float4(grad_q[n][0], grad_q[n][1], grad_q[n][2], grad_q[n][3]);
          } else {
            store_rows<kColumns, kQueryStride>(q_tile + warp_query * kQueryStride, grad_q, shape.scale, shape.scale,
                                               grad_q_ptr + int64_t(query_start + warp_query) * 3 * row, 3 * row,
                                               queries, shape.width);
          }
        }
        wait_for_copies();
        __syncthreads();
        buffer ^= 1;
      }

#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const int fragment = warp_key + f * kFragmentRows, rows = keys - fragment;
        T* const grad_k_ptr = grad_q_ptr + int64_t(key_start + fragment) * 3 * row + row;
        T* const tile = k_tile + fragment * kStride;
        store_rows<kColumns, kStride>(tile, key_rows.grad_key[f], shape.scale, shape.scale, grad_k_ptr, 3 * row, rows,
                                      shape.width);
        store_rows<kColumns, kStride>(tile, key_rows.grad_value[f], 1.0f, 1.0f, grad_k_ptr + row, 3 * row, rows,
                                      shape.width);
      }
      __syncthreads();
    }
  }
}

AttentionShape shape_of(int64_t tracks, int64_t tokens, int64_t heads, int64_t width) {
  if (width < 8 || width > 128 || width % 8 != 0)
    throw std::invalid_argument("attention: expected heads at most 128 wide, a multiple of 8, got " +
                                std::to_string(width));
  if (tracks * heads > INT32_MAX / 2 || tokens > INT32_MAX / 4)
    throw std::invalid_argument("attention: too many heads or tokens for one launch");
  return {tracks, int32_t(tokens), int32_t(heads), int32_t(width), float(1.0 / std::sqrt(double(width)))};
}

void check_alignment(std::initializer_list<const void*> addresses) {
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
      throw std::invalid_argument("attention: expected every address to be a multiple of 16");
}

// run(a number of the dtype, the columns of its tiles as a type)
template <class Run>
void dispatch(bool half, int64_t width, const Run& run) {
  const auto by_columns = [&](auto number) {
    switch (attention_columns(width)) {
      case 32: return run(number, std::integral_constant<int, 32>());
      case 64: return run(number, std::integral_constant<int, 64>());
      default: return run(number, std::integral_constant<int, 128>());
    }
  };
  if (half) by_columns(Half{});
  else by_columns(Bf16{});
}

template <class T, int kColumns, int kFragments>
void forward(const AttentionCall& call, const AttentionShape& shape, const CudaCall& cuda) {
  const int64_t tiles = cuda_blocks(shape.tokens, kForwardM<kFragments>);
  const int64_t numbers = (kForwardM<kFragments> + 4 * kForwardN) * tile_stride(kColumns);
  cuda.launch_sharing(2 * numbers, attention_forward_kernel<T, kColumns, kFragments>, shape.batch_heads() * tiles, 1,
                      dim3(kForwardThreads), shape, static_cast<const T*>(call.qkv), static_cast<T*>(call.out),
                      call.lse);
}

}  // namespace

void attention_cuda(const AttentionCall& call, const CudaTarget& target) {
  const AttentionShape shape = shape_of(call.tracks, call.tokens, call.heads, call.width);
  check_alignment({call.qkv, call.out});
  const CudaCall cuda("attention", target);
  dispatch(call.half, call.width, [&](auto number, auto columns) {
    using T = decltype(number);
    // Two fragments a warp halve the reading of keys and values from shared memory; wide heads lack the registers.
    if constexpr (columns <= 64) {
      if (call.tokens > kForwardM<1>) return forward<T, columns, 2>(call, shape, cuda);
    }
    forward<T, columns, 1>(call, shape, cuda);
  });
}

AttentionWorkspace attention_backward_workspace(int64_t batch_heads, int64_t tokens, int64_t width,
                                                const CudaTarget& target) {
  const CudaCall cuda("attention_backward", target);
  const int64_t shared_limit = cuda.shared_limit();
  const AttentionPlan plan = attention_plan(tokens, width, shared_limit);
  const int64_t blocks = cuda.multiprocessors() * attention_blocks(plan, shared_limit);
  return {batch_heads < blocks ? batch_heads : blocks, plan.workspace_floats()};
}

void attention_backward_cuda(const AttentionBackwardCall& call, const CudaTarget& target) {
  const AttentionShape shape = shape_of(call.tracks, call.tokens, call.heads, call.width);
  check_alignment({call.qkv, call.out, call.grad_out, call.grad_qkv, call.workspace});
  if (call.tokens == 0) return;
  const CudaCall cuda("attention_backward", target);
  const AttentionPlan plan = attention_plan(call.tokens, call.width, cuda.shared_limit());
  dispatch(call.half, call.width, [&](auto number, auto columns) {
    using T = decltype(number);
    cuda.launch_sharing(2 * plan.shared_numbers(), attention_backward_kernel<T, columns>, call.blocks, 1,
                        dim3(32 * plan.warps), shape, plan, static_cast<const T*>(call.qkv),
                        static_cast<const T*>(call.out), call.lse, static_cast<const T*>(call.grad_out), call.grad_lse,
                        call.workspace, static_cast<T*>(call.grad_qkv));
  });
}

}  // namespace s2v
