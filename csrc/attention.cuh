// attention: how its backward pass is cut into blocks and tiles, which host and device compute alike, and what a warp
// does with one tile.
#pragma once

#include "attention.h"
#include "matrix.cuh"

namespace s2v {

struct AttentionShape {
  int64_t tracks;
  int32_t tokens, heads, width;
  float scale;  // of the scores: width ** -0.5

  S2V_HD int64_t batch_heads() const { return tracks * heads; }
  S2V_HD int32_t row() const { return heads * width; }  // numbers a token in out; qkv has three times as many
};

// Columns of the tiles for heads of this width; those beyond the width are zeros. Narrow heads have no tiles of their
// own: where the exponentials bind, products with zeros cost nothing.
S2V_HD constexpr int attention_columns(int64_t width) { return width <= 32 ? 32 : width <= 64 ? 64 : 128; }

// What the registers of a thread allow the backward pass, by the columns of its tiles.
struct AttentionLimits {
  int key_fragments;       // of a warp, 16 keys each
  int warps;               // of a block, at most
  int blocks;              // of a multiprocessor
  bool keys_in_registers;  // keys and values are read from shared memory once a tile, else once for 16 queries
};
S2V_HD constexpr AttentionLimits attention_limits(int columns) {
  return columns <= 32 ? AttentionLimits{2, 6, 2, true} : AttentionLimits{1, 8, 1, columns <= 64};
}

// Between the rows of the scores' gradient [key][query]: a constant for any number of warps, which costs no registers.
S2V_HD constexpr int attention_score_stride(int columns) {
  return tile_stride(kFragmentRows * attention_limits(columns).warps);
}

// The tiles of a block of the backward pass. Offsets are in 2-byte numbers from the start of its shared memory.
struct AttentionPlan {
  int32_t tokens, columns, warps;

  S2V_HD int32_t block_m() const { return kFragmentRows * warps; }  // queries of a tile
  S2V_HD int32_t block_n() const { return block_m() * attention_limits(columns).key_fragments; }  // keys of a tile
  S2V_HD int32_t query_tiles() const { return (tokens + block_m() - 1) / block_m(); }
  S2V_HD int32_t key_tiles() const { return (tokens + block_n() - 1) / block_n(); }

  S2V_HD int32_t query_tile() const { return block_m() * tile_stride(2 * columns); }  // a query, then its grad_out
  S2V_HD int32_t key_tile() const { return block_n() * tile_stride(columns); }
  S2V_HD int32_t score_tile() const { return block_n() * attention_score_stride(columns); }
  S2V_HD int32_t query_offset() const { return key_tile(); }                         // two tiles, in turns
  S2V_HD int32_t stats_offset() const { return query_offset() + 2 * query_tile(); }  // twice two floats a query
  S2V_HD int32_t score_offset() const { return stats_offset() + 8 * block_m(); }
  // Values that go into registers lie where scores are written later.
  S2V_HD int32_t value_offset() const {
    return score_offset() + (attention_limits(columns).keys_in_registers ? 0 : score_tile());
  }
  S2V_HD int32_t shared_numbers() const {
    const int32_t scores = score_offset() + score_tile(), values = value_offset() + key_tile();
    return scores > values ? scores : values;
  }

  // Floats of a block's workspace in global memory: two for each query, then the queries' gradient, which is there only
  // where several tiles of keys add to it.
  S2V_HD int32_t padded_tokens() const { return query_tiles() * block_m(); }
  S2V_HD int64_t workspace_floats() const {
    return 2 * padded_tokens() + (key_tiles() > 1 ? int64_t(padded_tokens()) * columns : 0);
  }
};

// How many such blocks a multiprocessor holds at a time, given the bytes of shared memory that one block can have.
inline int64_t attention_blocks(const AttentionPlan& plan, int64_t shared_limit) {
  const AttentionLimits limits = attention_limits(plan.columns);
  const int64_t reserved = 1024;  // bytes that every block costs beside its own
  const int64_t by_registers = limits.blocks * limits.warps / plan.warps;
  const int64_t by_memory = (shared_limit + reserved) / (2 * plan.shared_numbers() + reserved);
  return by_registers < by_memory ? by_registers : by_memory;
}

// As many warps as shared memory allows, then as few as need no more tiles.
inline AttentionPlan attention_plan(int64_t tokens, int64_t width, int64_t shared_limit) {
  const int columns = attention_columns(width);
  const AttentionLimits limits = attention_limits(columns);
  AttentionPlan plan = {int32_t(tokens), columns, limits.warps};
  while (plan.warps > 1 && attention_blocks(plan, shared_limit) < limits.blocks) --plan.warps;
  for (const int32_t tiles = plan.key_tiles(); plan.warps > 1; --plan.warps) {
    const AttentionPlan fewer = {plan.tokens, columns, plan.warps - 1};
    if (fewer.key_tiles() > tiles) break;
  }
  return plan;
}

#if defined(__CUDACC__)

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

// Forward: 16 * kFragments queries of a warp, which go through all keys kBlockN at a time. A lane has parts of rows g
// and g + 8 of each fragment, index 0 and 1 of m_i and l_i.
template <class T, int kColumns, int kFragments, int kBlockN>
struct AttentionQueries {
  static constexpr int kStride = tile_stride(kColumns), kSteps = kColumns / 16;

