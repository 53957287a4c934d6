// graph_attention and its gradient: the norm of rows, and the work for one frame.
//
// mixed[i, h] = sum over j of topology[h, i, j] * softmax_j(q[i, h] k[j, h] / sqrt(d)) * x[j] (InfoGCN, Chi et al., CVPR
// 2022). Maps of a frame stay in the first cache and are made again for the gradient; mixed numbers of a few frames stay
// in the second one, for the linear map a head that comes after.
#pragma once

#include <cmath>
#include <cstring>

#include "pack.cuh"
#include "product.h"

namespace s2v {

struct GraphAttentionShape {
  int64_t frames;
  int32_t joints, channels, heads, width, results;  // V, C, H, d, E
  int32_t lanes;                                    // numbers in a register

  S2V_HD int64_t queries() const { return 2 * int64_t(heads) * width; }  // and keys, of a joint

  // Numbers of a map's row: joints, rounded up to whole registers.
  S2V_HD int32_t row() const { return (joints + lanes - 1) / lanes * lanes; }
};

// exp of numbers up to 0, to 2e-7: by a power of two and a polynomial (Cephes).
template <int kLanes>
S2V_HD Pack<kLanes> graph_exp(const Pack<kLanes>& of) {
  typedef typename Pack<kLanes>::Vector Vector;
  typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
  const Vector x = of.at < -87.0f ? of.at * 0.0f - 87.0f : of.at;
  const Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);  // towards zero: the nearest
  const Vector power = __builtin_convertvector(n, Vector);
  const Vector r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers bits = (n + 127) << 23;
  Vector scale;
  memcpy(&scale, &bits, sizeof(scale));
  return {y * scale};
}

// The sum over c < count of of(c, LaneCount), a pack at c.
template <int kLanes, class Of>
S2V_HD float graph_sum(int32_t count, const Of& of) {
  Pack<kLanes> sum = {};
  int32_t c = 0;
  for (; c + kLanes <= count; c += kLanes) sum = sum + of(c, LaneCount<kLanes>());
  float all = total(sum);
  each_pack<kLanes>(c, count, [&](int64_t at, auto lanes) { all += total(of(at, lanes)); });
  return all;
}

// normed: a row of x without its mean and divided by its deviation; returns one over the deviation.
template <int kLanes>
S2V_HD float graph_norm(int32_t channels, double eps, const float* x, float* normed) {
  const auto centred = [&](int64_t c, auto lanes, float mean) { return load<lanes()>(x + c) + -mean; };
  const float mean =
      graph_sum<kLanes>(channels, [&](int64_t c, auto lanes) { return load<lanes()>(x + c); }) / float(channels);
  const float squares = graph_sum<kLanes>(channels, [&](int64_t c, auto lanes) {
    const Pack<lanes()> value = centred(c, lanes, mean);
    return value * value;
  });
  const float scale = float(1.0 / std::sqrt(double(squares) / channels + eps));
  each_pack<kLanes>(0, channels,
                    [&](int64_t c, auto lanes) { store<lanes()>(normed + c, centred(c, lanes, mean) * scale); });
  return scale;
}

