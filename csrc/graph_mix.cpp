// graph_mix on the host: rows are shared out over threads, channels over vector lanes. Of a skeleton's graph nearly all
// entries are zero: only its edges are gone through, once forward and once for both gradients. Both are as fast as
// memory takes the mixed numbers.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "graph_mix.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "pack.cuh"
#include "parallel.h"

namespace s2v {
namespace {

constexpr int kLanes = 16;       // channels in a register
constexpr int64_t kRows = 64;    // of a range

struct Edge {
  int32_t source, target;  // v, and w * K + k: which of the mixed rows
  float weight;
  int64_t at;  // in graph
};

struct Edges {
  std::vector<Edge> edges;      // in the order of `first`
  std::vector<int32_t> first;   // where those of a target, or a source, begin; one more: their number
  std::vector<float> sums;      // of each target's weights
};

// Edges by target, or by source.
Edges edges_of(int64_t joints, int64_t subsets, const float* graph, bool by_source) {
  Edges all;
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

// Channels c ... c + kWidth of the mixed rows of one row.
template <int kWidth>
inline void mix(const Edges& all, int64_t targets, int64_t channels, int64_t c, const float* __restrict__ x,
                float* __restrict__ out) {
  for (int64_t target = 0; target < targets; ++target) {
    Pack<kWidth> sum = {};
    for (int32_t e = all.first[target]; e < all.first[target + 1]; ++e)
      sum = sum + load<kWidth>(x + all.edges[e].source * channels + c) * all.edges[e].weight;
    store<kWidth>(out + target * (channels + 1) + c, sum);
  }
}

// Channels c ... c + kWidth of a row's d_x; what edges get by them is added to d_edges, kLanes numbers each.
template <int kWidth>
inline void mix_backward(const Edges& all, int64_t joints, int64_t channels, int64_t c, const float* __restrict__ x,
                         const float* __restrict__ grad, float* __restrict__ d_x, float* __restrict__ d_edges) {
  for (int64_t v = 0; v < joints; ++v) {
    const Pack<kWidth> own = load<kWidth>(x + v * channels + c);
    Pack<kWidth> sum = {};
    for (int32_t e = all.first[v]; e < all.first[v + 1]; ++e) {
      const Pack<kWidth> upstream = load<kWidth>(grad + all.edges[e].target * (channels + 1) + c);
      sum = sum + upstream * all.edges[e].weight;
      float* const d_edge = d_edges + int64_t(e) * kLanes;
      store<kWidth>(d_edge, load<kWidth>(d_edge) + upstream * own);
    }
    store<kWidth>(d_x + v * channels + c, sum);
  }
}

S2V_WIDE_CLONES void forward_range(const GraphMixCall& call, const Edges& all, int64_t begin, int64_t end) {
  const int64_t C = call.channels, targets = call.joints * call.subsets, full = C / kLanes * kLanes;
  for (int64_t r = begin; r < end; ++r) {
    const float* x = call.x + r * call.joints * C;
    float* out = call.out + r * targets * (C + 1);
    for (int64_t c = 0; c < full; c += kLanes) mix<kLanes>(all, targets, C, c, x, out);
    for (int64_t c = full; c < C; ++c) mix<1>(all, targets, C, c, x, out);
    for (int64_t target = 0; target < targets; ++target) out[target * (C + 1) + C] = all.sums[target];
  }
}

// d_edges: [edges, kLanes], zeros before.
S2V_WIDE_CLONES void backward_range(const GraphMixBackwardCall& call, const Edges& all, int64_t begin, int64_t end,
                                    float* d_edges) {
  const int64_t C = call.channels, V = call.joints, full = C / kLanes * kLanes;
  for (int64_t r = begin; r < end; ++r) {
    const float *x = call.x + r * V * C, *grad = call.grad + r * V * call.subsets * (C + 1);
    float* d_x = call.d_x + r * V * C;
    for (int64_t c = 0; c < full; c += kLanes) mix_backward<kLanes>(all, V, C, c, x, grad, d_x, d_edges);
    for (int64_t c = full; c < C; ++c) mix_backward<1>(all, V, C, c, x, grad, d_x, d_edges);
    for (size_t e = 0; e < all.edges.size(); ++e) d_edges[e * kLanes] += grad[all.edges[e].target * (C + 1) + C];
  }
}

void require(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

template <class Call>
void check(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.rows >= 0 && call.joints >= 0 && call.channels >= 0 && call.subsets >= 0, "graph_mix: a negative size");
  require(call.joints <= 46340 && call.subsets * call.joints * call.joints <= most, "graph_mix: a graph of 2**31 entries");
  require(call.graph != nullptr || call.subsets * call.joints == 0, "graph_mix: graph is a null pointer");
  require(call.x != nullptr || call.rows * call.joints * call.channels == 0, "graph_mix: x is a null pointer");
}

}  // namespace

void graph_mix(const GraphMixCall& call, int threads) {
  check(call);
  if (call.rows * call.joints * call.subsets == 0) return;
  require(call.out != nullptr, "graph_mix: out is a null pointer");
  const Edges all = edges_of(call.joints, call.subsets, call.graph, false);
  parallel_for(call.rows, kRows, threads,
               [&](int64_t begin, int64_t end) { forward_range(call, all, begin, end); });
}

void graph_mix_backward(const GraphMixBackwardCall& call, int threads) {
  check(call);
  require(call.d_graph != nullptr || call.subsets * call.joints == 0, "graph_mix: d_graph is a null pointer");
  std::fill_n(call.d_graph, call.subsets * call.joints * call.joints, 0.0f);
  if (call.rows * call.joints * call.subsets == 0) return;
  require(call.grad != nullptr && (call.d_x != nullptr || call.channels == 0),
          "graph_mix: grad or d_x is a null pointer");
  const Edges all = edges_of(call.joints, call.subsets, call.graph, true);
  const int64_t numbers = int64_t(all.edges.size()) * kLanes;
  std::vector<float> d_edges((call.rows + kRows - 1) / kRows * numbers);
  parallel_for(call.rows, kRows, threads, [&](int64_t begin, int64_t end) {
    backward_range(call, all, begin, end, d_edges.data() + begin / kRows * numbers);
  });
  for (size_t at = 0; at < d_edges.size(); ++at) call.d_graph[all.edges[at / kLanes % all.edges.size()].at] += d_edges[at];
}

}  // namespace s2v
