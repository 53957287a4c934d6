// sparse_conv on the host: tiles of rows are shared out over threads, offsets for the gradient of the weights.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "sparse_conv.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "lanes.h"
#include "parallel.h"
#include "require.h"
#include "sparse_conv.cuh"

namespace s2v {
namespace {

constexpr int64_t kTile = 1024;  // rows of the result whose sums are in a near cache
constexpr int64_t kChunk = 128;  // pairs of which a block of columns is in the nearest one

// x [*, inner] gathered by table [offsets, rows], times panels of each offset, into out [rows, columns].
struct Product {
  int64_t rows, offsets, inner, columns;
  const float* x;
  const float* panels;  // [offsets, padded columns / panel, inner, panel]
  const int32_t* table;
  float* out;
};

template <int kLanes, int kRows>
inline void product_tile(const Product& product, int64_t begin, int64_t end, SparsePair* pairs, float* sums) {
  constexpr int64_t kPanel = kLanes * kSparsePacks;
  const int64_t stride = sparse_padded(product.columns, kPanel);
  std::fill_n(sums, (end - begin) * stride, 0.0f);
  for (int64_t o = 0; o < product.offsets; ++o) {
    const int32_t count = sparse_pairs(product.table + o * product.rows, begin, end, pairs);
    for (int64_t c = 0; c < stride; c += kPanel)
      sparse_products<kLanes, kRows>(product.x, product.inner, pairs, count,
                                     product.panels + (o * stride + c) * product.inner, sums + c, stride);
  }
  for (int64_t r = begin; r < end; ++r)
    std::copy_n(sums + (r - begin) * stride, product.columns, product.out + r * product.columns);
}

// The gradient of one offset's matrix. gathered: kChunk rows of x and of grad in blocks, whose padding is zeros;
// sums: [padded Cin, padded Cout].
template <int kLanes, int kRows>
inline void weight_gradient(const SparseConvBackwardCall& call, int64_t o, SparsePair* pairs, float* gathered,
                            float* sums) {
  constexpr int kPanel = kLanes * kSparsePacks;
  const int64_t inner = call.channels, columns = call.channels_out;
  const int64_t height = sparse_padded(inner, kRows), stride = sparse_padded(columns, kPanel);
  float *x = gathered, *grad = gathered + kChunk * height;
  std::fill_n(sums, height * stride, 0.0f);
  const int32_t* table = call.table + o * call.rows_out;
  int64_t r = 0;
  while (r < call.rows_out) {
    int32_t count = 0;
    for (; r < call.rows_out && count < kChunk; ++r) {
      pairs[count] = {table[r], int32_t(r)};
      count += table[r] >= 0;
    }
    for (int32_t i = 0; i < count; ++i) {
      sparse_blocks<kRows>(call.x + pairs[i].from * inner, inner, kChunk, i, x);
      sparse_blocks<kPanel>(call.grad + pairs[i].to * columns, columns, kChunk, i, grad);
    }
    for (int64_t c = 0; c < stride; c += kPanel)
      for (int64_t k = 0; k < height; k += kRows)
        sparse_outer<kLanes, kRows>(x + k * kChunk, grad + c * kChunk, count, sums + k * stride + c, stride);
  }
  for (int64_t k = 0; k < inner; ++k)
    std::copy_n(sums + k * stride, columns, call.d_weight + (o * inner + k) * columns);
}

// Rows that fill the registers with their sums.
template <int kLanes>
constexpr int kRowsOf = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;

int64_t panel_of(int lanes) { return int64_t(lanes) * kSparsePacks; }

void multiply(int lanes, const Product& product, int threads) {
  const int64_t stride = sparse_padded(product.columns, panel_of(lanes));
  parallel_for(product.rows, kTile, threads, [&](int64_t begin, int64_t end) {
    std::vector<SparsePair> pairs(kTile);
    std::vector<float> sums(kTile * stride);
    for_lanes(lanes, [&](auto of) {
      product_tile<of(), kRowsOf<of()>>(product, begin, end, pairs.data(), sums.data());
    });
  });
}

// Panels of all matrices [inner, columns] whose numbers lie so far apart.
std::vector<float> panels_of(int lanes, const float* weight, int64_t offsets, int64_t inner,
                             int64_t columns, int64_t inner_stride, int64_t column_stride) {
  const int64_t panel = panel_of(lanes), stride = sparse_padded(columns, panel);
  std::vector<float> panels(offsets * inner * stride);
  for (int64_t o = 0; o < offsets; ++o)
    for (int64_t c = 0; c < stride; c += panel)
      sparse_panel(weight + o * inner * columns, inner, columns, inner_stride, column_stride, c, panel,
                   panels.data() + (o * stride + c) * inner);
  return panels;
}

template <class Call>
void check(const Call& call, int threads) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.rows >= 0 && call.rows_out >= 0 && call.offsets >= 0 && call.channels >= 0 && call.channels_out >= 0,
          "sparse_conv: a negative size");
  require(call.rows <= most && call.rows_out <= most && call.channels <= most && call.channels_out <= most,
          "sparse_conv: a size of 2**31 or more");
  require((call.x != nullptr || call.rows * call.channels == 0) &&
              (call.weight != nullptr || call.offsets * call.channels * call.channels_out == 0) &&
              (call.table != nullptr || call.offsets * call.rows_out == 0),
          "sparse_conv: x, weight or table is a null pointer");
  parallel_for(call.offsets, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * call.rows_out; at < end * call.rows_out; ++at)
      require(call.table[at] < call.rows, "sparse_conv: table: a number that is no row of x");
  });
}

