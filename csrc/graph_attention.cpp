// graph_attention on the host: frames are shared out over threads, channels over vector lanes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // where there are such instructions: sums of products, held to a tolerance
#endif
#include "graph_attention.h"

#include <algorithm>
#include <limits>

#include "graph_attention.cuh"
#include "lanes.h"
#include "numbers.h"
#include "parallel.h"
#include "require.h"
#include "split_product.h"

namespace s2v {
namespace {

constexpr int64_t kFrames = 32;           // of a range
constexpr int64_t kLine = 16;             // numbers of a cache line
constexpr int64_t kMixed = int64_t(1) << 16;  // mixed numbers at a time: what the second cache holds beside the weight

// Frames that are mixed before the linear map takes them: of half as many rows as it has results, or more, so that the
// weight is not read much more often than what it is multiplied with.
int64_t frames_of_a_block(const GraphAttentionShape& shape) {
  const int64_t numbers = int64_t(shape.joints) * shape.heads * shape.channels;
  return std::min(kFrames, std::max({int64_t(1), kMixed / numbers, int64_t(shape.results / shape.joints / 2)}));
}

// Numbers of a frame.
struct Frame {
  int64_t x, qk, mixed, out, maps;
  explicit Frame(const GraphAttentionShape& shape)
      : x(int64_t(shape.joints) * shape.channels),
        qk(int64_t(shape.joints) * shape.queries()),
        mixed(x * shape.heads),
        out(int64_t(shape.joints) * shape.results),
        maps(int64_t(shape.heads) * shape.joints * shape.row()) {}
};

// Scratch of a range.
struct Scratch {
  float *frame, *topology, *d_topology, *normed, *d_normed, *scales, *qk, *d_qk, *mixed, *grad;
  Numbers numbers;

  Scratch(const GraphAttentionShape& shape, bool backward) : numbers(divide(shape, backward, nullptr)) {
    divide(shape, backward, numbers.at());
  }

 private:
  // How many there are, from `begin` on.
  int64_t divide(const GraphAttentionShape& shape, bool backward, float* begin) {
    const Frame of(shape);
    const int64_t most = frames_of_a_block(shape);
    int64_t count = 0;
    const auto next = [&](int64_t some) {
      const int64_t at = count;
      count += (some + kLine - 1) / kLine * kLine;
      return begin == nullptr ? nullptr : begin + at;
    };
    frame = next(graph_scratch(shape));
    topology = next(of.maps);
    normed = next(most * of.x);
    scales = next(most * shape.joints);
    qk = next(most * of.qk);
    mixed = next(most * of.mixed);
    d_topology = next(backward ? of.maps : 0);
    d_normed = next(backward ? most * of.x : 0);
    d_qk = next(backward ? most * of.qk : 0);
    grad = next(backward ? most * of.out : 0);
    return count;
  }
};

// Weights as products take them.
struct Weights {
  const float *qk, *qk_back, *heads;
};

// How all products but those of a frame are made: with the right in panels, or split with its rows one after the other.
class Products {
 public:
  explicit Products(bool split) : split_(split) {}

  // at(k, n): where a number of the right [count, columns] is.
  template <class At>
  void lay(int64_t count, int64_t columns, const At& at, float* right) const {
    if (!split_) return product_panels(count, columns, at, right);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t n = 0; n < columns; ++n) *right++ = *at(k, n);
  }

  // As `product`, of a right that `lay` has laid.
  void operator()(const ProductLeft& left, int64_t rows, const float* right, int64_t count, int64_t columns, bool add,
                  float* out, int64_t out_row) const {
    if (!split_) return product(left, rows, {right, 0}, count, columns, add, out, out_row);
    split_product({rows, count, columns, left.at, left.step, left.turned, right, columns, nullptr, add, out, out_row}, 1);
  }

  // The same of a right [count, columns] whose rows lie one after the other; panels: room for as many numbers.
  void of_rows(const ProductLeft& left, int64_t rows, const float* right, float* panels, int64_t count, int64_t columns,
               bool add, float* out) const {
    if (!split_) row_panels(count, columns, right, panels);
    (*this)(left, rows, split_ ? right : panels, count, columns, add, out, columns);
  }

