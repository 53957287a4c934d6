// Products of matrices in float32, of few rows at a time: what operations do with numbers that are in a cache.
#pragma once

#include <cstdint>
#include <cstring>

namespace s2v {

// The matrix on the left: number k of row i is at[i * step + k], or at[k * step + i] where it is turned.
struct ProductLeft {
  const float* at;
  int64_t step;
  bool turned;
};

// The matrix on the right: its rows begin `row` numbers apart; 0: it lies in panels.
struct ProductRight {
  const float* at;
  int64_t row;
};

// out [rows, columns] = left [rows, count] times right [count, columns], or added to what is there; rows of out begin
// out_row numbers apart. Sums over `count` are made in its order.
void product(const ProductLeft& left, int64_t rows, const ProductRight& right, int64_t count, int64_t columns, bool add,
             float* out, int64_t out_row);

// Columns that lie together in a panel which begins at column n of `columns`: 32, 16 or 8, and 1 for those that remain.
constexpr int64_t product_panel(int64_t n, int64_t columns) {
  return columns - n >= 32 ? 32 : columns - n >= 16 ? 16 : columns - n >= 8 ? 8 : 1;
}

// Panels [count, width] of a matrix [count, columns], one after the other; at(k, n): where its number is.
template <class At>
void product_panels(int64_t count, int64_t columns, const At& at, float* panels) {
  for (int64_t n = 0; n < columns; n += product_panel(n, columns)) {
    const int64_t width = product_panel(n, columns);
    for (int64_t k = 0; k < count; ++k, panels += width)
      for (int64_t i = 0; i < width; ++i) panels[i] = *at(k, n + i);
  }
}

// The same of rows that lie one after the other.
inline void row_panels(int64_t count, int64_t columns, const float* rows, float* panels) {
  for (int64_t n = 0; n < columns; n += product_panel(n, columns)) {
    const int64_t width = product_panel(n, columns);
    for (int64_t k = 0; k < count; ++k, panels += width)
      std::memcpy(panels, rows + k * columns + n, width * sizeof(float));
  }
}

}  // namespace s2v
