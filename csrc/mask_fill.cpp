// mask_fill on the host: tiles of tokens and tokens are shared out over threads, columns over vector lanes.
#include "mask_fill.h"

#include <algorithm>
#include <limits>

#include "mask_fill.cuh"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int kLanes = 8;          // columns in a register
constexpr int32_t kTile = 64;      // tokens an item of the forward pass
constexpr int32_t kTaken = 64;     // latents an item of the backward pass

template <class T>
S2V_HD void tiles(const MaskFillShape& shape, const MaskFillCall& call, int64_t begin, int64_t end) {
  const int64_t per_track = (shape.tokens + kTile - 1) / kTile;
  const int32_t full = shape.width / kLanes * kLanes;
  int32_t places[kTile];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / per_track;
    const int32_t first = int32_t(item % per_track) * kTile;
    const int32_t count = first + kTile < shape.tokens ? kTile : shape.tokens - first;
    mask_fill_places(shape, call.visible + n * shape.kept, first, count, places, HostLane());
    const T* latents = static_cast<const T*>(call.latents) + n * shape.kept * shape.width;
    T* out = static_cast<T*>(call.out) + n * shape.tokens * shape.width;
    mask_fill_tile<kLanes>(shape, latents, call.mask_token, call.positions, places, first, count, 0, full, out,
                           HostLane());
    mask_fill_tile<1>(shape, latents, call.mask_token, call.positions, places, first, count, full, shape.width, out,
                      HostLane());
  }
}

template <class T>
S2V_HD void takes(const MaskFillShape& shape, const MaskFillBackwardCall& call, int64_t begin, int64_t end) {
  const int64_t per_track = (shape.kept + kTaken - 1) / kTaken;
  const int32_t full = shape.width / kLanes * kLanes;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / per_track;
    const int32_t first = int32_t(item % per_track) * kTaken;
    const int32_t last = first + kTaken < shape.kept ? first + kTaken : shape.kept;
    const T* grad = static_cast<const T*>(call.grad) + n * shape.tokens * shape.width;
    const int32_t* visible = call.visible + n * shape.kept;
    T* d_latents = static_cast<T*>(call.d_latents) + n * shape.kept * shape.width;
    mask_fill_take<kLanes>(shape, grad, visible, first, last, 0, full, d_latents, HostLane());
    mask_fill_take<1>(shape, grad, visible, first, last, full, shape.width, d_latents, HostLane());
  }
}

template <class T>
S2V_HD void token_sums(const MaskFillShape& shape, const MaskFillBackwardCall& call, int64_t begin, int64_t end) {
  const T* grad = static_cast<const T*>(call.grad);
  // Four registers of each sum are whole cache lines of a row; what is left goes one register at a time.
  const int32_t most = shape.width / (4 * kLanes) * (4 * kLanes), full = shape.width / kLanes * kLanes;
  for (int64_t token = begin; token < end; ++token) {
    const int32_t l = int32_t(token);
    mask_fill_token_sums<kLanes, 4, 1>(shape, grad, call.has_latent, l, 0, most, call.masked_sums, call.d_positions,
                                       HostLane());
    mask_fill_token_sums<kLanes, 1, 1>(shape, grad, call.has_latent, l, most, full, call.masked_sums, call.d_positions,
                                       HostLane());
    mask_fill_token_sums<1, 1, 1>(shape, grad, call.has_latent, l, full, shape.width, call.masked_sums,
                                  call.d_positions, HostLane());
  }
}

S2V_CLONES void forward_range(const MaskFillShape& shape, const MaskFillCall& call, int64_t begin, int64_t end) {
  if (call.itemsize == 4) tiles<float>(shape, call, begin, end);
  else tiles<Bf16>(shape, call, begin, end);
}
S2V_CLONES void take_range(const MaskFillShape& shape, const MaskFillBackwardCall& call, int64_t begin, int64_t end) {
  if (call.itemsize == 4) takes<float>(shape, call, begin, end);
  else takes<Bf16>(shape, call, begin, end);
}
S2V_CLONES void sum_range(const MaskFillShape& shape, const MaskFillBackwardCall& call, int64_t begin, int64_t end) {
  if (call.itemsize == 4) token_sums<float>(shape, call, begin, end);
  else token_sums<Bf16>(shape, call, begin, end);
}

