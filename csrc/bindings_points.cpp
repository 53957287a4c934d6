// The operations on clouds of points, as bindings.cpp has the others.
#include "bindings.h"

#include <vector>

#include "point_sample.h"
#include "sparse_conv.h"
#include "voxelize.h"

namespace {

void point_sample(uintptr_t points, int kind, uintptr_t begin, uintptr_t size, uintptr_t row, uintptr_t count,
                  uintptr_t origin, uintptr_t ids, int64_t points_count, int64_t frames, int64_t sequences,
                  int64_t samples, int32_t length, int32_t drawn, int32_t stride, bool even, bool training,
                  int32_t window, int32_t windows, uint64_t seed, uint32_t epoch, uintptr_t out, int device,
                  uintptr_t stream, int threads) {
  const s2v::PointSampleCall call = {
      pointer<const void>(points), kind, pointer<const int64_t>(begin), pointer<const int32_t>(size),
      pointer<const int64_t>(row), pointer<const int32_t>(count), pointer<const float>(origin),
      pointer<const int64_t>(ids), points_count, frames, sequences, samples, length, drawn, stride, even, training,
      window, windows, seed, epoch, pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(point_sample, call, device, stream, threads);
}

void voxel_cells(int64_t clips, int64_t frames, int64_t points, int64_t capacity, uintptr_t xyz, double factor,
                 uintptr_t keys, uintptr_t features, int device, uintptr_t stream, int threads) {
  const s2v::VoxelCellsCall call = {clips, frames, points, capacity, pointer<const float>(xyz), float(factor),
                                    pointer<int64_t>(keys), pointer<float>(features)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(voxel_cells, call, device, stream, threads);
}

void voxel_coarsen(int64_t rows, int64_t capacity, int64_t frames, int64_t cells, uintptr_t keys, uintptr_t parents,
                   uintptr_t children, int device, uintptr_t stream, int threads) {
  const s2v::VoxelCoarsenCall call = {rows, capacity, frames, cells, pointer<const int64_t>(keys),
                                      pointer<int64_t>(parents), pointer<int32_t>(children)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(voxel_coarsen, call, device, stream, threads);
}

void voxel_neighbors(int64_t rows, const std::vector<int64_t>& deltas, uintptr_t keys, uintptr_t neighbors, int device,
                     uintptr_t stream, int threads) {
  const s2v::VoxelNeighborsCall call = {rows, int64_t(deltas.size()), pointer<const int64_t>(keys), deltas.data(),
                                        pointer<int32_t>(neighbors)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(voxel_neighbors, call, device, stream, threads);
}

void sparse_conv(int64_t rows, int64_t rows_out, int64_t offsets, int64_t channels, int64_t channels_out, uintptr_t x,
                 uintptr_t weight, uintptr_t table, uintptr_t out, int device, uintptr_t stream, int threads) {
  const s2v::SparseConvCall call = {rows, rows_out, offsets, channels, channels_out, pointer<const float>(x),
                                    pointer<const float>(weight), pointer<const int32_t>(table), pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(sparse_conv, call, device, stream, threads);
}

void sparse_conv_backward(int64_t rows, int64_t rows_out, int64_t offsets, int64_t channels, int64_t channels_out,
                          uintptr_t x, uintptr_t weight, uintptr_t table, uintptr_t grad, uintptr_t d_x,
                          uintptr_t d_weight, int device, uintptr_t stream, int threads) {
  const s2v::SparseConvBackwardCall call = {rows, rows_out, offsets, channels, channels_out, pointer<const float>(x),
                                            pointer<const float>(weight), pointer<const int32_t>(table),
                                            pointer<const float>(grad), pointer<float>(d_x), pointer<float>(d_weight)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(sparse_conv_backward, call, device, stream, threads);
}

}  // namespace

void bind_points(py::module_& module) {
  module.def("point_sample", &point_sample, py::kw_only(), py::arg("points"), py::arg("kind"), py::arg("begin"),
             py::arg("size"), py::arg("row"), py::arg("count"), py::arg("origin"), py::arg("ids"),
             py::arg("points_count"), py::arg("frames"), py::arg("sequences"), py::arg("samples"), py::arg("length"),
             py::arg("drawn"), py::arg("stride"), py::arg("even"), py::arg("training"), py::arg("window"),
             py::arg("windows"), py::arg("seed"), py::arg("epoch"), py::arg("out"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Clips of points; see s2vfast.ops.point_sample.");
  module.def("voxel_cells", &voxel_cells, py::kw_only(), py::arg("clips"), py::arg("frames"), py::arg("points"),
             py::arg("capacity"), py::arg("xyz"), py::arg("factor"), py::arg("keys"), py::arg("features"),
             py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Cells that hold points; see s2vfast.ops.voxelize.");
  module.def("voxel_coarsen", &voxel_coarsen, py::kw_only(), py::arg("rows"), py::arg("capacity"), py::arg("frames"),
             py::arg("cells"), py::arg("keys"), py::arg("parents"), py::arg("children"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Larger cells and what lies in them.");
  module.def("voxel_neighbors", &voxel_neighbors, py::kw_only(), py::arg("rows"), py::arg("deltas"), py::arg("keys"),
             py::arg("neighbors"), py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Rows of cells at offsets from each cell.");
  module.def("sparse_conv", &sparse_conv, py::kw_only(), py::arg("rows"), py::arg("rows_out"), py::arg("offsets"),
             py::arg("channels"), py::arg("channels_out"), py::arg("x"), py::arg("weight"), py::arg("table"),
             py::arg("out"), py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "A convolution over cells; see s2vfast.ops.sparse_conv.");
  module.def("sparse_conv_backward", &sparse_conv_backward, py::kw_only(), py::arg("rows"), py::arg("rows_out"),
             py::arg("offsets"), py::arg("channels"), py::arg("channels_out"), py::arg("x"), py::arg("weight"),
             py::arg("table"), py::arg("grad"), py::arg("d_x") = 0, py::arg("d_weight") = 0,
             py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0, "Its gradients.");
}
