// Products of float32 matrices on the matrix unit of a CPU (Intel AMX), which multiplies bfloat16.
//
// Each number is the sum of two bfloat16, its rounding and what that leaves: some 16 bits in place of 24. A product is
// three of theirs; that of both remainders is left out. Sums are in float32. PyTorch calls this precision of float32
// products "high". Numbers beyond the largest bfloat16, 3.39e38, and infinities become NaN.
#pragma once

#include <cstdint>

namespace s2v {

// out [rows, columns] = left times right [count, columns], plus bias [columns] where there is one, or plus what is in
// out with `add`. Number k of row i of
// left is left[i * left_step + k], or left[k * left_step + i] where it is turned; rows of right and out begin
// `right_step` and `out_step` numbers apart.
struct SplitProductCall {
  int64_t rows, count, columns;
  const float* left;
  int64_t left_step;
  bool turned;
  const float* right;
  int64_t right_step;
  const float* bias;
  bool add;
  float* out;
  int64_t out_step;
};

// Whether this CPU has the unit, this build can use it, and the operating system lets this process.
bool has_split_product();

// Throws std::invalid_argument where has_split_product() is false, for negative sizes, and for null pointers.
void split_product(const SplitProductCall& call, int threads);

}  // namespace s2v
