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

constexpr int kGraphLanes = 16;  // numbers in a register

struct GraphAttentionShape {
  int64_t frames;
  int32_t joints, channels, heads, width, results;  // V, C, H, d, E

  S2V_HD int64_t queries() const { return 2 * int64_t(heads) * width; }  // and keys, of a joint

  // Numbers of a map's row: joints, rounded up to whole registers.
  S2V_HD int32_t row() const { return (joints + kGraphLanes - 1) / kGraphLanes * kGraphLanes; }
};

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


// The sum over c of of(c), of a pack or of a single number at c.
template <class Of>
S2V_HD float graph_sum(int32_t count, const Of& of) {
  GraphPack sum = {};
  int32_t c = 0;
  for (; c + kGraphLanes <= count; c += kGraphLanes) sum = sum + of(c, GraphPack{});
  float all = total(sum);
  for (; c < count; ++c) all += of(c, Pack<1>{}).at[0];
  return all;
}

// Calls each(c, pack) for the packs and the single numbers of a row.
template <class Each>
S2V_HD void graph_each(int32_t count, const Each& each) {
  int32_t c = 0;
  for (; c + kGraphLanes <= count; c += kGraphLanes) each(c, GraphPack{});
  for (; c < count; ++c) each(c, Pack<1>{});
}

#define S2V_GRAPH_LOAD(from) load<sizeof(pack) / sizeof(float)>((from) + c)

// normed: a row of x without its mean and divided by its deviation; returns one over the deviation.
S2V_HD float graph_norm(int32_t channels, double eps, const float* x, float* normed) {
  const float mean = graph_sum(channels, [&](int32_t c, const auto& pack) { return S2V_GRAPH_LOAD(x); }) / float(channels);
  const float squares = graph_sum(channels, [&](int32_t c, const auto& pack) {
    const auto centred = S2V_GRAPH_LOAD(x) + -mean;
    return centred * centred;
  });
  const float scale = float(1.0 / std::sqrt(double(squares) / channels + eps));
  graph_each(channels, [&](int32_t c, const auto& pack) {
    store<sizeof(pack) / sizeof(float)>(normed + c, (S2V_GRAPH_LOAD(x) + -mean) * scale);
  });
  return scale;
}

// Adds to d_x what a row of x gets through its norm.
S2V_HD void graph_norm_backward(int32_t channels, float scale, const float* normed, const float* d_normed, float* d_x) {
  const float sum = graph_sum(channels, [&](int32_t c, const auto& pack) { return S2V_GRAPH_LOAD(d_normed); });
  const float product = graph_sum(
      channels, [&](int32_t c, const auto& pack) { return S2V_GRAPH_LOAD(d_normed) * S2V_GRAPH_LOAD(normed); });
  graph_each(channels, [&](int32_t c, const auto& pack) {
    const auto through = S2V_GRAPH_LOAD(d_normed) + -sum / float(channels) -
                         S2V_GRAPH_LOAD(normed) * (product / float(channels));
    store<sizeof(pack) / sizeof(float)>(d_x + c, S2V_GRAPH_LOAD(d_x) + through * scale);
  });
}

#undef S2V_GRAPH_LOAD

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
  product({k, step, false}, V, {queries, row}, shape.width, row, false, maps, row);
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
    product({weighted, row, true}, V, {x, C}, V, C, false, mixed + int64_t(h) * C, int64_t(H) * C);
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
    product({weighted, row, false}, V, {of_mixed, int64_t(H) * C}, V, C, h > 0, d_x, C);
    product({of_mixed, int64_t(H) * C, false}, V, {turned, row}, C, row, false, d_weighted, row);
    product({weighted, row, true}, V, {x, C}, V, C, false, of_mixed, int64_t(H) * C);
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
    product({d_maps, row, true}, V, {k, step}, V, d, false, d_qk + h * d, step);
    product({d_maps, row, false}, V, {q, step}, V, d, false, d_qk + (H + h) * d, step);
  }
}

}  // namespace s2v
