#include "split_product.h"

#include <algorithm>

#include "numbers.h"
#include "parallel.h"
#include "require.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define S2V_AMX
// The compiler's own headers make values that nobody reads from themselves (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace s2v {
#if defined(S2V_AMX)
namespace {

// A tile of the unit has 16 rows of 64 bytes: 16 x 16 sums, 16 rows x 32 numbers of the left, or 16 pairs of rows x 16
// columns of the right. A block is two by two of them.
constexpr int64_t kTile = 16, kDepth = 32, kBlock = 2 * kTile;
constexpr int64_t kHalf = kTile * kDepth;    // bfloat16 of a tile
constexpr int64_t kSplit = 2 * kHalf;        // of a tile of roundings and one of remainders
constexpr int64_t kNear = int64_t(1) << 18;  // numbers of the right at a time: half of the second cache
constexpr int64_t kRange = 512;              // rows of out that a thread does at a time

#define S2V_TILES __attribute__((target("avx512f,avx512bw,amx-tile,amx-bf16")))

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
// Lanes first ... first + 16 of `count`.
__mmask16 lanes(int64_t count, int64_t first) {
  return count - first >= kTile ? 0xFFFF : count <= first ? 0 : __mmask16((1u << (count - first)) - 1);
}

// A register of float32 in two: a bfloat16 in the upper halves of each. The remainder is cut off and not rounded, so that
// a NaN stays one: rounding the largest of them carries into the sign, and makes a zero.
struct Halves {
  __m512i high, low;
};
S2V_TILES inline Halves halves(__m512i bits) {
  const __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
  const __m512i high = _mm512_and_si512(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), upper);
  const __m512 low = _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(high));
  return {high, _mm512_and_si512(_mm512_castps_si512(low), upper)};
}
// Pairs of bfloat16: the first in the lower half.
S2V_TILES inline __m512i pairs(__m512i first, __m512i second) {
  return _mm512_or_si512(_mm512_srli_epi32(first, 16), second);
}
// Two registers' upper halves, one register after the other.
S2V_TILES inline __m512i row_of(__m512i first, __m512i second) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(kOdd), second);
}

// Number r of register c becomes number c of register r.
S2V_TILES inline void turn(__m512i (&x)[kTile]) {
  __m512i y[kTile];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
      y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xDD);
    }
  for (int j = 0; j < 8; ++j) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
    x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xDD);
  }
}

// Tiles of the left [16 rows, depth]: roundings and remainders of every 32 numbers of them. Zeros beyond rows and count.
S2V_TILES void split_rows(const float* left, int64_t step, int64_t rows, int64_t count, uint16_t* to) {
  for (int64_t k = 0; k < count; k += kDepth, to += kSplit) {
    const __mmask16 first = lanes(count, k), second = lanes(count, k + kTile);
    for (int64_t r = 0; r < kTile; ++r) {
      const float* const at = left + r * step + k;
      const bool is = r < rows;
      const Halves x = halves(is ? _mm512_maskz_loadu_epi32(first, at) : _mm512_setzero_si512());
      const Halves y = halves(is ? _mm512_maskz_loadu_epi32(second, at + kTile) : _mm512_setzero_si512());
      _mm512_store_si512(to + r * kDepth, row_of(x.high, y.high));
      _mm512_store_si512(to + kHalf + r * kDepth, row_of(x.low, y.low));
    }
  }
}
// Pairs of rows k, k + 1 of 16 columns.
S2V_TILES inline Halves pair_of_rows(const float* at, int64_t step, int64_t k, int64_t count, __mmask16 columns) {
  const __m512i none = _mm512_setzero_si512();
  const Halves x = halves(k < count ? _mm512_maskz_loadu_epi32(columns, at + k * step) : none);
  const Halves y = halves(k + 1 < count ? _mm512_maskz_loadu_epi32(columns, at + (k + 1) * step) : none);
  return {pairs(x.high, y.high), pairs(x.low, y.low)};
}
// The same tiles of a left that is turned.
S2V_TILES void split_turned(const float* left, int64_t step, int64_t rows, int64_t count, uint16_t* to) {
  const __mmask16 columns = lanes(rows, 0);
  for (int64_t k = 0; k < count; k += kDepth, to += kSplit) {
    __m512i high[kTile], low[kTile];
    for (int64_t p = 0; p < kTile; ++p) {
      const Halves pair = pair_of_rows(left, step, k + 2 * p, count, columns);
      high[p] = pair.high;
      low[p] = pair.low;
    }
    turn(high);
    turn(low);
    for (int64_t r = 0; r < kTile; ++r) {
      _mm512_store_si512(to + r * kDepth, high[r]);
      _mm512_store_si512(to + kHalf + r * kDepth, low[r]);
    }
  }
}
// Tiles of the right [count, columns]: of 16 columns after 16 columns, up to whole blocks.
S2V_TILES void split_right(const float* right, int64_t step, int64_t count, int64_t columns, uint16_t* to) {
  for (int64_t n = 0; n < columns; n += kTile) {
    const __mmask16 some = lanes(columns, n);
    for (int64_t k = 0; k < count; k += kDepth, to += kSplit)
      for (int64_t p = 0; p < kTile; ++p) {
        const Halves pair = pair_of_rows(right + n, step, k + 2 * p, count, some);
        _mm512_store_si512(to + p * kDepth, pair.high);
        _mm512_store_si512(to + kHalf + p * kDepth, pair.low);
      }
  }
}

