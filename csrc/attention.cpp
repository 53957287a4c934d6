// attention on the host, in float32: heads of all tracks are shared out over threads.
//
// FlashAttention's online softmax (Dao et al., 2022) for a block of queries at a time, and for the gradient its five
// products. Scores lie turned over, keys by queries, so that the lanes of a register are queries of their own: maxima
// and sums need no step across lanes, and exponentials are polynomials in whole registers. A head's keys and values are
// copied once: in qkv their rows are 3 * H * d numbers apart, which only a few sets of the nearest cache would hold.
// All products are of small matrices in that cache, whose sums stay in registers.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.h"
#include "numbers.h"
#include "pack.cuh"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

// Of a block, whose scores and, for the gradient, theirs fit into a nearest cache of 48 KiB beside a row of the rest.
constexpr int64_t kQueries = 64, kKeys = 48;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// A matrix: where it begins, and how far its rows and columns are from one another.
struct Matrix {
  const float* at;
  int64_t row, column;
};

// Where a product goes: it takes the place of what is there, is added to it, or to factor[r] times row r of it.
struct Target {
  float* at;
  int64_t row;
  bool add;
  const float* factors;
};

// 2 ** x for x up to 0, to 2e-7; what is below 2 ** -60 is 2 ** -60, which vanishes beside the largest, 1.
template <int kLanes>
inline Pack<kLanes> power_of_two(const Pack<kLanes>& of) {
  typedef uint32_t Integers __attribute__((vector_size(4 * kLanes)));
  using Vector = typename Pack<kLanes>::Vector;
  const Vector least = Vector{} - 60.0f, x = of.at < least ? least : of.at;
  const Vector shifted = x + 12582912.0f;  // 1.5 * 2 ** 23: the nearest whole number in the last bits
  const Vector r = x - (shifted - 12582912.0f);
  Vector y = r * 1.326465239e-3f + 9.671511324e-3f;  // the polynomial of least relative error that is 1 at 0
  y = y * r + 5.550733963e-2f;
  y = y * r + 2.402224212e-1f;
  y = y * r + 6.931469775e-1f;
  y = y * r + 1.0f;
  Integers bits, exponents;
  memcpy(&bits, &y, sizeof bits);
  memcpy(&exponents, &shifted, sizeof exponents);
  bits += exponents << 23;
  memcpy(&y, &bits, sizeof y);
  y = x == x ? y : x;  // a NaN stays one, whatever its last bits
  return {y};
}

// Rows r ... r + kRows of a product, kPacks registers wide.
template <int kLanes, int kRows, int kPacks>
inline void tile(const Matrix& a, const float* __restrict__ b, int64_t b_row, int64_t count, const Target& to,
                 int64_t r) {
  Pack<kLanes> sums[kRows][kPacks] = {};
  const float* __restrict__ from = a.at + r * a.row;
  for (int64_t k = 0; k < count; ++k) {
    Pack<kLanes> read[kPacks];
    for (int p = 0; p < kPacks; ++p) read[p] = load<kLanes>(b + k * b_row + p * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const float factor = from[i * a.row + k * a.column];
      for (int p = 0; p < kPacks; ++p) sums[i][p] = sums[i][p] + read[p] * factor;
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kPacks; ++p) {
      float* const at = to.at + (r + i) * to.row + p * kLanes;
      if (to.factors != nullptr) sums[i][p] = load<kLanes>(at) * to.factors[r + i] + sums[i][p];
      else if (to.add) sums[i][p] = load<kLanes>(at) + sums[i][p];
      store<kLanes>(at, sums[i][p]);
    }
}

// Rows of a tile: as many as leave two of the registers beside the sums and a row of b.
template <int kRegisters, int kPacks>
constexpr int kTileRows = (kRegisters - kPacks - 2) / kPacks > 12 ? 12 : (kRegisters - kPacks - 2) / kPacks;

template <int kLanes, int kRegisters, int kPacks>
inline void tiles(const Matrix& a, int64_t rows, const float* b, int64_t b_row, int64_t count, const Target& to) {
  constexpr int kRows = kTileRows<kRegisters, kPacks>, kSome = 4;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) tile<kLanes, kRows, kPacks>(a, b, b_row, count, to, r);
  for (; r + kSome <= rows; r += kSome) tile<kLanes, kSome, kPacks>(a, b, b_row, count, to, r);
  for (; r < rows; ++r) tile<kLanes, 1, kPacks>(a, b, b_row, count, to, r);
}

