// sparse_conv as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/sparse_conv.py.
#pragma once

#include <cstdint>

namespace s2v {

struct SparseConvCall {
  int64_t rows, rows_out, offsets, channels, channels_out;  // R, R', O, Cin, Cout
  const float* x;        // [R, Cin]
  const float* weight;   // [O, Cin, Cout]
  const int32_t* table;  // [O, R'], -1: none
  float* out;            // out [R', Cout]
};

struct SparseConvBackwardCall {
  int64_t rows, rows_out, offsets, channels, channels_out;
  const float* x;
  const float* weight;
  const int32_t* table;
  const float* grad;  // [R', Cout]
  float* d_x;         // out [R, Cin], or null where not wanted
  float* d_weight;    // out [O, Cin, Cout], or null
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for sizes or pointers that
// cannot be, and for a table that names a row which is not there, or one row twice for an offset.
void sparse_conv(const SparseConvCall& call, int threads);
void sparse_conv_backward(const SparseConvBackwardCall& call, int threads);

}  // namespace s2v
