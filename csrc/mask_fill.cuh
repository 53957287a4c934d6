// mask_fill and its gradient, the work for one tile of tokens or one token, shared by the host (one lane) and the
// device (a block's warps are rows, a warp's lanes are columns).
//
// out[l] = (the latent placed at l, or the mask token) + positions[l]: the decoder's input (Skeleton2vec, arXiv
// 2401.00921, section 3.2). Placed ids are in any order, each at most once a track.
//
// Memory: forward reads each latent once and writes each output once; the gradient reads each of its numbers once, and
// those of the visible tokens twice. Bound by bandwidth.
#pragma once

#include "pack.cuh"

namespace s2v {

struct MaskFillShape {
  int64_t tracks;                 // N
  int32_t kept, tokens, width;    // K, L, D
};

// places[i] = which latent goes to token first + i, or -1 for the mask token. visible: the track's [K].
template <class Lanes>
S2V_HD void mask_fill_places(const MaskFillShape& shape, const int32_t* __restrict__ visible, int32_t first,
                             int32_t count, int32_t* __restrict__ places, const Lanes& lanes) {
  const int32_t lane = lanes.row() * lanes.step() + lanes.first(), all = lanes.rows() * lanes.step();
  for (int32_t i = lane; i < count; i += all) places[i] = -1;
  lanes.sync();
  for (int32_t k = lane; k < shape.kept; k += all) {
    const int32_t i = visible[k] - first;
    if (i >= 0 && i < count) places[i] = k;
  }
  lanes.sync();
}

// Tokens first ... first + count of a track, columns [begin, end). latents: the track's [K, D]; out: its [L, D].
template <int kWidth, class T, class Lanes>
S2V_HD void mask_fill_tile(const MaskFillShape& shape, const T* __restrict__ latents,
                           const float* __restrict__ mask_token, const float* __restrict__ positions,
                           const int32_t* __restrict__ places, int32_t first, int32_t count, int32_t begin,
                           int32_t end, T* __restrict__ out, const Lanes& lanes) {
  for (int32_t i = lanes.row(); i < count; i += lanes.rows()) {
    const int64_t row = int64_t(first + i) * shape.width;
    const int32_t place = places[i];
    if (place >= 0) {
      const T* __restrict__ latent = latents + int64_t(place) * shape.width;
      for (int32_t c = begin + lanes.first() * kWidth; c < end; c += lanes.step() * kWidth) {
        const Pack<kWidth> token = load<kWidth>(latent + c);
        store<kWidth>(out + row + c, token + load<kWidth>(positions + row + c));
      }
    } else {
      for (int32_t c = begin + lanes.first() * kWidth; c < end; c += lanes.step() * kWidth) {
        const Pack<kWidth> token = load<kWidth>(mask_token + c);
        store<kWidth>(out + row + c, token + load<kWidth>(positions + row + c));
      }
    }
  }
}

// d_latents[k] = grad[visible[k]] for latents k = row(), row() + rows(), ... of [first, last). All of one track.
template <int kWidth, class T, class Lanes>
S2V_HD void mask_fill_take(const MaskFillShape& shape, const T* __restrict__ grad, const int32_t* __restrict__ visible,
                           int32_t first, int32_t last, int32_t begin, int32_t end, T* __restrict__ d_latents,
                           const Lanes& lanes) {
  for (int32_t k = first + lanes.row(); k < last; k += lanes.rows()) {
    const int32_t id = visible[k];
    const bool is_token = id >= 0 && id < shape.tokens;  // the host has refused others
    for (int32_t c = begin + lanes.first() * kWidth; c < end; c += lanes.step() * kWidth) {
      Pack<kWidth> taken = {};
      if (is_token) taken = load<kWidth>(grad + int64_t(id) * shape.width + c);
      store<kWidth>(d_latents + int64_t(k) * shape.width + c, taken);
    }
  }
}

template <int kWidth, int kPacks, int kTracks, class T>
S2V_HD void mask_fill_add(const uint8_t* __restrict__ flags, const T* __restrict__ from, int64_t track,
                          Pack<kWidth>* sums, Pack<kWidth>* masked_sums) {
  Pack<kWidth> read[kTracks][kPacks];
  uint8_t has_latent[kTracks];
  for (int n = 0; n < kTracks; ++n) {
    has_latent[n] = flags[n];
    for (int p = 0; p < kPacks; ++p) read[n][p] = load<kWidth>(from + n * track + p * kWidth);
  }
  for (int n = 0; n < kTracks; ++n) {
    for (int p = 0; p < kPacks; ++p) {
      sums[p] = sums[p] + read[n][p];
      if (!has_latent[n]) masked_sums[p] = masked_sums[p] + read[n][p];
    }
  }
}

// Sums over tracks, in ascending order, of one token's gradient [N, L, D]: over those where the token is masked (into
// masked), and over all; columns [begin, end), kPacks packs of them at a time, kTracks tracks read before they are
// added. has_latent: [L, N], whether a latent lies there. masked, all: [L, D].
template <int kWidth, int kPacks, int kTracks, class T, class Lanes>
S2V_HD void mask_fill_token_sums(const MaskFillShape& shape, const T* __restrict__ grad,
                                 const uint8_t* __restrict__ has_latent, int32_t token, int32_t begin, int32_t end,
                                 float* __restrict__ masked, float* __restrict__ all, const Lanes& lanes) {
  const uint8_t* __restrict__ flags = has_latent + token * shape.tracks;
  const int64_t track = int64_t(shape.tokens) * shape.width, row = int64_t(token) * shape.width;
  for (int32_t c = begin + lanes.first() * kWidth * kPacks; c < end; c += lanes.step() * kWidth * kPacks) {
    const T* __restrict__ from = grad + row + c;
    Pack<kWidth> sums[kPacks] = {}, masked_sums[kPacks] = {};
    int64_t n = 0;
    for (; n + kTracks <= shape.tracks; n += kTracks)
      mask_fill_add<kWidth, kPacks, kTracks>(flags + n, from + n * track, track, sums, masked_sums);
    for (; n < shape.tracks; ++n)
      mask_fill_add<kWidth, kPacks, 1>(flags + n, from + n * track, track, sums, masked_sums);
    for (int p = 0; p < kPacks; ++p) {
      store<kWidth>(all + row + c + p * kWidth, sums[p]);
      store<kWidth>(masked + row + c + p * kWidth, masked_sums[p]);
    }
  }
}

}  // namespace s2v