// a [rows, count] times b [count, columns], columns a multiple of kLanes.
template <int kLanes, int kRegisters>
inline void product(const Matrix& a, int64_t rows, const float* b, int64_t b_row, int64_t count, int64_t columns,
                    Target to) {
  constexpr int kMost = kRegisters / 8;
  int64_t c = 0;
  const auto next = [&](int packs) {
    c += packs * kLanes;
    to.at += packs * kLanes;
  };
  for (; c + kMost * kLanes <= columns; next(kMost)) tiles<kLanes, kRegisters, kMost>(a, rows, b + c, b_row, count, to);
  if constexpr (kMost > 2)
    for (; c + 2 * kLanes <= columns; next(2)) tiles<kLanes, kRegisters, 2>(a, rows, b + c, b_row, count, to);
  for (; c < columns; next(1)) tiles<kLanes, kRegisters, 1>(a, rows, b + c, b_row, count, to);
}

// The same for registers of so many numbers. It stays a function of its own: its tiles are most of the code, and both
// passes need it seven times.
__attribute__((noinline)) void multiply(int lanes, const Matrix& a, int64_t rows, const float* b, int64_t b_row,
                                        int64_t count, int64_t columns, const Target& to) {
  for_lanes(lanes, [&](auto of) { product<of(), of() == 16 ? 32 : 16>(a, rows, b, b_row, count, columns, to); });
}

// One track's head: where its queries, keys and values begin in qkv, and the gradient's in grad_qkv.
struct Head {
  int64_t tokens, width, columns, stride;  // L, d, d up to whole registers, numbers from token to token in qkv
  int64_t out_stride;                      // in out
  const float *q, *k, *v;
  int64_t group;  // 0: none

  float scale() const { return 1.0f / std::sqrt(float(width)); }
  // Queries of the block that begins at i.
  int64_t count(int64_t i) const { return std::min(kQueries, tokens - i); }
};

// to [count, columns] = rows of `width` numbers, zeros beyond.
inline void copy_rows(const float* __restrict__ from, int64_t stride, int64_t count, const Head& head, float factor,
                      float* __restrict__ to) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < head.columns; ++c)
      to[i * head.columns + c] = c < head.width ? from[i * stride + c] * factor : 0.0f;
}

// to [width, kQueries] = rows of `width` numbers turned over, zeros beyond.
inline void turn_rows(const float* __restrict__ from, int64_t stride, int64_t count, const Head& head, float factor,
                      float* __restrict__ to) {
  for (int64_t c = 0; c < head.width; ++c) {
    for (int64_t i = 0; i < count; ++i) to[c * kQueries + i] = from[i * stride + c] * factor;
    for (int64_t i = count; i < kQueries; ++i) to[c * kQueries + i] = 0.0f;
  }
}

constexpr float kHidden = std::numeric_limits<float>::lowest();  // a score that vanishes beside any other

// Hides from queries i ... i + queries those keys among j ... j + keys that are of their own group, but for themselves.
inline void hide_group(const Head& head, int64_t j, int64_t keys, int64_t i, int64_t queries,
                       float* __restrict__ scores) {
  if (head.group == 0) return;
  for (int64_t query = i; query < i + queries; ++query) {
    const int64_t first = query / head.group * head.group;
    const int64_t begin = std::max(first, j), end = std::min(first + head.group, j + keys);
    for (int64_t key = begin; key < end; ++key)
      if (key != query) scores[(key - j) * kQueries + query - i] = kHidden;
  }
}

inline int64_t padded(int64_t count, int lanes) { return (count + lanes - 1) / lanes * lanes; }