  uint32_t q[kFragments][kSteps][4];
  float acc[kFragments][kColumns / 8][4];
  float m_i[kFragments][2];  // largest score so far
  float l_i[kFragments][2];  // sum of this lane's exponentials so far

  __device__ __forceinline__ explicit AttentionQueries(const T* tile) {
    const uint32_t address = shared_address(tile + a_offset(kStride));
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
        load_matrix(q[f][k], address + bytes<T>(f * kFragmentRows * kStride + k * 16));
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[f][n][i] = 0.0f;
#pragma unroll
      for (int h = 0; h < 2; ++h) m_i[f][h] = -kInfinity, l_i[f][h] = 0.0f;
    }
  }

  // Adds a tile, of which the first `count` keys exist; scale_log2 takes scores to powers of 2.
  __device__ __forceinline__ void attend(uint32_t key_address, uint32_t value_address, int count, float scale_log2) {
    float s[kFragments][kBlockN / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int n = 0; n < kBlockN / 16; ++n) {
        uint32_t b[4];
        load_matrix(b, key_address + bytes<T>(n * 16 * kStride + k * 16));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) multiply_pair<T>(s[f][2 * n], s[f][2 * n + 1], q[f][k], b);
      }
    if (count < kBlockN) {
      const int key = thread_index() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kBlockN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool exists = key + n * 8 + i % 2 < count;
#pragma unroll
          for (int f = 0; f < kFragments; ++f) s[f][n][i] = exists ? s[f][n][i] : -kInfinity;
        }
    }
    float m_scaled[kFragments][2];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      m_scaled[f][0] = rescale<0>(s[f], acc[f], m_i[f][0], l_i[f][0], scale_log2);
      m_scaled[f][1] = rescale<1>(s[f], acc[f], m_i[f][1], l_i[f][1], scale_log2);
    }
#pragma unroll
    for (int k = 0; k < kBlockN / 16; ++k) {
      uint32_t p[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int n = 2 * k; n < 2 * k + 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[f][n][i] = exp2_approx(fmaf(s[f][n][i], scale_log2, -m_scaled[f][i / 2]));
            l_i[f][i / 2] += s[f][n][i];
          }
        pack_fragment<T>(p[f], s[f][2 * k], s[f][2 * k + 1]);
      }
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        uint32_t b[4];
        load_matrix_transposed(b, value_address + bytes<T>(k * 16 * kStride + n * 16));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) multiply_pair<T>(acc[f][2 * n], acc[f][2 * n + 1], p[f], b);
      }
    }
  }

  // Raises m_i to the largest score of row g (kHalf 0) or g + 8 and multiplies what was summed before by alpha; returns
  // m_i times scale_log2.
  template <int kHalf>
  static __device__ __forceinline__ float rescale(const float (&s)[kBlockN / 8][4], float (&acc)[kColumns / 8][4],
                                                  float& m_i, float& l_i, float scale_log2) {
    const float m_before = m_i;
#pragma unroll
    for (int n = 0; n < kBlockN / 8; ++n) m_i = fmaxf(m_i, fmaxf(s[n][2 * kHalf], s[n][2 * kHalf + 1]));
    m_i = fmaxf(m_i, __shfl_xor_sync(0xFFFFFFFFu, m_i, 1));
    m_i = fmaxf(m_i, __shfl_xor_sync(0xFFFFFFFFu, m_i, 2));
    const float m_scaled = m_i * scale_log2, alpha = exp2_approx(fmaf(m_before, scale_log2, -m_scaled));
    l_i *= alpha;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int i = 2 * kHalf; i < 2 * kHalf + 2; ++i) acc[n][i] *= alpha;
    return m_scaled;
  }
};

// Backward: the keys of a warp and the gradients of these and of their values, which go through all queries 16 at a
// time.
template <class T, int kColumns>
struct AttentionKeys {
  static constexpr int kStride = tile_stride(kColumns), kSteps = kColumns / 16;
  static constexpr int kScoreStride = attention_score_stride(kColumns);
  static constexpr int kFragments = attention_limits(kColumns).key_fragments;
  static constexpr bool kInRegisters = attention_limits(kColumns).keys_in_registers;