// For each offset the row of the result that names a row of x; -1: none does.
std::vector<int32_t> transposed(const SparseConvBackwardCall& call, int threads) {
  std::vector<int32_t> table(call.offsets * call.rows, -1);
  parallel_for(call.offsets, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t r = 0; r < call.rows_out; ++r) {
        const int32_t from = call.table[o * call.rows_out + r];
        if (from < 0) continue;
        int32_t& to = table[o * call.rows + from];
        require(to < 0, "sparse_conv: table: an offset names a row of x twice");
        to = int32_t(r);
      }
    }
  });
  return table;
}

}  // namespace

void sparse_conv(const SparseConvCall& call, int threads) {
  check(call, threads);
  const int lanes = lanes_in_use;
  if (call.rows_out * call.channels_out == 0) return;
  require(call.out != nullptr, "sparse_conv: out is a null pointer");
  const std::vector<float> panels =
      panels_of(lanes, call.weight, call.offsets, call.channels, call.channels_out, call.channels_out, 1);
  multiply(lanes,
           {call.rows_out, call.offsets, call.channels, call.channels_out, call.x, panels.data(), call.table, call.out},
           threads);
}

void sparse_conv_backward(const SparseConvBackwardCall& call, int threads) {
  check(call, threads);
  const int lanes = lanes_in_use;
  require(call.grad != nullptr || call.rows_out * call.channels_out == 0, "sparse_conv: grad is a null pointer");
  if (call.d_x != nullptr && call.rows * call.channels > 0) {
    const std::vector<int32_t> table = transposed(call, threads);
    const std::vector<float> panels =
        panels_of(lanes, call.weight, call.offsets, call.channels_out, call.channels, 1, call.channels_out);
    multiply(lanes,
             {call.rows, call.offsets, call.channels_out, call.channels, call.grad, panels.data(), table.data(), call.d_x},
             threads);
  }
  if (call.d_weight != nullptr && call.channels * call.channels_out > 0) {
    parallel_for(call.offsets, 1, threads, [&](int64_t begin, int64_t end) {
      for_lanes(lanes, [&](auto of) {
        constexpr int kRows = kRowsOf<of()>;
        const int64_t height = sparse_padded(call.channels, kRows);
        const int64_t stride = sparse_padded(call.channels_out, panel_of(of()));
        std::vector<SparsePair> pairs(kChunk);
        // Columns of the padding are never written: zeros.
        std::vector<float> gathered(kChunk * (height + stride)), sums(height * stride);
        for (int64_t o = begin; o < end; ++o)
          weight_gradient<of(), kRows>(call, o, pairs.data(), gathered.data(), sums.data());
      });
    });
  }
}

}  // namespace s2v
