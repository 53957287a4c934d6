// Where a call on a GPU runs and, for the .cu files, how its kernels are launched: on that device and stream, nothing
// allocated, nothing waited for; what CUDA refuses becomes an exception that names the operation.
#pragma once

namespace s2v {

struct CudaTarget {
  int device;
  void* stream;  // a cudaStream_t; null: the default stream
};

}  // namespace s2v

#if defined(__CUDACC__)
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include <cuda_runtime.h>

namespace s2v {

class CudaCall {
 public:
  // name: the operation, a text that outlives the call.
  CudaCall(const char* name, const CudaTarget& target) : name_(name), stream_(cudaStream_t(target.stream)) {
    check(cudaGetDevice(&before_));
    if (before_ != target.device) check(cudaSetDevice(target.device));
    changed_ = before_ != target.device;
  }
  ~CudaCall() {
    if (changed_) cudaSetDevice(before_);
  }
  CudaCall(const CudaCall&) = delete;
  CudaCall& operator=(const CudaCall&) = delete;

  // kernel<<<(x, y), block>>>(arguments...); nothing for an empty grid.
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t x, int64_t y, dim3 block, const Arguments&... arguments) const {
    launch_sharing(0, kernel, x, y, block, arguments...);
  }

  // The same with so many bytes of shared memory, whose size is known only now.
  template <class... Parameters, class... Arguments>
  void launch_sharing(int64_t bytes, void (*kernel)(Parameters...), int64_t x, int64_t y, dim3 block,
                      const Arguments&... arguments) const {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument for each parameter");
    if (x <= 0 || y <= 0) return;
    if (x > INT32_MAX || y > 65535) throw std::invalid_argument(std::string(name_) + ": too large for one launch");
    std::tuple<Parameters...> values(arguments...);
    if (bytes > kPlainShared) allow_shared(reinterpret_cast<const void*>(kernel), bytes);
    launch_with(reinterpret_cast<const void*>(kernel), dim3(unsigned(x), unsigned(y)), block, size_t(bytes), values,
                std::index_sequence_for<Parameters...>());
  }

  void fill(void* at, int byte, int64_t bytes) const {
    if (bytes > 0) check(cudaMemsetAsync(at, byte, size_t(bytes), stream_));
  }

  int multiprocessors() const {
    return attribute(cudaDevAttrMultiProcessorCount);
  }

  // Bytes of shared memory that a block can have.
  int shared_limit() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

 private:
  static constexpr int64_t kPlainShared = 48 * 1024;  // what a kernel has without asking

  template <class Values, size_t... at>
  void launch_with(const void* kernel, dim3 grid, dim3 block, size_t shared, Values& values,
                   std::index_sequence<at...>) const {
    void* pointers[] = {&std::get<at>(values)...};
    check(cudaLaunchKernel(kernel, grid, block, pointers, shared, stream_));
  }
  void allow_shared(const void* kernel, int64_t bytes) const {
    const int most = shared_limit();
    if (bytes > most)
      throw std::invalid_argument(std::string(name_) + ": needs " + std::to_string(bytes) +
                                  " bytes of shared memory, a block of this GPU has " + std::to_string(most));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  }
  int attribute(cudaDeviceAttr name) const {
    int device = 0, value = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&value, name, device));
    return value;
  }
  void check(cudaError_t error) const {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // it has been told: the next call starts afresh
    throw std::runtime_error(std::string(name_) + ": " + cudaGetErrorString(error));
  }

  const char* name_;
  cudaStream_t stream_;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace s2v
#endif
