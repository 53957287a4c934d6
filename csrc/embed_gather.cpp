// embed_gather on the host: rows, tokens and ranges of rows are shared out over threads, columns over vector lanes.
#include "embed_gather.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "embed_gather.cuh"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int kLanes = 8;  // columns in a register
constexpr int kRows = 4;   // that share one reading of the map

template <class T>
S2V_HD void rows(const EmbedGatherShape& shape, const EmbedGatherCall& call, int64_t begin, int64_t end) {
  const int32_t full = shape.width / kLanes * kLanes;
  T* out = static_cast<T*>(call.out);
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows)
    embed_gather_rows<kRows, kLanes>(shape, call.clips, call.weight_t, call.bias, call.positions, call.visible, row, 0,
                                     full, out, HostLane());
  for (; row < end; ++row)
    embed_gather_rows<1, kLanes>(shape, call.clips, call.weight_t, call.bias, call.positions, call.visible, row, 0,
                                 full, out, HostLane());
  for (row = begin; row < end && full < shape.width; ++row)
    embed_gather_rows<1, 1>(shape, call.clips, call.weight_t, call.bias, call.positions, call.visible, row, full,
                            shape.width, out, HostLane());
}

template <int kWidth, int kPacks, class T, class Piece>
S2V_HD void tile_columns(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, const Piece& piece,
                         int64_t first, int64_t last, int32_t begin, int32_t end, float* sums) {
  const T* grad = static_cast<const T*>(call.grad);
  // A few columns go through all numbers of the token while their lines of grad are near.
  for (int32_t c = begin; c < end; c += kWidth * kPacks) {
    const int32_t stop = c + kWidth * kPacks;
    int32_t number = 0;
    for (; number + kRows <= shape.numbers(); number += kRows)
      embed_gather_map_sums<false, kRows, kWidth, kPacks>(shape, call.clips, grad, piece, first, last, number, c, stop,
                                                          sums + int64_t(number) * shape.width, HostLane());
    for (; number < shape.numbers(); ++number)
      embed_gather_map_sums<false, 1, kWidth, kPacks>(shape, call.clips, grad, piece, first, last, number, c, stop,
                                                      sums + int64_t(number) * shape.width, HostLane());
    embed_gather_map_sums<true, 1, kWidth, kPacks>(shape, call.clips, grad, piece, first, last, 0, c, stop,
                                                   sums + int64_t(number) * shape.width, HostLane());
  }
}

template <class T>
S2V_HD void tiles(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t* pieces, int64_t begin,
                  int64_t end) {
  const int64_t tile_rows = embed_gather_tile_rows(shape.rows());
  const int32_t most = shape.width / (2 * kLanes) * (2 * kLanes), full = shape.width / kLanes * kLanes;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * tile_rows, last = std::min(first + tile_rows, shape.rows());
    for (int64_t row = first; row < last; ++row)
      pieces[row - first] =
          embed_gather_piece(shape, row / shape.kept, embed_gather_token(shape, call.visible, row));
    const auto piece = [pieces, first](int64_t row) { return pieces[row - first]; };
    float* sums = call.partial + tile * (shape.numbers() + 1) * shape.width;
    tile_columns<kLanes, 2, T>(shape, call, piece, first, last, 0, most, sums);
    tile_columns<kLanes, 1, T>(shape, call, piece, first, last, most, full, sums);
    tile_columns<1, 1, T>(shape, call, piece, first, last, full, shape.width, sums);
  }
}

template <class T>
S2V_HD void positions(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t begin, int64_t end) {
  const T* grad = static_cast<const T*>(call.grad);
  const int32_t* places = embed_gather_takes_all(shape, call.visible) ? nullptr : call.places;
  const int32_t most = shape.width / (8 * kLanes) * (8 * kLanes), full = shape.width / kLanes * kLanes;
  for (int64_t token = begin; token < end; ++token) {
    const int32_t l = int32_t(token);
    embed_gather_position_sums<kLanes, 8, 1>(shape, grad, places, l, 0, most, call.d_positions, HostLane());
    embed_gather_position_sums<kLanes, 1, 1>(shape, grad, places, l, most, full, call.d_positions, HostLane());
    embed_gather_position_sums<1, 1, 1>(shape, grad, places, l, full, shape.width, call.d_positions, HostLane());
  }
}

template <class T>
S2V_HD void clip_gradients(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t begin,
                           int64_t end) {
  const int32_t* places = embed_gather_takes_all(shape, call.visible) ? nullptr : call.places;
  for (int64_t item = begin; item < end; ++item)
    embed_gather_clip_gradient<kLanes>(shape, static_cast<const T*>(call.grad), call.weight_t, places,
                                       item / shape.tokens(), int32_t(item % shape.tokens()), call.d_clips,
                                       HostLane());
}

