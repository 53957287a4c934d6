// Philox4x32-10 (Salmon et al., SC 2011), the counter-based generator behind every random draw of the package:
// a draw is a function of (seed, epoch, sample id, stream, index) and of nothing else, so the host, the device
// and the Python reference agree bit for bit whatever the number of threads, workers or ranks.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define S2V_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define S2V_HD inline __attribute__((always_inline))
#else
#define S2V_HD inline
#endif

namespace s2v {

// What a draw is for. Two streams of one sample never share a counter.
enum Stream : uint32_t { kStreamOrder = 0, kStreamClip = 1, kStreamFrames = 2, kStreamMask = 3, kStreamPointFrames = 80, kStreamPoints = 81 };

struct Words4 {
  uint32_t w0, w1, w2, w3;
};

S2V_HD Words4 philox4x32_10(Words4 counter, uint32_t key0, uint32_t key1) {
  // Straight-line code: a loop over blocks around this call can then be vectorised.
#if defined(__CUDACC__) || defined(__clang__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * counter.w0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * counter.w2;
    counter = {uint32_t(product1 >> 32) ^ counter.w1 ^ key0, uint32_t(product1),
               uint32_t(product0 >> 32) ^ counter.w3 ^ key1, uint32_t(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Block number `block` of a stream: draws 4 * block ... 4 * block + 3. Sample ids use 56 bits: the counter's
// last word holds the stream in its low byte and the id's high bits above it.
S2V_HD Words4 philox_block(uint64_t seed, uint32_t epoch, uint64_t id, uint32_t stream, uint32_t block) {
  const Words4 counter = {block, uint32_t(id), epoch, stream | (uint32_t(id >> 32) << 8)};
  return philox4x32_10(counter, uint32_t(seed), uint32_t(seed >> 32));
}

// The upper 24 bits of a word as a float32 in [0, 1): every value is exact.
S2V_HD float philox_uniform(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

// Draw number `index` of a stream.
S2V_HD float philox_uniform_at(uint64_t seed, uint32_t epoch, uint64_t id, uint32_t stream, uint32_t index) {
  const Words4 words = philox_block(seed, epoch, id, stream, index / 4);
  const uint32_t low = (index & 1) ? words.w1 : words.w0;
  const uint32_t high = (index & 1) ? words.w3 : words.w2;
  return philox_uniform((index & 2) ? high : low);
}

}  // namespace s2v
