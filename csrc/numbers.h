// Memory that functions work in.
#pragma once

#include <cstdint>
#include <memory>

namespace s2v {

// Numbers that are not set, at the beginning of a cache line.
class Numbers {
 public:
  explicit Numbers(int64_t count) : owner_(new float[count + kLine]) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(owner_.get()), bytes = kLine * sizeof(float);
    at_ = reinterpret_cast<float*>((begin + bytes - 1) / bytes * bytes);
  }
  float* at() const { return at_; }

 private:
  static constexpr int64_t kLine = 16;
  std::unique_ptr<float[]> owner_;
  float* at_;
};

}  // namespace s2v
