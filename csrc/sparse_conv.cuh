// sparse_conv and its gradients, the products of a few rows at a time.
//
// out[r] = sum over o of x[table[o, r]] @ weight[o] (Graham et al., CVPR 2018). Rows of the result are shared out in
// tiles whose sums stay in a near cache while all offsets add to them, so that no two threads write to one row and sums
// have one order. For an offset the rows of a tile that have a neighbour are listed; eight of them go through a panel
// of the offset's matrix at a time, their sums in registers.
//
// Forward reads a row of x once for each row that names it, from near caches mostly, as neighbours are near in order.
#pragma once

#include "pack.cuh"

namespace s2v {

constexpr int kSparseRows = 8;                                // that are multiplied at a time
constexpr int kSparseLanes = 16, kSparsePacks = 2;            // columns of a panel: packs of so many lanes
constexpr int kSparsePanel = kSparseLanes * kSparsePacks;

S2V_HD int64_t sparse_panels(int64_t columns) { return (columns + kSparsePanel - 1) / kSparsePanel; }

// A row of the table's offset that is there: row `from` of x goes into row `to` of the tile.
struct SparsePair {
  int32_t from, to;
};

// Lists the pairs of rows [begin, end) for one offset; returns their number.
S2V_HD int32_t sparse_pairs(const int32_t* __restrict__ table, int64_t begin, int64_t end,
                            SparsePair* __restrict__ pairs) {
  int32_t count = 0;
  for (int64_t r = begin; r < end; ++r) {
    pairs[count] = {table[r], int32_t(r - begin)};
    count += table[r] >= 0;
  }
  return count;
}

// A panel [inner, kSparsePanel] of columns [first, ...) of a matrix; columns that are not there are zeros.
S2V_HD void sparse_panel(const float* __restrict__ matrix, int64_t inner, int64_t columns, int64_t inner_stride,
                         int64_t column_stride, int64_t first, float* __restrict__ panel) {
  for (int64_t k = 0; k < inner; ++k)
    for (int64_t c = 0; c < kSparsePanel; ++c)
      panel[k * kSparsePanel + c] =
          first + c < columns ? matrix[k * inner_stride + (first + c) * column_stride] : 0.0f;
}

// sums[pairs[i].to] += x[pairs[i].from] @ panel for kRows pairs. sums: rows `stride` numbers apart, at the first column.
template <int kRows>
S2V_HD void sparse_product(const float* __restrict__ x, int64_t inner, const SparsePair* __restrict__ pairs,
                           const float* __restrict__ panel, float* __restrict__ sums, int64_t stride) {
  const float* from[kRows];
  Pack<kSparseLanes> acc[kRows][kSparsePacks];
  for (int i = 0; i < kRows; ++i) {
    from[i] = x + pairs[i].from * inner;
    for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = load<kSparseLanes>(sums + pairs[i].to * stride + j * kSparseLanes);
  }
  for (int64_t k = 0; k < inner; ++k) {
    Pack<kSparseLanes> row[kSparsePacks];
    for (int j = 0; j < kSparsePacks; ++j) row[j] = load<kSparseLanes>(panel + k * kSparsePanel + j * kSparseLanes);
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = acc[i][j] + row[j] * from[i][k];
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kSparsePacks; ++j) store<kSparseLanes>(sums + pairs[i].to * stride + j * kSparseLanes, acc[i][j]);
}

// The same for all pairs of a list.
S2V_HD void sparse_products(const float* __restrict__ x, int64_t inner, const SparsePair* __restrict__ pairs,
                            int32_t count, const float* __restrict__ panel, float* __restrict__ sums, int64_t stride) {
  int32_t i = 0;
  for (; i + kSparseRows <= count; i += kSparseRows)
    sparse_product<kSparseRows>(x, inner, pairs + i, panel, sums, stride);
  for (; i + 2 <= count; i += 2) sparse_product<2>(x, inner, pairs + i, panel, sums, stride);
  if (i < count) sparse_product<1>(x, inner, pairs + i, panel, sums, stride);
}

// Row `row` of a matrix as row r of blocks [columns / kWidth, rows, kWidth]; columns that are not there stay as they are.
template <int kWidth>
S2V_HD void sparse_blocks(const float* __restrict__ row, int64_t columns, int64_t rows, int64_t r,
                          float* __restrict__ blocks) {
  for (int64_t c = 0; c < columns; c += kWidth) {
    float* __restrict__ to = blocks + c * rows + r * kWidth;
    if (c + kWidth <= columns) memcpy(to, row + c, kWidth * sizeof(float));
    else memcpy(to, row + c, (columns - c) * sizeof(float));
  }
}

// sums[i][j] += sum over r of x[r][i] * grad[r][j], for a block of x [rows, kSparseRows] and one of grad [rows,
// kSparsePanel]. Rows of sums are `stride` numbers apart.
S2V_HD void sparse_outer(const float* __restrict__ x, const float* __restrict__ grad, int32_t rows,
                         float* __restrict__ sums, int64_t stride) {
  Pack<kSparseLanes> acc[kSparseRows][kSparsePacks];
  for (int i = 0; i < kSparseRows; ++i)
    for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = load<kSparseLanes>(sums + i * stride + j * kSparseLanes);
  for (int32_t r = 0; r < rows; ++r) {
    Pack<kSparseLanes> row[kSparsePacks];
    for (int j = 0; j < kSparsePacks; ++j) row[j] = load<kSparseLanes>(grad + r * kSparsePanel + j * kSparseLanes);
    for (int i = 0; i < kSparseRows; ++i)
      for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = acc[i][j] + row[j] * x[r * kSparseRows + i];
  }
  for (int i = 0; i < kSparseRows; ++i)
    for (int j = 0; j < kSparsePacks; ++j) store<kSparseLanes>(sums + i * stride + j * kSparseLanes, acc[i][j]);
}

}  // namespace s2v
