// Functions that are built for registers of several widths, and which of them this CPU runs.
#pragma once

#include <atomic>
#include <stdexcept>

#include "pack.cuh"

namespace s2v {

// Whether this CPU has registers of so many float32; all that the code is built for have 4.
inline bool has_lanes(int lanes) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (lanes == 8) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (lanes == 16)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#endif
  return lanes == 4;
}

inline int widest_lanes() { return has_lanes(16) ? 16 : has_lanes(8) ? 8 : 4; }

// Numbers of a register that functions are chosen by: of the widest, where no test asks for others.
inline std::atomic<int> lanes_in_use{widest_lanes()};

// Throws where this CPU has no such registers; 0: the widest.
inline void use_lanes(int lanes) {
  if (lanes == 0) lanes = widest_lanes();
  if (!has_lanes(lanes)) throw std::invalid_argument("lanes: this CPU has no such registers");
  lanes_in_use = lanes;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S2V_BUILT_FOR(target_) __attribute__((target(target_), flatten))
template <class Body>
S2V_BUILT_FOR("avx512f,avx512vl,fma") void with_16_lanes(const Body& body) { body(LaneCount<16>()); }
template <class Body>
S2V_BUILT_FOR("avx2,fma") void with_8_lanes(const Body& body) { body(LaneCount<8>()); }
template <class Body>
__attribute__((flatten)) void with_4_lanes(const Body& body) { body(LaneCount<4>()); }
#undef S2V_BUILT_FOR
#endif

// Calls body(LaneCount<lanes>()), which is built for registers of so many numbers with all that it calls inline. A pack
// that is wider than a register would be kept in memory, and only here are products and sums fused on every such CPU.
// Clones of one function (pack.cuh) are for operations that give the same bits everywhere.
template <class Body>
void for_lanes(int lanes, const Body& body) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  switch (lanes) {
    case 16: return with_16_lanes(body);
    case 8: return with_8_lanes(body);
    default: return with_4_lanes(body);
  }
#else
  (void)lanes;
  body(LaneCount<4>());
#endif
}

}  // namespace s2v
