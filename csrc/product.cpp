// Products of matrices on the host: a tile of sums stays in registers while the left's numbers are spread over lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "product.h"

#include <type_traits>

#include "lanes.h"
#include "pack.cuh"
#include "prefetch.h"

namespace s2v {
namespace {

constexpr int64_t kStrip = 256;  // rows of a turned matrix that are laid together
constexpr int64_t kNear = 64;    // rows that begin so few numbers apart need not be

// Rows of the left that one address and multiples of two distances reach, which an instruction adds by itself: with an
// offset of its own for every row there would be more of them than registers.
constexpr int kNextRows = 5;
#if defined(__GNUC__)
#define S2V_KEEP(one, other) asm volatile("" : "+r"(one), "+r"(other))  // no sums of these are made ahead of a loop
#else
#define S2V_KEEP(one, other)
#endif

// kRows rows and kPacks registers of columns of out.
template <int kWidth, int kRows, int kPacks, bool kTurned>
S2V_HD void tile(const float* __restrict__ left, int64_t step, const float* __restrict__ right, int64_t right_row,
                 int64_t count, bool add, float* __restrict__ out, int64_t out_row) {
  // What is written need not be in a near cache.
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kPacks; ++p) prefetch_to_write(out + i * out_row + p * kWidth);
  Pack<kWidth> sums[kRows][kPacks] = {};
  const char* rows[(kRows + kNextRows - 1) / kNextRows];
  for (int i = 0; i < kRows; i += kNextRows) rows[i / kNextRows] = reinterpret_cast<const char*>(left + i * step);
  int64_t one = step * int64_t(sizeof(float)), three = 3 * one;
  for (int64_t k = 0; k < count; ++k) {
    S2V_KEEP(one, three);
    const int64_t offsets[kNextRows] = {0, one, 2 * one, three, 4 * one};
    Pack<kWidth> read[kPacks];
    for (int p = 0; p < kPacks; ++p) read[p] = load<kWidth>(right + k * right_row + p * kWidth);
    for (int i = 0; i < kRows; ++i) {
      const float factor =
          kTurned ? left[k * step + i]
                  : *reinterpret_cast<const float*>(rows[i / kNextRows] + offsets[i % kNextRows]);
      for (int p = 0; p < kPacks; ++p) sums[i][p] = sums[i][p] + read[p] * factor;
    }
    for (int i = 0; i < kRows; i += kNextRows) rows[i / kNextRows] += sizeof(float);
  }
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kPacks; ++p) {
      float* const to = out + i * out_row + p * kWidth;
      store<kWidth>(to, add ? load<kWidth>(to) + sums[i][p] : sums[i][p]);
    }
}

template <int kCount>
using RowCount = std::integral_constant<int, kCount>;

// All rows of some columns: kRows at a time, half as many of those that remain, then two and one.
template <int kWidth, int kRows, int kPacks, bool kTurned>
S2V_HD void columns_of(const ProductLeft& left, int64_t rows, const float* right, int64_t right_row, int64_t count,
                       bool add, float* out, int64_t out_row) {
  int64_t i = 0;
  const auto next = [&](auto some) {
    for (; i + some() <= rows; i += some())
      tile<kWidth, some(), kPacks, kTurned>(left.at + i * (kTurned ? 1 : left.step), left.step, right, right_row, count,
                                            add, out + i * out_row, out_row);
  };
  next(RowCount<kRows>());
  if constexpr (kRows > 5) next(RowCount<kRows / 2>());
  next(RowCount<2>());
  next(RowCount<1>());
}

// Columns of all panels, of rows begin ... begin + chunk of the right; left begins with the first of them.
template <int kLanes, int kRows, bool kTurned>
S2V_HD void panels_of(const ProductLeft& left, int64_t rows, const ProductRight& right, int64_t count, int64_t begin,
                      int64_t chunk, int64_t columns, bool add, float* out, int64_t out_row) {
  for (int64_t n = 0, width; n < columns; n += width) {
    width = product_panel(n, columns);
    // A panel holds count numbers of each of its columns, those before it too.
    const int64_t row = right.row == 0 ? width : right.row;
    const float* const at = right.at + (right.row == 0 ? n * count : n) + begin * row;
    each_packs<kLanes, 2>(0, width, [&](int64_t first, auto lanes, auto packs) {
      columns_of<lanes(), kRows, packs(), kTurned>(left, rows, at + first, row, chunk, add, out + n + first, out_row);
    });
  }
}

template <int kLanes, int kRows>
S2V_HD void product_of(const ProductLeft& left, int64_t rows, const ProductRight& right, int64_t count, int64_t columns,
                       bool add, float* out, int64_t out_row) {
  if (!left.turned) {
    panels_of<kLanes, kRows, false>(left, rows, right, count, 0, count, columns, add, out, out_row);
  } else if (left.step <= kNear) {
    panels_of<kLanes, kRows, true>(left, rows, right, count, 0, count, columns, add, out, out_row);
  } else {  // numbers that lie far from each other would be fetched anew for every panel
    alignas(64) float strip[kStrip * kRows];
    for (int64_t begin = 0; begin == 0 || begin < count; begin += kStrip) {
      const int64_t chunk = count - begin < kStrip ? count - begin : kStrip;
      for (int64_t i = 0; i < rows; i += kRows) {
        const float* const from = left.at + begin * left.step + i;
        const int64_t height = rows - i < kRows ? rows - i : kRows;
        for (int64_t k = 0; k < chunk; ++k)
          if (height == kRows)
            for (int r = 0; r < kRows; ++r) strip[k * kRows + r] = from[k * left.step + r];
          else
            for (int64_t r = 0; r < height; ++r) strip[k * kRows + r] = from[k * left.step + r];
        panels_of<kLanes, kRows, true>({strip, kRows, true}, height, right, count, begin, chunk, columns,
                                       add || begin > 0, out + i * out_row, out_row);
      }
    }
  }
}

}  // namespace

void product(const ProductLeft& left, int64_t rows, const ProductRight& right, int64_t count, int64_t columns, bool add,
             float* out, int64_t out_row) {
  for_lanes(lanes_in_use, [&](auto lanes) {
    // A tile's sums, and what is read of the right, are to fit into the registers: 32 of 512 bits, or 16.
    product_of<lanes(), lanes() == 16 ? 10 : 5>(left, rows, right, count, columns, add, out, out_row);
  });
}

}  // namespace s2v
