// What the files of bindings share: addresses as pointers, and where a call runs.
#pragma once

#include <cstdint>
#include <stdexcept>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_launch.h"

namespace py = pybind11;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs a call on the host's threads (device -1) or on a stream of a device.
#if defined(S2V_CUDA)
#define S2V_RUN(name, call, device, stream, threads)                                  \
  if (device < 0) s2v::name(call, threads);                                           \
  else s2v::name##_cuda(call, s2v::CudaTarget{device, pointer<void>(stream)})
#else
#define S2V_RUN(name, call, device, stream, threads)                                  \
  if (device >= 0) throw std::invalid_argument(#name ": built without CUDA");         \
  (void)stream;                                                                       \
  s2v::name(call, threads)
#endif

// The same for what is written for CPUs alone.
#define S2V_RUN_CPU(name, call, device, stream, threads)                              \
  if (device >= 0) throw std::invalid_argument(#name ": it is for CPUs alone");       \
  (void)stream;                                                                       \
  s2v::name(call, threads)

// Adds the operations of graph convolution networks to the module.
void bind_graph(py::module_& module);
// Adds the operations on points.
void bind_points(py::module_& module);