  uint32_t key_address, value_address;
  uint32_t key[kInRegisters ? kFragments : 1][kInRegisters ? kSteps : 1][4];
  uint32_t value[kInRegisters ? kFragments : 1][kInRegisters ? kSteps : 1][4];
  float grad_key[kFragments][kColumns / 8][4], grad_value[kFragments][kColumns / 8][4];

  __device__ __forceinline__ AttentionKeys(const T* keys, const T* values)
      : key_address(shared_address(keys + a_offset(kStride))),
        value_address(shared_address(values + a_offset(kStride))) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      if constexpr (kInRegisters) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          load_matrix(key[f][k], key_address + offset(f, k));
          load_matrix(value[f][k], value_address + offset(f, k));
        }
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) grad_key[f][n][i] = grad_value[f][n][i] = 0.0f;
    }
  }

  // Adds 16 queries, which lie at b_offset and a_offset of a tile and have their grad_out kColumns further. `lse` and
  // `delta` are those of query 2t. The scores' gradient is written to grad_score [key][query], which begins with this
  // lane's row g and query 2t. Of the warp's keys the first `count` exist; whole: all keys of the block's tile exist.
  __device__ __forceinline__ void attend(uint32_t b_address, uint32_t a_address, const float* lse, const float* delta,
                                         T* grad_score, bool whole, int count, float scale_log2) {
    float p[kFragments][2][4] = {}, grad_p[kFragments][2][4] = {};  // scores and probabilities are transposed
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t b[4], g[4];
      load_matrix(b, b_address + bytes<T>(k * 16));
      load_matrix(g, b_address + bytes<T>(kColumns + k * 16));
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        if constexpr (kInRegisters) {
          multiply_pair<T>(p[f][0], p[f][1], key[f][k], b);
          multiply_pair<T>(grad_p[f][0], grad_p[f][1], value[f][k], g);
        } else {
          uint32_t a[4];
          load_matrix(a, key_address + offset(f, k));
          multiply_pair<T>(p[f][0], p[f][1], a, b);
          load_matrix(a, value_address + offset(f, k));
          multiply_pair<T>(grad_p[f][0], grad_p[f][1], a, g);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 lse_pair = *reinterpret_cast<const float2*>(lse + n * 8);
      const float2 delta_pair = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          p[f][n][i] = exp2_approx(fmaf(p[f][n][i], scale_log2, i % 2 ? lse_pair.y : lse_pair.x));
          grad_p[f][n][i] -= i % 2 ? delta_pair.y : delta_pair.x;
        }
    }
    if (!whole) {
      // A key that does not exist has score 0, which may be far above all others: infinity, times a key of zeros.
      const int row = thread_index() % 32 / 4;
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool exists = row + f * kFragmentRows + i / 2 * 8 < count;
          p[f][0][i] = exists ? p[f][0][i] : 0.0f;
          p[f][1][i] = exists ? p[f][1][i] : 0.0f;
        }
    }
    uint32_t p_pairs[kFragments][4], grad_pairs[kFragments][4];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      pack_fragment<T>(p_pairs[f], p[f][0], p[f][1]);
#pragma unroll
      for (int i = 0; i < 8; ++i) grad_p[f][i / 4][i % 4] *= p[f][i / 4][i % 4];  // now the scores' gradient
      pack_fragment<T>(grad_pairs[f], grad_p[f][0], grad_p[f][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<uint32_t*>(grad_score + (f * kFragmentRows + i % 2 * 8) * kScoreStride + i / 2 * 8) =
            grad_pairs[f][i];
    }
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      uint32_t b[4], g[4];
      load_matrix_transposed(g, a_address + bytes<T>(kColumns + n * 16));
      load_matrix_transposed(b, a_address + bytes<T>(n * 16));
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        multiply_pair<T>(grad_value[f][2 * n], grad_value[f][2 * n + 1], p_pairs[f], g);
        multiply_pair<T>(grad_key[f][2 * n], grad_key[f][2 * n + 1], grad_pairs[f], b);
      }
    }
  }

 private:
  static __device__ __forceinline__ uint32_t offset(int f, int k) {
    return bytes<T>(f * kFragmentRows * kStride + k * 16);
  }
};

// The sum of the products of 8 numbers with 8 others.
template <class T>
__device__ __forceinline__ float dot_piece(const T* __restrict__ a, const T* __restrict__ b) {
  const Pack<8> x = load<8>(a), y = load<8>(b);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(x.at[i], y.at[i], sum);
  return sum;
}

#endif

}  // namespace s2v
