// graph_mix on the host: rows are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "graph_mix.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "graph_mix.cuh"
#include "lanes.h"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int64_t kRows = 64;  // of a range

// Edges by target, or by source.
GraphEdges edges_of(int64_t joints, int64_t subsets, const float* graph, bool by_source) {
  GraphEdges all;
  const int64_t targets = joints * subsets;
  all.sums.assign(targets, 0.0f);
  const auto add = [&](int64_t target, int64_t v) {
    const int64_t w = target / subsets, k = target % subsets, at = (k * joints + v) * joints + w;
    if (graph[at] == 0.0f) return;
    all.edges.push_back({int32_t(v), int32_t(target), graph[at], at});
    all.sums[target] += graph[at];
  };
  const int64_t outer = by_source ? joints : targets, inner = by_source ? targets : joints;
  for (int64_t i = 0; i < outer; ++i) {
    all.first.push_back(int32_t(all.edges.size()));
    for (int64_t j = 0; j < inner; ++j) by_source ? add(j, i) : add(i, j);
  }
  all.first.push_back(int32_t(all.edges.size()));
  return all;
}

template <int kLanes>
S2V_HD void forward_range(const GraphMixCall& call, const GraphEdges& all, int64_t begin, int64_t end) {
  const int64_t C = call.channels, targets = call.joints * call.subsets;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = call.x + r * call.joints * C;
    float* out = call.out + r * targets * (C + 1);
    each_packs<kLanes, 4>(0, C, [&](int64_t c, auto lanes, auto packs) {
      graph_mix_row<lanes(), packs()>(all, targets, C, c, x, out);
    });
    for (int64_t target = 0; target < targets; ++target) out[target * (C + 1) + C] = all.sums[target];
  }
}

// d_edges: [edges, kLanes], zeros before.
template <int kLanes>
S2V_HD void backward_range(const GraphMixBackwardCall& call, const GraphEdges& all, int64_t begin, int64_t end,
                           float* d_edges) {
  const int64_t C = call.channels, V = call.joints;
  for (int64_t r = begin; r < end; ++r) {
    const float *x = call.x + r * V * C, *grad = call.grad + r * V * call.subsets * (C + 1);
    float* d_x = call.d_x + r * V * C;
    each_packs<kLanes, 4>(0, C, [&](int64_t c, auto lanes, auto packs) {
      graph_mix_row_backward<kLanes, lanes(), packs()>(all, V, C, c, x, grad, d_x, d_edges);
    });
    for (size_t e = 0; e < all.edges.size(); ++e) d_edges[e * kLanes] += grad[all.edges[e].target * (C + 1) + C];
  }
}

template <class Call>
void check(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.rows >= 0 && call.joints >= 0 && call.channels >= 0 && call.subsets >= 0, "graph_mix: a negative size");
  require(call.joints <= 46340 && call.subsets <= most / (call.joints * call.joints + 1),
          "graph_mix: a graph of 2**31 entries or more");
  require(call.graph != nullptr || call.subsets * call.joints == 0, "graph_mix: graph is a null pointer");
  require(call.x != nullptr || call.rows * call.joints * call.channels == 0, "graph_mix: x is a null pointer");
}

}  // namespace

void graph_mix(const GraphMixCall& call, int threads) {
  check(call);
  if (call.rows * call.joints * call.subsets == 0) return;
  require(call.out != nullptr, "graph_mix: out is a null pointer");
  const GraphEdges all = edges_of(call.joints, call.subsets, call.graph, false);
  parallel_for(call.rows, kRows, threads, [&](int64_t begin, int64_t end) {
    for_lanes(lanes_in_use, [&](auto lanes) { forward_range<lanes()>(call, all, begin, end); });
  });
}

void graph_mix_backward(const GraphMixBackwardCall& call, int threads) {
  check(call);
  require(call.d_graph != nullptr || call.subsets * call.joints == 0, "graph_mix: d_graph is a null pointer");
  std::fill_n(call.d_graph, call.subsets * call.joints * call.joints, 0.0f);
  if (call.subsets == 0 && call.d_x != nullptr) std::fill_n(call.d_x, call.rows * call.joints * call.channels, 0.0f);
  if (call.rows * call.joints * call.subsets == 0) return;
  require(call.grad != nullptr && (call.d_x != nullptr || call.channels == 0),
          "graph_mix: grad or d_x is a null pointer");
  const GraphEdges all = edges_of(call.joints, call.subsets, call.graph, true);
  const int lanes = lanes_in_use;
  const int64_t numbers = int64_t(all.edges.size()) * lanes;
  std::vector<float> d_edges((call.rows + kRows - 1) / kRows * numbers);
  parallel_for(call.rows, kRows, threads, [&](int64_t begin, int64_t end) {
    for_lanes(lanes, [&](auto width) {
      backward_range<width()>(call, all, begin, end, d_edges.data() + begin / kRows * numbers);
    });
  });
  for (size_t at = 0; at < d_edges.size(); ++at)
    call.d_graph[all.edges[at / lanes % all.edges.size()].at] += d_edges[at];
}

}  // namespace s2v