// Sums of 32 rows and 32 columns, which begin as `begin` says: rows of it begin `begin_step` numbers apart.
S2V_TILES void block(const uint16_t* left, const uint16_t* right, int64_t tiles, const float* begin, int64_t begin_step,
                     float* out, int64_t out_step) {
  // What tiles are loaded from is written by now: the compiler is not told that these instructions read memory.
  asm volatile("" : : : "memory");
  const uint16_t *const below = left + tiles * kSplit, *const beside = right + tiles * kSplit;
  const int64_t row = kDepth * sizeof(uint16_t), from = begin_step * sizeof(float), to = out_step * sizeof(float);
  if (begin == nullptr) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, begin, from);
    _tile_loadd(1, begin + kTile, from);
    _tile_loadd(2, begin + kTile * begin_step, from);
    _tile_loadd(3, begin + kTile * begin_step + kTile, from);
  }
#define S2V_FOUR           \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)
  for (int64_t k = 0; k < tiles * kSplit; k += kSplit) {
    _tile_loadd(4, left + k, row);
    _tile_loadd(5, below + k, row);
    _tile_loadd(6, right + k + kHalf, row);
    _tile_loadd(7, beside + k + kHalf, row);
    S2V_FOUR;
    _tile_loadd(6, right + k, row);
    _tile_loadd(7, beside + k, row);
    S2V_FOUR;
    _tile_loadd(4, left + k + kHalf, row);
    _tile_loadd(5, below + k + kHalf, row);
    S2V_FOUR;
  }
#undef S2V_FOUR
  _tile_stored(0, out, to);
  _tile_stored(1, out + kTile, to);
  _tile_stored(2, out + kTile * out_step, to);
  _tile_stored(3, out + kTile * out_step + kTile, to);
}

// The unit as all of this uses it: eight tiles of 16 rows of 64 bytes, while this lives.
class Tiles {
 public:
  S2V_TILES Tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;
      config[48 + tile] = kTile;
    }
    asm volatile("" : : "r"(config) : "memory");  // the instruction is known to read a part of it alone
    _tile_loadconfig(config);
  }
  S2V_TILES ~Tiles() { _tile_release(); }
};

// Rows begin ... end of out.
S2V_TILES void rows_of(const SplitProductCall& call, int64_t begin, int64_t end) {
  const Tiles tiles;
  const int64_t columns = up(call.columns, kBlock);
  const int64_t most = std::max(kDepth, kNear / columns / kDepth * kDepth);  // of count at a time
  const int64_t depth = std::min(most, up(std::max(call.count, int64_t(1)), kDepth));
  const Numbers left_numbers(kBlock * depth), right_numbers(columns * depth);  // of which each is two bfloat16
  uint16_t* const left = reinterpret_cast<uint16_t*>(left_numbers.at());
  uint16_t* const right = reinterpret_cast<uint16_t*>(right_numbers.at());
  alignas(64) float first[kBlock * kBlock], edge[kBlock * kBlock];
  for (int64_t k = 0; k == 0 || k < call.count; k += most) {
    const int64_t count = std::min(most, call.count - k), deep = up(count, kDepth) / kDepth;
    split_right(call.right + k * call.right_step, call.right_step, count, call.columns, right);
    if (up(call.columns, kTile) < columns)  // the last block's second half
      std::fill_n(right + up(call.columns, kTile) * deep * kDepth * 2, kTile * deep * kDepth * 2, uint16_t(0));
    for (int64_t i = begin; i < end; i += kBlock) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t row = i + half * kTile, some = std::max(int64_t(0), std::min(kTile, end - row));
        uint16_t* const to = left + half * deep * kSplit;
        if (call.turned) split_turned(call.left + k * call.left_step + row, call.left_step, some, count, to);
        else split_rows(call.left + row * call.left_step + k, call.left_step, some, count, to);
      }
      for (int64_t n = 0; n < columns; n += kBlock) {
        const uint16_t* const of = right + n * deep * kDepth * 2;
        float* const out = call.out + i * call.out_step + n;
        if (end - i >= kBlock && call.columns - n >= kBlock) {
          if (k > 0 || call.add) block(left, of, deep, out, call.out_step, out, call.out_step);
          else block(left, of, deep, call.bias == nullptr ? nullptr : call.bias + n, 0, out, call.out_step);
          continue;
        }
        const int64_t height = std::min(kBlock, end - i), width = std::min(kBlock, call.columns - n);
        for (int64_t r = 0; r < height; ++r)
          for (int64_t c = 0; c < width; ++c)
            first[r * kBlock + c] =
                k > 0 || call.add ? out[r * call.out_step + c] : call.bias == nullptr ? 0.0f : call.bias[n + c];
        block(left, of, deep, first, kBlock, edge, kBlock);
        for (int64_t r = 0; r < height; ++r) std::copy_n(edge + r * kBlock, width, out + r * call.out_step);
      }
    }
  }
}

bool allowed() {
  if (!__builtin_cpu_supports("avx512bw")) return false;
  uint32_t a = 7, b, c = 0, d;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr uint32_t kBf16 = 1u << 22, kTiles = 1u << 24;
  constexpr long kAskForState = 0x1023, kTileData = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM
  return (d & kBf16) && (d & kTiles) && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}

}  // namespace

bool has_split_product() {
  static const bool has = allowed();
  return has;
}
#else
bool has_split_product() { return false; }
#endif

void split_product(const SplitProductCall& call, int threads) {
  require(has_split_product(), "split_product: this build or this CPU has no AMX for bfloat16");
  require(call.rows >= 0 && call.count >= 0 && call.columns >= 0, "split_product: a negative size");
  if (call.rows * call.columns == 0) return;
  require(call.out != nullptr && ((call.left != nullptr && call.right != nullptr) || call.count == 0),
          "split_product: left, right or out is a null pointer");
#if defined(S2V_AMX)
  parallel_for(call.rows, kRange, threads, [&](int64_t begin, int64_t end) { rows_of(call, begin, end); });
#else
  (void)threads;
#endif
}

}  // namespace s2v
