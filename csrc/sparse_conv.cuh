// sparse_conv and its gradients, the products of a few rows at a time.
//
// out[r] = sum over o of x[table[o, r]] @ weight[o] (Graham et al., CVPR 2018). Rows of the result are shared out in
// tiles whose sums stay in a near cache while all offsets add to them, so that no two threads write to one row and sums
// have one order. For an offset the rows of a tile that have a neighbour are listed; a few of them go through a panel
// of the offset's matrix at a time, their sums in registers.
//
// Forward reads a row of x once for each row that names it, from near caches mostly, as neighbours are near in order.
#pragma once

#include "pack.cuh"

namespace s2v {

// Everything below is for registers of kLanes numbers: a panel is two registers wide, and kRows rows go through it at a
// time, so that 2 * kRows sums, a row of the panel and a number of x fit into the registers that there are.
constexpr int kSparsePacks = 2;

S2V_HD constexpr int64_t sparse_padded(int64_t count, int64_t width) { return (count + width - 1) / width * width; }

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

// A panel [inner, width] of columns [first, ...) of a matrix; columns that are not there are zeros.
S2V_HD void sparse_panel(const float* __restrict__ matrix, int64_t inner, int64_t columns, int64_t inner_stride,
                         int64_t column_stride, int64_t first, int64_t width, float* __restrict__ panel) {
  for (int64_t k = 0; k < inner; ++k)
    for (int64_t c = 0; c < width; ++c)
      panel[k * width + c] = first + c < columns ? matrix[k * inner_stride + (first + c) * column_stride] : 0.0f;
}

// Sums of sums: a long one is added to in parts that have been added up by themselves, which loses fewer bits.
template <int kLanes>
S2V_HD void sparse_add(float* __restrict__ sum, const Pack<kLanes>& part) {
  store<kLanes>(sum, load<kLanes>(sum) + part);
}

// sums[pairs[i].to] += x[pairs[i].from] @ panel for kRows pairs. sums: rows `stride` numbers apart, at the first column.
template <int kLanes, int kRows>
S2V_HD void sparse_product(const float* __restrict__ x, int64_t inner, const SparsePair* __restrict__ pairs,
                           const float* __restrict__ panel, float* __restrict__ sums, int64_t stride) {
  const float* from[kRows];
  Pack<kLanes> acc[kRows][kSparsePacks] = {};
  for (int i = 0; i < kRows; ++i) from[i] = x + pairs[i].from * inner;
  for (int64_t k = 0; k < inner; ++k) {
    Pack<kLanes> row[kSparsePacks];
    for (int j = 0; j < kSparsePacks; ++j) row[j] = load<kLanes>(panel + (k * kSparsePacks + j) * kLanes);
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = acc[i][j] + row[j] * from[i][k];
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kSparsePacks; ++j) sparse_add<kLanes>(sums + pairs[i].to * stride + j * kLanes, acc[i][j]);
}

// The same for all pairs of a list.
template <int kLanes, int kRows>
S2V_HD void sparse_products(const float* __restrict__ x, int64_t inner, const SparsePair* __restrict__ pairs,
                            int32_t count, const float* __restrict__ panel, float* __restrict__ sums, int64_t stride) {
  int32_t i = 0;
  for (; i + kRows <= count; i += kRows)
    sparse_product<kLanes, kRows>(x, inner, pairs + i, panel, sums, stride);
  for (; i + 2 <= count; i += 2) sparse_product<kLanes, 2>(x, inner, pairs + i, panel, sums, stride);
  if (i < count) sparse_product<kLanes, 1>(x, inner, pairs + i, panel, sums, stride);
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

// sums[i][j] += sum over r of x[r][i] * grad[r][j], for a block of x [rows, kRows] and one of grad [rows, 2 * kLanes].
// Rows of sums are `stride` numbers apart.
template <int kLanes, int kRows>
S2V_HD void sparse_outer(const float* __restrict__ x, const float* __restrict__ grad, int32_t rows,
                         float* __restrict__ sums, int64_t stride) {
  Pack<kLanes> acc[kRows][kSparsePacks] = {};
  for (int32_t r = 0; r < rows; ++r) {
    Pack<kLanes> row[kSparsePacks];
    for (int j = 0; j < kSparsePacks; ++j) row[j] = load<kLanes>(grad + (r * kSparsePacks + j) * int64_t(kLanes));
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kSparsePacks; ++j) acc[i][j] = acc[i][j] + row[j] * x[r * int64_t(kRows) + i];
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kSparsePacks; ++j) sparse_add<kLanes>(sums + i * stride + j * kLanes, acc[i][j]);
}

}  // namespace s2v
