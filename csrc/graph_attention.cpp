// graph_attention on the host: frames are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "graph_attention.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "graph_attention.cuh"
#include "parallel.h"

namespace s2v {
namespace {

constexpr int64_t kFrames = 32;  // of a range

S2V_WIDE_CLONES void forward_range(const GraphAttentionShape& shape, const GraphAttentionCall& call, float* scratch,
                              int64_t begin, int64_t end) {
  const int64_t joints = shape.joints, numbers = joints * shape.channels;
  const int64_t of_qk = 2 * joints * shape.heads * shape.width;
  float* topology = scratch + graph_scratch(shape);
  graph_padded(shape, call.topology, topology);
  for (int64_t f = begin; f < end; ++f)
    graph_forward(shape, call.x + f * numbers, call.qk + f * of_qk, topology, scratch,
                  call.mixed + f * numbers * shape.heads);
}

S2V_WIDE_CLONES void backward_range(const GraphAttentionShape& shape, const GraphAttentionBackwardCall& call,
                               float* scratch, int64_t begin, int64_t end) {
  const int64_t joints = shape.joints, numbers = joints * shape.channels;
  const int64_t of_qk = 2 * joints * shape.heads * shape.width;
  const int64_t rows = shape.heads * joints;
  float *topology = scratch + graph_scratch(shape), *d_topology = topology + rows * shape.row();
  graph_padded(shape, call.topology, topology);
  std::fill_n(d_topology, rows * shape.row(), 0.0f);
  for (int64_t f = begin; f < end; ++f)
    graph_backward(shape, call.x + f * numbers, call.qk + f * of_qk, topology, call.mixed + f * numbers * shape.heads,
                   scratch, call.d_x + f * numbers, call.d_qk + f * of_qk, d_topology);
  graph_unpadded(shape, d_topology, call.d_topology + begin / kFrames * rows * joints);
}

void require(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

template <class Call>
GraphAttentionShape checked(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.frames >= 0 && call.joints >= 1 && call.channels >= 1 && call.heads >= 1 && call.width >= 1,
          "graph_attention: sizes of 1 or more, and frames of 0 or more");
  require(call.joints <= most && call.channels <= most && call.heads <= most && call.width <= most,
          "graph_attention: a size of 2**31 or more");
  require((call.x != nullptr && call.qk != nullptr && call.topology != nullptr) || call.frames == 0,
          "graph_attention: x, qk or topology is a null pointer");
  return {call.frames, int32_t(call.joints), int32_t(call.channels), int32_t(call.heads), int32_t(call.width)};
}

// Of a range: a frame's, the topology and its gradient.
int64_t scratch_numbers(const GraphAttentionShape& shape) {
  return graph_scratch(shape) + 2 * int64_t(shape.heads) * shape.joints * shape.row();
}

}  // namespace

int64_t graph_attention_parts(int64_t frames) { return (frames + kFrames - 1) / kFrames; }

void graph_attention(const GraphAttentionCall& call, int threads) {
  const GraphAttentionShape shape = checked(call);
  if (shape.frames == 0) return;
  require(call.mixed != nullptr, "graph_attention: mixed is a null pointer");
  parallel_for(shape.frames, kFrames, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_numbers(shape));
    forward_range(shape, call, scratch.data(), begin, end);
  });
}

void graph_attention_backward(const GraphAttentionBackwardCall& call, int threads) {
  const GraphAttentionShape shape = checked(call);
  if (shape.frames == 0) return;
  require(call.mixed != nullptr && call.d_x != nullptr && call.d_qk != nullptr && call.d_topology != nullptr,
          "graph_attention: mixed, d_x, d_qk or d_topology is a null pointer");
  parallel_for(shape.frames, kFrames, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_numbers(shape));
    backward_range(shape, call, scratch.data(), begin, end);
  });
}

}  // namespace s2v