 private:
  bool split_;
};

// Queries and keys of rows of x. weight: [C, 2 * H * d], laid.
template <int kLanes>
S2V_HD void queries_and_keys(const GraphAttentionShape& shape, const float* x, int64_t rows, double eps,
                             const float* weight, const float* bias, const Products& products, const Scratch& scratch) {
  const int64_t C = shape.channels, width = shape.queries();
  for (int64_t r = 0; r < rows; ++r) {
    scratch.scales[r] = graph_norm<kLanes>(shape.channels, eps, x + r * C, scratch.normed + r * C);
    std::copy_n(bias, width, scratch.qk + r * width);
  }
  products({scratch.normed, C, false}, rows, weight, C, width, true, scratch.qk, width);
}

// weights.heads: [H * C, E], laid.
template <int kLanes>
S2V_HD void forward_range(const GraphAttentionShape& shape, const GraphAttentionCall& call, const Weights& weights,
                          const Scratch& scratch, int64_t begin, int64_t end) {
  const Frame frame(shape);
  const int64_t depth = int64_t(shape.heads) * shape.channels, most = frames_of_a_block(shape);
  const Products products(call.split);
  graph_padded(shape, call.topology, scratch.topology);
  for (int64_t first = begin; first < end; first += most) {
    const int64_t count = std::min(most, end - first), rows = count * shape.joints;
    const float* const x = call.x + first * frame.x;
    queries_and_keys<kLanes>(shape, x, rows, call.eps, weights.qk, call.qk_bias, products, scratch);
    for (int64_t f = 0; f < count; ++f)
      graph_forward<kLanes>(shape, x + f * frame.x, scratch.qk + f * frame.qk, scratch.topology, scratch.frame,
                            scratch.mixed + f * frame.mixed);
    products({scratch.mixed, depth, false}, rows, weights.heads, depth, shape.results, false,
             call.out + first * frame.out, shape.results);
  }
}

// weights.heads: for each head [E, C], laid.
template <int kLanes>
S2V_HD void backward_range(const GraphAttentionShape& shape, const GraphAttentionBackwardCall& call,
                           const Weights& weights, const Scratch& scratch, int64_t begin, int64_t end) {
  const Frame frame(shape);
  const int64_t C = shape.channels, E = shape.results, depth = shape.heads * C, width = shape.queries();
  const int64_t most = frames_of_a_block(shape), part = begin / kFrames;
  const Products products(call.split);
  float *const d_weight = call.d_weight + part * depth * E, *const d_qk_weight = call.d_qk_weight + part * width * C;
  float* const d_qk_bias = call.d_qk_bias + part * width;
  graph_padded(shape, call.topology, scratch.topology);
  std::fill_n(scratch.d_topology, frame.maps, 0.0f);
  std::fill_n(d_qk_bias, width, 0.0f);
  for (int64_t first = begin; first < end; first += most) {
    const int64_t count = std::min(most, end - first), rows = count * shape.joints;
    const float *const x = call.x + first * frame.x, *const grad = call.grad + first * frame.out;
    float* const d_x = call.d_x + first * frame.x;
    queries_and_keys<kLanes>(shape, x, rows, call.eps, weights.qk, call.qk_bias, products, scratch);
    for (int32_t h = 0; h < shape.heads; ++h)
      products({grad, E, false}, rows, weights.heads + h * E * C, E, C, false, scratch.mixed + h * C, depth);
    for (int64_t f = 0; f < count; ++f)
      graph_backward<kLanes>(shape, x + f * frame.x, scratch.qk + f * frame.qk, scratch.topology,
                             scratch.mixed + f * frame.mixed, scratch.frame, d_x + f * frame.x,
                             scratch.d_qk + f * frame.qk, scratch.d_topology);
    products.of_rows({scratch.mixed, depth, true}, depth, grad, scratch.grad, rows, E, first > begin, d_weight);
    product({scratch.d_qk, width, true}, width, {scratch.normed, C}, rows, C, first > begin, d_qk_weight, C);
    products({scratch.d_qk, width, false}, rows, weights.qk_back, width, C, false, scratch.d_normed, C);
    for (int64_t r = 0; r < rows; ++r) {
      graph_norm_backward<kLanes>(shape.channels, scratch.scales[r], scratch.normed + r * C, scratch.d_normed + r * C,
                                  d_x + r * C);
      for (int64_t i = 0; i < width; ++i) d_qk_bias[i] += scratch.d_qk[r * width + i];
    }
  }
  graph_unpadded(shape, scratch.d_topology, call.d_topology + part * shape.heads * shape.joints * shape.joints);
}

template <class Call>
GraphAttentionShape checked(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.frames >= 0 && call.joints >= 0 && call.results >= 0 && call.channels >= 1 && call.heads >= 1 &&
              call.width >= 1,
          "graph_attention: sizes of 1 or more; frames, joints and results of 0 or more");
  require(call.joints <= most && call.channels <= most && call.heads <= most && call.width <= most &&
              call.results <= most,
          "graph_attention: a size of 2**31 or more");
  require((call.x != nullptr && call.qk_weight != nullptr && call.qk_bias != nullptr && call.topology != nullptr &&
           call.weight != nullptr) ||
              call.frames * call.joints * call.results == 0,
          "graph_attention: x, qk_weight, qk_bias, topology or weight is a null pointer");
  return {call.frames,         int32_t(call.joints), int32_t(call.channels),
          int32_t(call.heads), int32_t(call.width),  int32_t(call.results),
          lanes_in_use};
}

