// The contents page of the compiled extension s2vfast._native: what Python can call. Addresses come in as integers
// (tensor.data_ptr()); shapes, dtypes and devices are checked in Python before a call.
#include <pybind11/pybind11.h>

#include "parallel.h"
#include "tube_mask.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void tube_mask(uintptr_t clips, int itemsize, int64_t tracks, int64_t frames, int64_t joints, int64_t channels,
               int64_t segment_frames, int64_t tube_len, int64_t keep, double motion_weight, uintptr_t noise,
               uint64_t seed, uint32_t epoch, uintptr_t ids, uintptr_t visible, uintptr_t masked, int threads) {
  const s2v::TubeMaskCall call = {pointer<const void>(clips), itemsize, tracks, frames, joints, channels,
                                  segment_frames, tube_len, keep, motion_weight, pointer<const void>(noise), seed,
                                  epoch, pointer<const int64_t>(ids), pointer<int32_t>(visible),
                                  pointer<int32_t>(masked), threads};
  const py::gil_scoped_release release;
  s2v::tube_mask(call);
}

#define S2V_TEXT_(x) #x
#define S2V_TEXT(x) S2V_TEXT_(x)

py::dict features() {
  py::dict facts;
#if defined(__clang__)
  facts["compiler"] = "clang " S2V_TEXT(__clang_major__) "." S2V_TEXT(__clang_minor__);
#elif defined(__GNUC__)
  facts["compiler"] = "g++ " S2V_TEXT(__GNUC__) "." S2V_TEXT(__GNUC_MINOR__);
#else
  facts["compiler"] = "unknown";
#endif
  const char* vectors = "baseline";
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx2")) vectors = "avx2";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    vectors = "avx512";
#endif
  facts["vectors"] = vectors;
  facts["threads"] = s2v::available_threads();
  facts["cuda"] = false;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled implementations of s2vfast's operations: raw addresses and sizes in, nothing returned.";
  module.def("features", &features, "What this build can do: compiler, vectors, threads, cuda.");
  module.def("tube_mask", &tube_mask, py::kw_only(), py::arg("clips"), py::arg("itemsize"), py::arg("tracks"),
             py::arg("frames"), py::arg("joints"), py::arg("channels"), py::arg("segment_frames"), py::arg("tube_len"),
             py::arg("keep"), py::arg("motion_weight"), py::arg("noise") = 0, py::arg("seed") = 0, py::arg("epoch") = 0,
             py::arg("ids") = 0, py::arg("visible"), py::arg("masked"), py::arg("threads") = 0,
             "Visible and masked token ids of every track; see s2vfast.ops.tube_mask.");
}