// Turns scores [keys, kQueries], of base 2, into exponentials of their differences to the largest so far, of which l
// has the sum. alpha: what everything before is to be multiplied by.
template <int kLanes>
inline void online_softmax(float* __restrict__ scores, int64_t keys, int64_t queries, float* __restrict__ m,
                           float* __restrict__ l, float* __restrict__ alpha) {
  constexpr int kChains = 4;  // maxima at a time, so that none waits for the one before
  for (int64_t i = 0; i < queries; i += kLanes) {
    const Pack<kLanes> before = load<kLanes>(m + i);
    typename Pack<kLanes>::Vector most[kChains] = {before.at, before.at, before.at, before.at};
    int64_t j = 0;
    for (; j + kChains <= keys; j += kChains)
      for (int chain = 0; chain < kChains; ++chain) {
        const Pack<kLanes> score = load<kLanes>(scores + (j + chain) * kQueries + i);
        most[chain] = score.at > most[chain] ? score.at : most[chain];
      }
    for (; j < keys; ++j) {
      const Pack<kLanes> score = load<kLanes>(scores + j * kQueries + i);
      most[0] = score.at > most[0] ? score.at : most[0];
    }
    for (int chain = 1; chain < kChains; ++chain) most[0] = most[chain] > most[0] ? most[chain] : most[0];
    const Pack<kLanes> largest = {most[0]};
    Pack<kLanes> sum = {};
    for (j = 0; j < keys; ++j) {
      const Pack<kLanes> power = power_of_two<kLanes>(load<kLanes>(scores + j * kQueries + i) - largest);
      store<kLanes>(scores + j * kQueries + i, power);
      sum = sum + power;
    }
    const Pack<kLanes> factor = power_of_two<kLanes>(before - largest);
    store<kLanes>(alpha + i, factor);
    store<kLanes>(l + i, load<kLanes>(l + i) * factor + sum);
    store<kLanes>(m + i, largest);
  }
}

inline int64_t forward_scratch(int lanes, int64_t tokens, int64_t width) {
  return (2 * tokens + kQueries) * padded(width, lanes) + (width + kKeys + 3) * kQueries;
}

// out: the head's first row; lse [L].
template <int kLanes>
inline void forward_head(const Head& head, float* scratch, float* out, float* lse) {
  float *keys = scratch, *values = keys + head.tokens * head.columns, *sums = values + head.tokens * head.columns;
  float *queries = sums + kQueries * head.columns, *scores = queries + head.width * kQueries;
  float *m = scores + kKeys * kQueries, *l = m + kQueries, *alpha = l + kQueries;
  copy_rows(head.k, head.stride, head.tokens, head, 1.0f, keys);
  copy_rows(head.v, head.stride, head.tokens, head, 1.0f, values);
  for (int64_t i = 0; i < head.tokens; i += kQueries) {
    const int64_t count = head.count(i), lanes = padded(count, kLanes);
    turn_rows(head.q + i * head.stride, head.stride, count, head, head.scale() * kLog2E, queries);
    std::fill_n(sums, count * head.columns, 0.0f);
    std::fill_n(m, kQueries, -std::numeric_limits<float>::infinity());
    std::fill_n(l, kQueries, 0.0f);
    for (int64_t j = 0; j < head.tokens; j += kKeys) {
      const int64_t block = std::min(kKeys, head.tokens - j);
      multiply(kLanes, {keys + j * head.columns, head.columns, 1}, block, queries, kQueries, head.width, lanes,
               {scores, kQueries, false, nullptr});
      hide_group(head, j, block, i, count, scores);
      online_softmax<kLanes>(scores, block, lanes, m, l, alpha);
      multiply(kLanes, {scores, 1, kQueries}, count, values + j * head.columns, head.columns, block, head.columns,
               {sums, head.columns, true, alpha});
    }
    for (int64_t r = 0; r < count; ++r) {
      const float factor = 1.0f / l[r];
      for (int64_t c = 0; c < head.width; ++c)
        out[(i + r) * head.out_stride + c] = sums[r * head.columns + c] * factor;
      lse[i + r] = m[r] * kLn2 + std::log(l[r]);
    }
  }
}

