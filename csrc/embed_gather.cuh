// embed_gather and its gradient, the work for a few rows, one token or one block of sums, shared by the host (one lane)
// and the device (a warp's lanes are columns).
//
// A token is one joint over s frames (Skeleton2vec, arXiv 2401.00921, section 3.1): its s * C numbers, a linear map to
// D columns, a bias and the position's row. Row r of the output is token visible[r] (or r % L) of track r / K. The map
// comes transposed, [s * C, D], so that neighbouring columns lie together.
//
// Memory: reads the pieces of the chosen tokens, writes each output once. The map stays in the cache; writing binds.
#pragma once

#include "pack.cuh"

namespace s2v {

struct EmbedGatherShape {
  int64_t tracks;                       // N
  int32_t frames, joints, channels;     // T, V, C
  int32_t segment_frames, width, kept;  // s, D, K (L where all tokens are taken)

  S2V_HD int32_t tokens() const { return frames / segment_frames * joints; }
  S2V_HD int32_t numbers() const { return segment_frames * channels; }  // of a token
  S2V_HD int64_t rows() const { return tracks * kept; }
};

// The gradient of the map is summed over ranges of so many rows, 256 of them or fewer, then over the ranges.
S2V_HD int64_t embed_gather_tile_rows(int64_t rows) { return rows > 64 * 256 ? (rows + 255) / 256 : 64; }

// The token of a row.
S2V_HD int32_t embed_gather_token(const EmbedGatherShape& shape, const int32_t* __restrict__ visible, int64_t row) {
  return visible != nullptr ? visible[row] : int32_t(row % shape.kept);
}

// Whether the rows of a track are all its tokens in order. (The address of no visible tokens may be null too.)
S2V_HD bool embed_gather_takes_all(const EmbedGatherShape& shape, const int32_t* visible) {
  return visible == nullptr && shape.kept == shape.tokens();
}

S2V_HD bool embed_gather_exists(const EmbedGatherShape& shape, int32_t token) {
  return token >= 0 && token < shape.tokens();
}

// A token's number (frame 0, channel 0) of its piece in the clips [N, T, V, C]; frames are V * C numbers apart.
S2V_HD int64_t embed_gather_piece(const EmbedGatherShape& shape, int64_t track, int32_t token) {
  const int32_t segment = token / shape.joints, joint = token % shape.joints;
  return ((track * shape.frames + int64_t(segment) * shape.segment_frames) * shape.joints + joint) * shape.channels;
}

// Rows row ... row + kRows of the output, columns [begin, end). weight_t: [s * C, D]. A row whose id is no token (the
// host has refused those) becomes NaN.
template <int kRows, int kWidth, class T, class Lanes>
S2V_HD void embed_gather_rows(const EmbedGatherShape& shape, const float* __restrict__ clips,
                              const float* __restrict__ weight_t, const float* __restrict__ bias,
                              const float* __restrict__ positions, const int32_t* __restrict__ visible, int64_t row,
                              int32_t begin, int32_t end, T* __restrict__ out, const Lanes& lanes) {
  const int32_t frame = shape.joints * shape.channels;
  const float* piece[kRows];
  const float* position[kRows];
  float there[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int32_t token = embed_gather_token(shape, visible, row + r);
    const bool exists = embed_gather_exists(shape, token);
    piece[r] = clips + (exists ? embed_gather_piece(shape, (row + r) / shape.kept, token) : 0);
    position[r] = positions + (exists ? int64_t(token) * shape.width : 0);
    there[r] = exists ? 1.0f : NAN;
  }
  for (int32_t c = begin + lanes.first() * kWidth; c < end; c += lanes.step() * kWidth) {
    Pack<kWidth> sums[kRows] = {};
    const float* __restrict__ column = weight_t + c;
    for (int32_t f = 0; f < shape.segment_frames; ++f) {
      for (int32_t channel = 0; channel < shape.channels; ++channel) {
        const Pack<kWidth> weights = load<kWidth>(column);
        for (int r = 0; r < kRows; ++r) sums[r] = sums[r] + weights * piece[r][f * frame + channel];
        column += shape.width;
      }
    }
    const Pack<kWidth> shift = load<kWidth>(bias + c);
    for (int r = 0; r < kRows; ++r) {
      const Pack<kWidth> place = load<kWidth>(position[r] + c) * there[r];
      store<kWidth>(out + (row + r) * shape.width + c, sums[r] + shift + place);
    }
  }
}

// Sums over rows [first, last) of (number `number` + i of the token) * grad[row], i < kNumbers, or of grad alone where
// kBias; columns [begin, end), kPacks packs of them at a time. grad: [rows, D]; piece(row): where the row's token
// begins in the clips; to: [., D].
template <bool kBias, int kNumbers, int kWidth, int kPacks, class T, class Piece, class Lanes>
S2V_HD void embed_gather_map_sums(const EmbedGatherShape& shape, const float* __restrict__ clips,
                                  const T* __restrict__ grad, const Piece& piece, int64_t first, int64_t last,
                                  int32_t number, int32_t begin, int32_t end, float* __restrict__ to,
                                  const Lanes& lanes) {
  int32_t offset[kNumbers];
  for (int i = 0; i < kNumbers; ++i)
    offset[i] = (number + i) / shape.channels * shape.joints * shape.channels + (number + i) % shape.channels;
  for (int32_t c = begin + lanes.first() * kWidth * kPacks; c < end; c += lanes.step() * kWidth * kPacks) {
    Pack<kWidth> sums[kNumbers][kPacks] = {};
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
    for (int64_t row = first; row < last; ++row) {
      Pack<kWidth> upstream[kPacks];
      for (int p = 0; p < kPacks; ++p) upstream[p] = load<kWidth>(grad + row * shape.width + c + p * kWidth);
      const float* __restrict__ from = clips + (kBias ? 0 : piece(row));
      for (int i = 0; i < kNumbers; ++i) {
        for (int p = 0; p < kPacks; ++p) {
          if (kBias) sums[i][p] = sums[i][p] + upstream[p];
          else sums[i][p] = sums[i][p] + upstream[p] * from[offset[i]];
        }
      }
    }
    for (int i = 0; i < kNumbers; ++i)
      for (int p = 0; p < kPacks; ++p)
        store<kWidth>(to + int64_t(i) * shape.width + c + p * kWidth, sums[i][p]);
  }
}

// Where in the rows of its track a token lies, or -1. places: [L, N], or null where all tokens are taken.
S2V_HD int32_t embed_gather_place(const EmbedGatherShape& shape, const int32_t* __restrict__ places, int32_t token,
                                  int64_t track) {
  return places != nullptr ? places[token * shape.tracks + track] : token;
}

// Adds the token's rows of tracks n ... n + kTracks, all of them read before they are added.
template <int kWidth, int kPacks, int kTracks, class T>
S2V_HD void embed_gather_add(const EmbedGatherShape& shape, const T* __restrict__ grad,
                             const int32_t* __restrict__ places, int32_t token, int64_t n, int32_t column,
                             Pack<kWidth>* sums) {
  int32_t place[kTracks];
  Pack<kWidth> read[kTracks][kPacks] = {};
  for (int i = 0; i < kTracks; ++i) place[i] = embed_gather_place(shape, places, token, n + i);
  for (int i = 0; i < kTracks; ++i) {
    if (place[i] < 0) continue;
    const T* __restrict__ from = grad + ((n + i) * shape.kept + place[i]) * shape.width + column;
    for (int p = 0; p < kPacks; ++p) read[i][p] = load<kWidth>(from + p * kWidth);
  }
  for (int i = 0; i < kTracks; ++i)
    for (int p = 0; p < kPacks; ++p) sums[p] = sums[p] + read[i][p];
}

// d_positions[token] = the sum over tracks, in ascending order, of the token's gradient; columns [begin, end), kPacks
// packs of them at a time.
template <int kWidth, int kPacks, int kTracks, class T, class Lanes>
S2V_HD void embed_gather_position_sums(const EmbedGatherShape& shape, const T* __restrict__ grad,
                                       const int32_t* __restrict__ places, int32_t token, int32_t begin, int32_t end,
                                       float* __restrict__ d_positions, const Lanes& lanes) {
  for (int32_t c = begin + lanes.first() * kWidth * kPacks; c < end; c += lanes.step() * kWidth * kPacks) {
    Pack<kWidth> sums[kPacks] = {};
    int64_t n = 0;
    for (; n + kTracks <= shape.tracks; n += kTracks)
      embed_gather_add<kWidth, kPacks, kTracks>(shape, grad, places, token, n, c, sums);
    for (; n < shape.tracks; ++n) embed_gather_add<kWidth, kPacks, 1>(shape, grad, places, token, n, c, sums);
    for (int p = 0; p < kPacks; ++p)
      store<kWidth>(d_positions + int64_t(token) * shape.width + c + p * kWidth, sums[p]);
  }
}

// The gradient of a token's numbers: products of its row of grad with the columns of the map; 0 where it is not taken.
template <int kWidth, class T, class Lanes>
S2V_HD void embed_gather_clip_gradient(const EmbedGatherShape& shape, const T* __restrict__ grad,
                                       const float* __restrict__ weight_t, const int32_t* __restrict__ places,
                                       int64_t track, int32_t token, float* __restrict__ d_clips, const Lanes& lanes) {
  const int32_t place = embed_gather_place(shape, places, token, track);
  const T* __restrict__ upstream = grad + (place < 0 ? 0 : (track * shape.kept + place) * shape.width);
  float* __restrict__ to = d_clips + embed_gather_piece(shape, track, token);
  const int32_t full = place < 0 ? 0 : shape.width / kWidth * kWidth, width = place < 0 ? 0 : shape.width;
  for (int32_t number = 0; number < shape.numbers(); ++number) {
    const float* __restrict__ weights = weight_t + int64_t(number) * shape.width;
    Pack<kWidth> sums = {};
    for (int32_t c = lanes.first() * kWidth; c < full; c += lanes.step() * kWidth)
      sums = sums + load<kWidth>(upstream + c) * load<kWidth>(weights + c);
    float product = total(sums);
    for (int32_t c = full + lanes.first(); c < width; c += lanes.step()) product += widen(upstream[c]) * weights[c];
    product = lanes.sum(product);
    if (lanes.first() == 0)
      to[int64_t(number / shape.channels) * shape.joints * shape.channels + number % shape.channels] = product;
  }
}

}  // namespace s2v
