// What will be written soon is fetched into a near cache while other work is done.
#pragma once

#include "philox.cuh"  // S2V_HD

namespace s2v {

S2V_HD void prefetch_to_write(const float* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 1);
#else
  (void)at;
#endif
}

}  // namespace s2v
