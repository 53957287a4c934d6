// Which of several builds of a function this CPU runs, where each is written for registers of its own width.
#pragma once

#include <cstddef>
#include <stdexcept>

namespace s2v {

// Whether this CPU has registers of so many float32; all that the code is built for have 4.
inline bool has_lanes(int lanes) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (lanes == 8) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (lanes == 16) return __builtin_cpu_supports("avx512f");
#endif
  return lanes == 4;
}

// Of builds, the widest first, that of `lanes`; 0: the first that runs here. Throws with `message` where there is none.
template <class Build, size_t kBuilds>
const Build& build_of(const Build* const (&builds)[kBuilds], int lanes, const char* message) {
  for (const Build* build : builds)
    if ((lanes == 0 || build->lanes == lanes) && has_lanes(build->lanes)) return *build;
  throw std::invalid_argument(message);
}

}  // namespace s2v