// Turns scores of base 2 into the softmax, and its gradient d_scores into that of the scores, both [keys, kQueries].
template <int kLanes>
inline void softmax_gradient(float* __restrict__ scores, float* __restrict__ d_scores, int64_t keys, int64_t queries,
                             const float* __restrict__ lse, const float* __restrict__ delta) {
  for (int64_t i = 0; i < queries; i += kLanes) {
    const Pack<kLanes> sum = load<kLanes>(lse + i), mean = load<kLanes>(delta + i);
    for (int64_t at = i; at < keys * kQueries; at += kQueries) {
      const Pack<kLanes> p = power_of_two<kLanes>(load<kLanes>(scores + at) - sum);
      store<kLanes>(scores + at, p);
      store<kLanes>(d_scores + at, p * (load<kLanes>(d_scores + at) - mean));
    }
  }
}

inline int64_t backward_scratch(int lanes, int64_t tokens, int64_t width) {
  return (4 * tokens + 3 * kQueries) * padded(width, lanes) + (2 * width + 2 * kKeys + 2) * kQueries;
}

// out, grad: the head's first rows; lse, grad_lse [L], the latter null where there is none; d_q, d_k, d_v: in grad_qkv.
template <int kLanes>
inline void backward_head(const Head& head, float* scratch, const float* out, const float* lse, const float* grad,
                          const float* grad_lse, float* d_q, float* d_k, float* d_v) {
  const int64_t columns = head.columns, numbers = head.tokens * columns;
  float *keys = scratch, *values = keys + numbers, *d_keys = values + numbers, *d_values = d_keys + numbers;
  float *queries = d_values + numbers, *d_out = queries + kQueries * columns, *d_queries = d_out + kQueries * columns;
  float *queries_t = d_queries + kQueries * columns, *d_out_t = queries_t + head.width * kQueries;
  float *scores = d_out_t + head.width * kQueries, *d_scores = scores + kKeys * kQueries;
  float *sums = d_scores + kKeys * kQueries, *delta = sums + kQueries;
  copy_rows(head.k, head.stride, head.tokens, head, 1.0f, keys);
  copy_rows(head.v, head.stride, head.tokens, head, 1.0f, values);
  std::fill_n(d_keys, 2 * numbers, 0.0f);
  for (int64_t i = 0; i < head.tokens; i += kQueries) {
    const int64_t count = head.count(i), lanes = padded(count, kLanes);
    const float *q = head.q + i * head.stride, *grads = grad + i * head.out_stride;
    copy_rows(q, head.stride, count, head, head.scale(), queries);
    turn_rows(q, head.stride, count, head, head.scale() * kLog2E, queries_t);
    copy_rows(grads, head.out_stride, count, head, 1.0f, d_out);
    turn_rows(grads, head.out_stride, count, head, 1.0f, d_out_t);
    // Queries beyond the last have gradients of zero: what their lanes hold adds nothing to keys and values.
    std::fill_n(sums, 2 * kQueries, 0.0f);
    for (int64_t r = 0; r < count; ++r) {
      float dot = grad_lse == nullptr ? 0.0f : -grad_lse[i + r];
      const float *from = grads + r * head.out_stride, *with = out + (i + r) * head.out_stride;
      for (int64_t c = 0; c < head.width; ++c) dot += from[c] * with[c];
      delta[r] = dot;
      sums[r] = lse[i + r] * kLog2E;
    }
    std::fill_n(d_queries, count * columns, 0.0f);
    for (int64_t j = 0; j < head.tokens; j += kKeys) {
      const int64_t block = std::min(kKeys, head.tokens - j);
      const float *k = keys + j * columns, *v = values + j * columns;
      multiply(kLanes, {k, columns, 1}, block, queries_t, kQueries, head.width, lanes,
               {scores, kQueries, false, nullptr});
      multiply(kLanes, {v, columns, 1}, block, d_out_t, kQueries, head.width, lanes,
               {d_scores, kQueries, false, nullptr});
      hide_group(head, j, block, i, count, scores);
      softmax_gradient<kLanes>(scores, d_scores, block, lanes, sums, delta);
      multiply(kLanes, {scores, kQueries, 1}, block, d_out, columns, count, columns,
               {d_values + j * columns, columns, true, nullptr});
      multiply(kLanes, {d_scores, kQueries, 1}, block, queries, columns, count, columns,
               {d_keys + j * columns, columns, true, nullptr});
      multiply(kLanes, {d_scores, 1, kQueries}, count, k, columns, block, columns, {d_queries, columns, true, nullptr});
    }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < head.width; ++c)
        d_q[(i + r) * head.stride + c] = d_queries[r * columns + c] * head.scale();
  }
  for (int64_t j = 0; j < head.tokens; ++j)
    for (int64_t c = 0; c < head.width; ++c) {
      d_k[j * head.stride + c] = d_keys[j * columns + c];
      d_v[j * head.stride + c] = d_values[j * columns + c];
    }
}

