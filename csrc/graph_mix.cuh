// graph_mix and its gradient, the work for some channels of one row.
//
// out[w, k] = sum over v of graph[k, v, w] (x[v], 1), the spatial part of ST-GCN (Yan et al., AAAI 2018). Of a
// skeleton's graph nearly all entries are zero: edges are listed once and gone through for every row. What an edge gets
// by the channels of a row is added up in a register of its own, lane by lane, and its lanes at the very end.
//
// Forward reads x once and writes out once; the gradient reads x and its upstream once and writes d_x once.
#pragma once

#include <vector>

#include "pack.cuh"

namespace s2v {

struct GraphEdge {
  int32_t source, target;  // v, and w * K + k: which of the mixed rows
  float weight;
  int64_t at;  // in graph
};

struct GraphEdges {
  std::vector<GraphEdge> edges;  // in the order of `first`
  std::vector<int32_t> first;    // where those of a target, or a source, begin; one more: their number
  std::vector<float> sums;       // of each target's weights
};

// Channels c ... c + kPacks * kWidth of the mixed rows of one row.
template <int kWidth, int kPacks>
S2V_HD void graph_mix_row(const GraphEdges& all, int64_t targets, int64_t channels, int64_t c,
                          const float* __restrict__ x, float* __restrict__ out) {
  const GraphEdge* edge = all.edges.data();
  for (int64_t target = 0; target < targets; ++target) {
    Pack<kWidth> sums[kPacks] = {};
    for (const GraphEdge* const end = all.edges.data() + all.first[target + 1]; edge != end; ++edge)
      for (int p = 0; p < kPacks; ++p)
        sums[p] = sums[p] + load<kWidth>(x + edge->source * channels + c + p * kWidth) * edge->weight;
    for (int p = 0; p < kPacks; ++p) store<kWidth>(out + target * (channels + 1) + c + p * kWidth, sums[p]);
  }
}

// Channels c ... c + kPacks * kWidth of a row's d_x; what edges get by them is added to d_edges, kLanes numbers each,
// kWidth or more.
template <int kLanes, int kWidth, int kPacks>
S2V_HD void graph_mix_row_backward(const GraphEdges& all, int64_t joints, int64_t channels, int64_t c,
                                   const float* __restrict__ x, const float* __restrict__ grad,
                                   float* __restrict__ d_x, float* __restrict__ d_edges) {
  for (int64_t v = 0; v < joints; ++v) {
    Pack<kWidth> own[kPacks], sums[kPacks] = {};
    for (int p = 0; p < kPacks; ++p) own[p] = load<kWidth>(x + v * channels + c + p * kWidth);
    for (int32_t e = all.first[v]; e < all.first[v + 1]; ++e) {
      const float* const from = grad + all.edges[e].target * (channels + 1) + c;
      float* const d_edge = d_edges + int64_t(e) * kLanes;
      Pack<kWidth> by_edge = load<kWidth>(d_edge);
      for (int p = 0; p < kPacks; ++p) {
        const Pack<kWidth> upstream = load<kWidth>(from + p * kWidth);
        sums[p] = sums[p] + upstream * all.edges[e].weight;
        by_edge = by_edge + upstream * own[p];
      }
      store<kWidth>(d_edge, by_edge);
    }
    for (int p = 0; p < kPacks; ++p) store<kWidth>(d_x + v * channels + c + p * kWidth, sums[p]);
  }
}

}  // namespace s2v