// Whether there is no result, so that all gradients are zero.
bool nothing(const GraphAttentionShape& shape) { return shape.frames * shape.joints * shape.results == 0; }

// The weight of queries and keys as [C, 2 * H * d].
void lay_queries(const GraphAttentionShape& shape, const Products& products, const float* weight, float* to) {
  const int64_t C = shape.channels;
  products.lay(C, shape.queries(), [&](int64_t k, int64_t n) { return weight + n * C + k; }, to);
}

}  // namespace

int64_t graph_attention_parts(int64_t frames) { return (frames + kFrames - 1) / kFrames; }

void graph_attention(const GraphAttentionCall& call, int threads) {
  const GraphAttentionShape shape = checked(call);
  if (nothing(shape)) return;
  require(call.out != nullptr, "graph_attention: out is a null pointer");
  const int64_t C = shape.channels, E = shape.results;
  const Numbers qk(C * shape.queries()), heads(shape.heads * C * E);
  const Products products(call.split);
  lay_queries(shape, products, call.qk_weight, qk.at());
  products.lay(shape.heads * C, E, [&](int64_t k, int64_t n) { return call.weight + (k / C * E + n) * C + k % C; },
               heads.at());
  parallel_for(shape.frames, kFrames, threads, [&](int64_t begin, int64_t end) {
    const Scratch scratch(shape, false);
    for_lanes(shape.lanes, [&](auto lanes) {
      forward_range<lanes()>(shape, call, {qk.at(), nullptr, heads.at()}, scratch, begin, end);
    });
  });
}

void graph_attention_backward(const GraphAttentionBackwardCall& call, int threads) {
  const GraphAttentionShape shape = checked(call);
  const int64_t parts = graph_attention_parts(shape.frames), V = shape.joints;
  const struct {
    float* at;
    int64_t count;
  } gradients[] = {{call.d_x, shape.frames * V * shape.channels},
                   {call.d_qk_weight, parts * shape.queries() * shape.channels},
                   {call.d_qk_bias, parts * shape.queries()},
                   {call.d_topology, parts * shape.heads * V * V},
                   {call.d_weight, parts * shape.heads * shape.channels * shape.results}};
  for (const auto& gradient : gradients)
    require(gradient.at != nullptr || gradient.count == 0, "graph_attention: a gradient is a null pointer");
  if (nothing(shape)) {
    for (const auto& gradient : gradients) std::fill_n(gradient.at, gradient.count, 0.0f);
    return;
  }
  require(call.grad != nullptr, "graph_attention: grad is a null pointer");
  const int64_t C = shape.channels, E = shape.results;
  const Numbers qk(C * shape.queries()), qk_back(C * shape.queries()), heads(shape.heads * C * E);
  const Products products(call.split);
  lay_queries(shape, products, call.qk_weight, qk.at());
  const auto lay_rows = [&](int64_t count, const float* rows, float* to) {
    products.lay(count, C, [&](int64_t k, int64_t n) { return rows + k * C + n; }, to);
  };
  lay_rows(shape.queries(), call.qk_weight, qk_back.at());
  for (int32_t h = 0; h < shape.heads; ++h) lay_rows(E, call.weight + h * E * C, heads.at() + h * E * C);
  parallel_for(shape.frames, kFrames, threads, [&](int64_t begin, int64_t end) {
    const Scratch scratch(shape, true);
    for_lanes(shape.lanes, [&](auto lanes) {
      backward_range<lanes()>(shape, call, {qk.at(), qk_back.at(), heads.at()}, scratch, begin, end);
    });
  });
}

}  // namespace s2v