template <class Call>
void check(const Call& call) {
  require(call.tracks >= 0 && call.tokens >= 0 && call.heads >= 0 && call.width >= 1 && call.group >= 0,
          "attention: a negative size, or heads of no width");
  require((call.qkv != nullptr && call.out != nullptr && call.lse != nullptr) ||
              call.tracks * call.tokens * call.heads == 0,
          "attention: qkv, out or lse is a null pointer");
}

// body(head, numbers before its first query in qkv, before its first row in out, before its first in lse, scratch)
template <class Call, class Body>
void each_head(const Call& call, int lanes, int64_t scratch_numbers, int threads, const Body& body) {
  const int64_t row = call.heads * call.width, columns = padded(call.width, lanes);
  if (call.tokens == 0) return;
  parallel_for(call.tracks * call.heads, 1, threads, [&](int64_t begin, int64_t end) {
    const Numbers numbers(scratch_numbers);
    float* const scratch = numbers.at();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t track = item / call.heads, h = item % call.heads;
      const int64_t first = track * call.tokens * row, in = 3 * first + h * call.width, out = first + h * call.width;
      const float* const q = static_cast<const float*>(call.qkv) + in;
      body(Head{call.tokens, call.width, columns, 3 * row, row, q, q + row, q + 2 * row, call.group}, in, out,
           item * call.tokens, scratch);
    }
  });
}

}  // namespace

void attention(const AttentionCall& call, int threads) {
  check(call);
  const int lanes = lanes_in_use;
  each_head(call, lanes, forward_scratch(lanes, call.tokens, call.width), threads,
            [&](const Head& head, int64_t, int64_t out, int64_t lse, float* scratch) {
              for_lanes(lanes, [&](auto of) {
                forward_head<of()>(head, scratch, static_cast<float*>(call.out) + out, call.lse + lse);
              });
            });
}

void attention_backward(const AttentionBackwardCall& call, int threads) {
  check(call);
  require((call.grad_out != nullptr && call.grad_qkv != nullptr) || call.tracks * call.tokens * call.heads == 0,
          "attention_backward: grad_out or grad_qkv is a null pointer");
  const int64_t row = call.heads * call.width;
  const int lanes = lanes_in_use;
  each_head(call, lanes, backward_scratch(lanes, call.tokens, call.width), threads,
            [&](const Head& head, int64_t in, int64_t out, int64_t lse, float* scratch) {
              float* const d_q = static_cast<float*>(call.grad_qkv) + in;
              for_lanes(lanes, [&](auto of) {
                backward_head<of()>(head, scratch, static_cast<const float*>(call.out) + out, call.lse + lse,
                                    static_cast<const float*>(call.grad_out) + out,
                                    call.grad_lse == nullptr ? nullptr : call.grad_lse + lse, d_q, d_q + row,
                                    d_q + 2 * row);
              });
            });
}

}  // namespace s2v
