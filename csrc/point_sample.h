// point_sample as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/point_sample.py.
#pragma once

#include <cstdint>

namespace s2v {

struct PointSampleCall {
  const void* points;    // [K, 3]
  int kind;              // 0: float32, 1: float16, 2: bfloat16
  const int64_t* begin;  // [F]
  const int32_t* size;   // [F]
  const int64_t* row;    // [Q]
  const int32_t* count;  // [Q]
  const float* origin;   // [Q, 3]
  const int64_t* ids;    // [B]
  int64_t points_count, frames, sequences, samples;  // K, F, Q, B
  int32_t length, drawn, stride;                     // T, P
  bool even, training;
  int32_t window, windows;
  uint64_t seed;
  uint32_t epoch;
  float* out;  // out [B, T, P, 3]
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be, and for tables that lead out of the points.
void point_sample(const PointSampleCall& call, int threads);

}  // namespace s2v
