// The mixing of graph_attention and its gradient, the work for one frame.
//
// mixed[i, h] = sum over j of topology[h, i, j] * softmax_j(q[i, h] k[j, h] / sqrt(d)) * x[j] (InfoGCN, Chi et al., CVPR
// 2022). The linear map a head after it is left to the matrix library. Maps of a frame stay in the first cache and are
// made again for the gradient. Everything is small products of matrices, which one function does.
#pragma once

#include <cmath>
#include <cstring>

#include "pack.cuh"

namespace s2v {

constexpr int kGraphLanes = 16;               // numbers in a register
constexpr int kGraphRows = 5, kGraphPacks = 2;  // of a tile of sums that is held in registers

struct GraphAttentionShape {
  int64_t frames;
  int32_t joints, channels, heads, width;  // V, C, H, d

  // Numbers of a map's row: joints, rounded up to whole registers.
  S2V_HD int32_t row() const { return (joints + kGraphLanes - 1) / kGraphLanes * kGraphLanes; }
};

// A matrix: where it begins, and how far its rows and columns are from one another.
struct GraphMatrix {
  const float* at;
  int64_t row, column;
};

// out[i][n ... n + kWidth * kPacks] for rows i ... i + kRows: a's rows times b, whose columns are next to each other.
template <int kWidth, int kRows, int kPacks>
S2V_HD void graph_tile(const GraphMatrix& a, const float* __restrict__ b, int64_t b_row, int32_t count, bool add,
                       float* __restrict__ out, int64_t out_row) {
  Pack<kWidth> sums[kRows][kPacks] = {};
  for (int32_t k = 0; k < count; ++k) {
    Pack<kWidth> read[kPacks];
    for (int p = 0; p < kPacks; ++p) read[p] = load<kWidth>(b + k * b_row + p * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const float factor = a.at[r * a.row + k * a.column];
      for (int p = 0; p < kPacks; ++p) sums[r][p] = sums[r][p] + read[p] * factor;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPacks; ++p) {
      float* to = out + r * out_row + p * kWidth;
      store<kWidth>(to, add ? load<kWidth>(to) + sums[r][p] : sums[r][p]);
    }
}

template <int kWidth, int kPacks>
S2V_HD void graph_columns(const GraphMatrix& a, int32_t rows, const float* b, int64_t b_row, int32_t count, bool add,
                          float* out, int64_t out_row) {
  int32_t i = 0;
  for (; i + kGraphRows <= rows; i += kGraphRows)
    graph_tile<kWidth, kGraphRows, kPacks>({a.at + i * a.row, a.row, a.column}, b, b_row, count, add, out + i * out_row,
                                           out_row);
  for (; i < rows; ++i)
    graph_tile<kWidth, 1, kPacks>({a.at + i * a.row, a.row, a.column}, b, b_row, count, add, out + i * out_row, out_row);
}

// out [rows, columns] = a [rows, count] times b [count, columns], or added to what is there.
S2V_HD void graph_product(const GraphMatrix& a, int32_t rows, const float* b, int64_t b_row, int32_t count,
                                 int32_t columns, bool add, float* out, int64_t out_row) {
  int32_t n = 0;
  for (; n + kGraphPacks * kGraphLanes <= columns; n += kGraphPacks * kGraphLanes)
    graph_columns<kGraphLanes, kGraphPacks>(a, rows, b + n, b_row, count, add, out + n, out_row);
  for (; n + kGraphLanes <= columns; n += kGraphLanes)
    graph_columns<kGraphLanes, 1>(a, rows, b + n, b_row, count, add, out + n, out_row);
  constexpr int kHalf = kGraphLanes / 2;
  for (; n + kHalf <= columns; n += kHalf) graph_columns<kHalf, 1>(a, rows, b + n, b_row, count, add, out + n, out_row);
  for (; n < columns; ++n) graph_columns<1, 1>(a, rows, b + n, b_row, count, add, out + n, out_row);
}

using GraphPack = Pack<kGraphLanes>;

// exp of numbers up to 0, to 2e-7: by a power of two and a polynomial (Cephes).
S2V_HD GraphPack graph_exp(const GraphPack& of) {
  typedef int32_t Integers __attribute__((vector_size(4 * kGraphLanes)));
  const GraphPack::Vector x = of.at < -87.0f ? of.at * 0.0f - 87.0f : of.at;
  const Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);  // towards zero: the nearest
  const GraphPack::Vector power = __builtin_convertvector(n, GraphPack::Vector);
  const GraphPack::Vector r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  GraphPack::Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers bits = (n + 127) << 23;
  GraphPack::Vector scale;
  memcpy(&scale, &bits, sizeof(scale));
  return {y * scale};
}


// Scratch of a frame: numbers for maps, and for x or keys laid out by channels.
S2V_HD int64_t graph_scratch(const GraphAttentionShape& shape) {
  const int64_t most = shape.channels > shape.width ? shape.channels : shape.width;
  return (4 * int64_t(shape.joints) + 2 * most) * shape.row();
}

// Maps of heads [V, V], each turned over into rows of row() numbers, zeros beyond; or back.
S2V_HD void graph_padded(const GraphAttentionShape& shape, const float* from, float* to) {
  const int32_t V = shape.joints, row = shape.row();
  for (int32_t h = 0; h < shape.heads; ++h)
    for (int32_t j = 0; j < V; ++j)
      for (int32_t i = 0; i < row; ++i)
        to[(int64_t(h) * V + j) * row + i] = i < V ? from[(int64_t(h) * V + i) * V + j] : 0.0f;
}
S2V_HD void graph_unpadded(const GraphAttentionShape& shape, const float* from, float* to) {
  const int32_t V = shape.joints, row = shape.row();
  for (int32_t h = 0; h < shape.heads; ++h)
    for (int32_t j = 0; j < V; ++j)
      for (int32_t i = 0; i < V; ++i)
        to[(int64_t(h) * V + i) * V + j] = from[(int64_t(h) * V + j) * row + i];
}

// to [columns, row()] = from [V, columns] turned over, zeros beyond the joints.
S2V_HD void graph_turned(const GraphAttentionShape& shape, const float* from, int64_t from_row, int32_t columns,
                         float* __restrict__ to) {
  const int32_t row = shape.row();
  for (int32_t c = 0; c < columns; ++c) {
    for (int32_t j = 0; j < shape.joints; ++j) to[c * row + j] = from[j * from_row + c];
    for (int32_t j = shape.joints; j < row; ++j) to[c * row + j] = 0.0f;
  }
}

// The softmax of one head, turned over: maps [j, i], so that a vector's lanes are rows i of their own and nothing has to
// be added up across lanes. Lanes beyond the joints hold numbers that nobody takes. q, k: the frame's of this head.
S2V_HD void graph_maps(const GraphAttentionShape& shape, const float* q, const float* k, float* queries,
                       float* __restrict__ maps) {
  const int32_t V = shape.joints, row = shape.row();
  const int64_t step = 2 * int64_t(shape.heads) * shape.width;
  graph_turned(shape, q, step, shape.width, queries);
  graph_product({k, step, 1}, V, queries, row, shape.width, row, false, maps, row);
  const float scale = 1.0f / std::sqrt(float(shape.width));
  for (int32_t i = 0; i < row; i += kGraphLanes) {
    GraphPack largest = load<kGraphLanes>(maps + i), sum = {};
    for (int32_t j = 1; j < V; ++j) {
      const GraphPack next = load<kGraphLanes>(maps + j * row + i);
      largest.at = next.at > largest.at ? next.at : largest.at;
    }
    for (int32_t j = 0; j < V; ++j) {
      const GraphPack value = graph_exp((load<kGraphLanes>(maps + j * row + i) - largest) * scale);
      store<kGraphLanes>(maps + j * row + i, value);
      sum = sum + value;
    }
    const GraphPack factor = {1.0f / sum.at};
    for (int32_t j = 0; j < V; ++j)
      store<kGraphLanes>(maps + j * row + i, load<kGraphLanes>(maps + j * row + i) * factor);
  }
}

// weighted = maps times the head's topology, [V, row()] all of them.
S2V_HD void graph_weighted(const GraphAttentionShape& shape, const float* __restrict__ maps,
                           const float* __restrict__ topology, float* __restrict__ weighted) {
  const int64_t square = int64_t(shape.joints) * shape.row();
  for (int64_t at = 0; at < square; at += kGraphLanes)
    store<kGraphLanes>(weighted + at, load<kGraphLanes>(maps + at) * load<kGraphLanes>(topology + at));
}

// One frame of mixed; pointers are the frame's. topology: [H, V, row()], turned over.
S2V_HD void graph_forward(const GraphAttentionShape& shape, const float* x, const float* qk, const float* topology,
                          float* scratch, float* mixed) {
  const int32_t V = shape.joints, C = shape.channels, H = shape.heads, d = shape.width, row = shape.row();
  float *maps = scratch, *weighted = maps + int64_t(V) * row, *queries = weighted + 3 * int64_t(V) * row;
  for (int32_t h = 0; h < H; ++h) {
    graph_maps(shape, qk + h * d, qk + (H + h) * d, queries, maps);
    graph_weighted(shape, maps, topology + int64_t(h) * V * row, weighted);
    graph_product({weighted, 1, row}, V, x, C, V, C, false, mixed + int64_t(h) * C, int64_t(H) * C);
  }
}

// One frame of d_x and d_qk, and what it adds to d_topology [H, V, row()], turned over; pointers are the frame's. mixed
// holds its own gradient before.
S2V_HD void graph_backward(const GraphAttentionShape& shape, const float* x, const float* qk, const float* topology,
                           float* mixed, float* scratch, float* d_x, float* d_qk, float* d_topology) {
  const int32_t V = shape.joints, C = shape.channels, H = shape.heads, d = shape.width, row = shape.row();
  const int64_t square = int64_t(V) * row, step = 2 * int64_t(H) * d;
  float *maps = scratch, *weighted = maps + square, *d_maps = weighted + square, *d_weighted = d_maps + square;
  float* queries = d_weighted + square;
  float* turned = queries + int64_t(d) * row;
  const float scale = 1.0f / std::sqrt(float(d));
  graph_turned(shape, x, C, C, turned);
  for (int32_t h = 0; h < H; ++h) {
    const float *q = qk + h * d, *k = qk + (H + h) * d;
    float* const of_mixed = mixed + int64_t(h) * C;
    const float* __restrict__ of_head = topology + h * square;
    float* __restrict__ d_of_head = d_topology + h * square;
    graph_maps(shape, q, k, queries, maps);
    graph_weighted(shape, maps, of_head, weighted);
    graph_product({weighted, row, 1}, V, of_mixed, int64_t(H) * C, V, C, h > 0, d_x, C);
    graph_product({of_mixed, int64_t(H) * C, 1}, V, turned, row, C, row, false, d_weighted, row);
    graph_product({weighted, 1, row}, V, x, C, V, C, false, of_mixed, int64_t(H) * C);
    graph_turned(shape, d_weighted, row, V, d_maps);
    for (int32_t i = 0; i < row; i += kGraphLanes) {
      GraphPack sum = {};
      for (int32_t at = i; at < square; at += row) {
        const GraphPack map = load<kGraphLanes>(maps + at), grad_map = load<kGraphLanes>(d_maps + at);
        store<kGraphLanes>(d_of_head + at, load<kGraphLanes>(d_of_head + at) + map * grad_map);
        const GraphPack through = grad_map * load<kGraphLanes>(of_head + at);
        store<kGraphLanes>(d_maps + at, through);
        sum = sum + map * through;
      }
      for (int32_t at = i; at < square; at += row)
        store<kGraphLanes>(d_maps + at,
                           load<kGraphLanes>(maps + at) * (load<kGraphLanes>(d_maps + at) - sum) * scale);
    }
    graph_product({d_maps, 1, row}, V, k, step, V, d, false, d_qk + h * d, step);
    graph_product({d_maps, row, 1}, V, q, step, V, d, false, d_qk + (H + h) * d, step);
  }
}

}  // namespace s2v