template <class Call>
MaskFillShape checked(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.itemsize == 4 || call.itemsize == 2, "mask_fill: itemsize is 4 (float32) or 2 (bfloat16)");
  require(call.tracks >= 0 && call.kept >= 0 && call.tokens >= 0 && call.width >= 0, "mask_fill: a negative size");
  require(call.kept <= most && call.tokens <= most && call.width <= most, "mask_fill: a size of 2**31 or more");
  require(call.visible != nullptr || call.tracks * call.kept == 0, "mask_fill: visible is a null pointer");
  for (int64_t i = 0; i < call.tracks * call.kept; ++i)
    require(call.visible[i] >= 0 && call.visible[i] < call.tokens, "mask_fill: visible has an id that is no token");
  return {call.tracks, int32_t(call.kept), int32_t(call.tokens), int32_t(call.width)};
}

}  // namespace

void mask_fill(const MaskFillCall& call, int threads) {
  const MaskFillShape shape = checked(call);
  const int64_t numbers = shape.tracks * shape.tokens * shape.width;
  require(call.latents != nullptr || numbers * shape.kept == 0, "mask_fill: latents is a null pointer");
  require((call.mask_token != nullptr && call.positions != nullptr && call.out != nullptr) || numbers == 0,
          "mask_fill: mask_token, positions or out is a null pointer");
  const int64_t tiles_a_track = (shape.tokens + kTile - 1) / kTile;
  // About 256 KB of output a range.
  const int64_t grain = 1 + 65536 / (int64_t(kTile) * (shape.width + 1));
  parallel_for(numbers > 0 ? shape.tracks * tiles_a_track : 0, grain, threads,
               [&](int64_t begin, int64_t end) { forward_range(shape, call, begin, end); });
}

void mask_fill_backward(const MaskFillBackwardCall& call, int threads) {
  const MaskFillShape shape = checked(call);
  const int64_t rows = int64_t(shape.tokens) * shape.width;
  require(call.grad != nullptr || shape.tracks * rows == 0, "mask_fill: grad is a null pointer");
  const bool wants_sums = call.d_mask_token != nullptr;
  require((call.d_positions != nullptr && call.masked_sums != nullptr) == (wants_sums && rows > 0) &&
              (call.has_latent != nullptr || !wants_sums || shape.tokens * shape.tracks == 0),
          "mask_fill: give d_mask_token, d_positions and both scratches, or none of them");
  if (call.d_latents != nullptr) {
    const int64_t takes_a_track = (shape.kept + kTaken - 1) / kTaken;
    parallel_for(shape.width > 0 ? shape.tracks * takes_a_track : 0, 4, threads,
                 [&](int64_t begin, int64_t end) { take_range(shape, call, begin, end); });
  }
  if (!wants_sums) return;
  std::fill_n(call.has_latent, shape.tokens * shape.tracks, uint8_t(0));
  for (int64_t n = 0; n < shape.tracks; ++n)
    for (int64_t k = 0; k < shape.kept; ++k) call.has_latent[call.visible[n * shape.kept + k] * shape.tracks + n] = 1;
  parallel_for(shape.width > 0 ? shape.tokens : 0, 8, threads,
               [&](int64_t begin, int64_t end) { sum_range(shape, call, begin, end); });
  const int32_t full = shape.width / kLanes * kLanes;
  sum_rows_item<kLanes>(call.masked_sums, shape.tokens, shape.width, 0, full, call.d_mask_token, HostLane());
  sum_rows_item<1>(call.masked_sums, shape.tokens, shape.width, full, shape.width, call.d_mask_token + full,
                   HostLane());
}

}  // namespace s2v