// Adds to d_x what a row of x gets through its norm.
template <int kLanes>
S2V_HD void graph_norm_backward(int32_t channels, float scale, const float* normed, const float* d_normed, float* d_x) {
  const float sum = graph_sum<kLanes>(channels, [&](int64_t c, auto lanes) { return load<lanes()>(d_normed + c); });
  const float product = graph_sum<kLanes>(
      channels, [&](int64_t c, auto lanes) { return load<lanes()>(d_normed + c) * load<lanes()>(normed + c); });
  each_pack<kLanes>(0, channels, [&](int64_t c, auto lanes) {
    const Pack<lanes()> through = load<lanes()>(d_normed + c) + -sum / float(channels) -
                                  load<lanes()>(normed + c) * (product / float(channels));
    store<lanes()>(d_x + c, load<lanes()>(d_x + c) + through * scale);
  });
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
template <int kLanes>
S2V_HD void graph_maps(const GraphAttentionShape& shape, const float* q, const float* k, float* queries,
                       float* __restrict__ maps) {
  const int32_t V = shape.joints, row = shape.row();
  const int64_t step = 2 * int64_t(shape.heads) * shape.width;
  graph_turned(shape, q, step, shape.width, queries);
  product({k, step, false}, V, {queries, row}, shape.width, row, false, maps, row);
  const float scale = 1.0f / std::sqrt(float(shape.width));
  for (int32_t i = 0; i < row; i += kLanes) {
    Pack<kLanes> largest = load<kLanes>(maps + i), sum = {};
    for (int32_t j = 1; j < V; ++j) {
      const Pack<kLanes> next = load<kLanes>(maps + j * row + i);
      largest.at = next.at > largest.at ? next.at : largest.at;
    }
    for (int32_t j = 0; j < V; ++j) {
      const Pack<kLanes> value = graph_exp((load<kLanes>(maps + j * row + i) - largest) * scale);
      store<kLanes>(maps + j * row + i, value);
      sum = sum + value;
    }
    const Pack<kLanes> factor = {1.0f / sum.at};
    for (int32_t j = 0; j < V; ++j)
      store<kLanes>(maps + j * row + i, load<kLanes>(maps + j * row + i) * factor);
  }
}

// weighted = maps times the head's topology, [V, row()] all of them.
template <int kLanes>
S2V_HD void graph_weighted(const GraphAttentionShape& shape, const float* __restrict__ maps,
                           const float* __restrict__ topology, float* __restrict__ weighted) {
  const int64_t square = int64_t(shape.joints) * shape.row();
  for (int64_t at = 0; at < square; at += kLanes)
    store<kLanes>(weighted + at, load<kLanes>(maps + at) * load<kLanes>(topology + at));
}

// One frame of mixed; pointers are the frame's. topology: [H, V, row()], turned over.
template <int kLanes>
S2V_HD void graph_forward(const GraphAttentionShape& shape, const float* x, const float* qk, const float* topology,
                          float* scratch, float* mixed) {
  const int32_t V = shape.joints, C = shape.channels, H = shape.heads, d = shape.width, row = shape.row();
  float *maps = scratch, *weighted = maps + int64_t(V) * row, *queries = weighted + 3 * int64_t(V) * row;
  for (int32_t h = 0; h < H; ++h) {
    graph_maps<kLanes>(shape, qk + h * d, qk + (H + h) * d, queries, maps);
    graph_weighted<kLanes>(shape, maps, topology + int64_t(h) * V * row, weighted);
    product({weighted, row, true}, V, {x, C}, V, C, false, mixed + int64_t(h) * C, int64_t(H) * C);
  }
}

// One frame of d_x and d_qk, and what it adds to d_topology [H, V, row()], turned over; pointers are the frame's. mixed
// holds its own gradient before.
template <int kLanes>
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
    graph_maps<kLanes>(shape, q, k, queries, maps);
    graph_weighted<kLanes>(shape, maps, of_head, weighted);
    product({weighted, row, false}, V, {of_mixed, int64_t(H) * C}, V, C, h > 0, d_x, C);
    product({of_mixed, int64_t(H) * C, false}, V, {turned, row}, C, row, false, d_weighted, row);
    product({weighted, row, true}, V, {x, C}, V, C, false, of_mixed, int64_t(H) * C);
    graph_turned(shape, d_weighted, row, V, d_maps);
    for (int32_t i = 0; i < row; i += kLanes) {
      Pack<kLanes> sum = {};
      for (int32_t at = i; at < square; at += row) {
        const Pack<kLanes> map = load<kLanes>(maps + at), grad_map = load<kLanes>(d_maps + at);
        store<kLanes>(d_of_head + at, load<kLanes>(d_of_head + at) + map * grad_map);
        const Pack<kLanes> through = grad_map * load<kLanes>(of_head + at);
        store<kLanes>(d_maps + at, through);
        sum = sum + map * through;
      }
      for (int32_t at = i; at < square; at += row)
        store<kLanes>(d_maps + at, load<kLanes>(maps + at) * (load<kLanes>(d_maps + at) - sum) * scale);
    }
    product({d_maps, row, true}, V, {k, step}, V, d, false, d_qk + h * d, step);
    product({d_maps, row, false}, V, {q, step}, V, d, false, d_qk + (H + h) * d, step);
  }
}

}  // namespace s2v