S2V_CLONES void row_range(const EmbedGatherShape& shape, const EmbedGatherCall& call, int64_t begin, int64_t end) {
  if (call.itemsize == 4) rows<float>(shape, call, begin, end);
  else rows<Bf16>(shape, call, begin, end);
}
S2V_CLONES void tile_range(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t* pieces,
                           int64_t begin, int64_t end) {
  if (call.itemsize == 4) tiles<float>(shape, call, pieces, begin, end);
  else tiles<Bf16>(shape, call, pieces, begin, end);
}
S2V_CLONES void total_range(const EmbedGatherBackwardCall& call, int64_t columns, int64_t begin, int64_t end) {
  const int64_t full = begin + (end - begin) / kLanes * kLanes;
  sum_rows_item<kLanes>(call.partial, call.map_tiles, columns, begin, full, call.d_map + begin, HostLane());
  sum_rows_item<1>(call.partial, call.map_tiles, columns, full, end, call.d_map + full, HostLane());
}
S2V_CLONES void position_range(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t begin,
                               int64_t end) {
  if (call.itemsize == 4) positions<float>(shape, call, begin, end);
  else positions<Bf16>(shape, call, begin, end);
}
S2V_CLONES void clip_range(const EmbedGatherShape& shape, const EmbedGatherBackwardCall& call, int64_t begin,
                           int64_t end) {
  if (call.itemsize == 4) clip_gradients<float>(shape, call, begin, end);
  else clip_gradients<Bf16>(shape, call, begin, end);
}

template <class Call>
EmbedGatherShape checked(const Call& call) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(call.itemsize == 4 || call.itemsize == 2, "embed_gather: itemsize is 4 (float32) or 2 (bfloat16)");
  require(call.tracks >= 0 && call.kept >= 0 && call.width >= 0, "embed_gather: a negative size");
  require(call.frames >= 1 && call.joints >= 1 && call.channels >= 1, "embed_gather: frames, joints, channels >= 1");
  require(call.frames <= most && call.joints <= most / call.frames &&
              call.channels <= most / (call.frames * call.joints),
          "embed_gather: a clip of 2**31 numbers or more");
  require(call.kept <= most && call.width <= most, "embed_gather: a size of 2**31 or more");
  require(call.segment_frames >= 1 && call.frames % call.segment_frames == 0,
          "embed_gather: frames is no multiple of segment_frames");
  const EmbedGatherShape shape = {call.tracks, int32_t(call.frames), int32_t(call.joints), int32_t(call.channels),
                                  int32_t(call.segment_frames), int32_t(call.width), int32_t(call.kept)};
  require(call.visible != nullptr || shape.rows() == 0 || embed_gather_takes_all(shape, call.visible),
          "embed_gather: without visible, all tokens are kept");
  for (int64_t row = 0; call.visible != nullptr && row < shape.rows(); ++row)
    require(embed_gather_exists(shape, call.visible[row]), "embed_gather: visible has an id that is no token");
  require((call.clips != nullptr && call.weight_t != nullptr) || shape.rows() * shape.width == 0,
          "embed_gather: clips or weight is a null pointer");
  return shape;
}

}  // namespace

int64_t embed_gather_map_tiles(int64_t rows) {
  const int64_t tile_rows = embed_gather_tile_rows(rows);
  return (rows + tile_rows - 1) / tile_rows;
}

void embed_gather(const EmbedGatherCall& call, int threads) {
  const EmbedGatherShape shape = checked(call);
  if (shape.rows() * shape.width == 0) return;
  require(call.bias != nullptr && call.positions != nullptr && call.out != nullptr,
          "embed_gather: bias, positions or out is a null pointer");
  parallel_for(shape.rows(), 64, threads,
               [&](int64_t begin, int64_t end) { row_range(shape, call, begin, end); });
}

void embed_gather_backward(const EmbedGatherBackwardCall& call, int threads) {
  const EmbedGatherShape shape = checked(call);
  require(call.grad != nullptr || shape.rows() * shape.width == 0, "embed_gather: grad is a null pointer");
  if (call.d_map != nullptr) {
    require(call.map_tiles == embed_gather_map_tiles(shape.rows()), "embed_gather: map_tiles is another number");
    require(call.partial != nullptr || call.map_tiles * shape.width == 0, "embed_gather: partial is a null pointer");
    parallel_for(call.map_tiles, 1, threads, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> pieces(embed_gather_tile_rows(shape.rows()));
      tile_range(shape, call, pieces.data(), begin, end);
    });
    const int64_t columns = (shape.numbers() + int64_t(1)) * shape.width;
    parallel_for(columns, 4096, threads,
                 [&](int64_t begin, int64_t end) { total_range(call, columns, begin, end); });
  }
  if (call.d_positions == nullptr && call.d_clips == nullptr) return;
  if (!embed_gather_takes_all(shape, call.visible)) {
    require(call.places != nullptr || shape.tracks == 0, "embed_gather: places is a null pointer");
    std::fill_n(call.places, shape.tokens() * shape.tracks, -1);
    for (int64_t row = 0; row < shape.rows(); ++row)
      call.places[call.visible[row] * shape.tracks + row / shape.kept] = int32_t(row % shape.kept);
  }
  if (call.d_positions != nullptr)
    parallel_for(shape.width > 0 ? shape.tokens() : 0, 16, threads,
                 [&](int64_t begin, int64_t end) { position_range(shape, call, begin, end); });
  if (call.d_clips != nullptr)
    parallel_for(shape.tracks * shape.tokens(), 64, threads,
                 [&](int64_t begin, int64_t end) { clip_range(shape, call, begin, end); });
}

}  // namespace s2v
