// What Python can call of the operations of graph convolution networks; bindings.cpp is the contents page.
#include <vector>

#include "batch_norm.h"
#include "bindings.h"
#include "graph_attention.h"
#include "graph_mix.h"
#include "joint_mix.h"
#include "temporal_branches.h"

namespace {

void graph_attention(int64_t frames, int64_t joints, int64_t channels, int64_t heads, int64_t width, int64_t results,
                     uintptr_t x, uintptr_t qk_weight, uintptr_t qk_bias, uintptr_t topology, uintptr_t weight,
                     double eps, bool split, uintptr_t out, int device, uintptr_t stream, int threads) {
  const s2v::GraphAttentionCall call = {frames, joints, channels, heads, width, results, pointer<const float>(x),
                                        pointer<const float>(qk_weight), pointer<const float>(qk_bias),
                                        pointer<const float>(topology), pointer<const float>(weight), eps, split,
                                        pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(graph_attention, call, device, stream, threads);
}

void graph_attention_backward(int64_t frames, int64_t joints, int64_t channels, int64_t heads, int64_t width,
                              int64_t results, uintptr_t x, uintptr_t qk_weight, uintptr_t qk_bias,
                              uintptr_t topology, uintptr_t weight, double eps, bool split, uintptr_t grad,
                              uintptr_t d_x,
                              uintptr_t d_qk_weight, uintptr_t d_qk_bias, uintptr_t d_topology, uintptr_t d_weight,
                              int device, uintptr_t stream, int threads) {
  const s2v::GraphAttentionBackwardCall call = {
      frames, joints, channels, heads, width, results, pointer<const float>(x), pointer<const float>(qk_weight),
      pointer<const float>(qk_bias), pointer<const float>(topology), pointer<const float>(weight), eps, split,
      pointer<const float>(grad), pointer<float>(d_x), pointer<float>(d_qk_weight), pointer<float>(d_qk_bias),
      pointer<float>(d_topology), pointer<float>(d_weight)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(graph_attention_backward, call, device, stream, threads);
}

std::vector<float*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<float*> all;
  for (const uintptr_t address : addresses) all.push_back(pointer<float>(address));
  return all;
}

void batch_norm(int64_t rows, const std::vector<int64_t>& widths, const std::vector<uintptr_t>& x, uintptr_t weight,
                uintptr_t bias, uintptr_t residual, bool relu_first, bool relu, double eps, uintptr_t mean,
                uintptr_t variance, uintptr_t out, int device, uintptr_t stream, int threads) {
  const s2v::BatchNormCall call = {rows, widths, pointers(x), pointer<const float>(weight), pointer<const float>(bias),
                                   pointer<const float>(residual), relu_first, relu, eps, pointer<float>(mean),
                                   pointer<float>(variance), pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(batch_norm, call, device, stream, threads);
}

void batch_norm_backward(int64_t rows, const std::vector<int64_t>& widths, const std::vector<uintptr_t>& x,
                         uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t variance, uintptr_t out,
                         uintptr_t grad, bool relu_first, bool relu, double eps, const std::vector<uintptr_t>& d_x,
                         uintptr_t d_weight, uintptr_t d_bias, uintptr_t d_residual, int device, uintptr_t stream,
                         int threads) {
  const s2v::BatchNormBackwardCall call = {
      rows, widths, pointers(x), pointer<const float>(weight), pointer<const float>(bias), pointer<const float>(mean),
      pointer<const float>(variance), pointer<const float>(out), pointer<const float>(grad), relu_first, relu, eps,
      pointers(d_x), pointer<float>(d_weight), pointer<float>(d_bias), pointer<float>(d_residual)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(batch_norm_backward, call, device, stream, threads);
}

s2v::TemporalBranchesShape branches_shape(int64_t tracks, int64_t frames, int64_t joints, int64_t columns,
                                          int64_t width, int64_t taps, int64_t stride, int64_t pool,
                                          const std::vector<int64_t>& dilations) {
  return {tracks, frames, joints, columns, width, taps, stride, pool, dilations};
}

void temporal_branches(const s2v::TemporalBranchesShape& shape, uintptr_t x, uintptr_t weight, uintptr_t norm_weight,
                       uintptr_t norm_bias, double eps, uintptr_t mean, uintptr_t variance, uintptr_t branches,
                       uintptr_t remainder, int device, uintptr_t stream, int threads) {
  const s2v::TemporalBranchesCall call = {shape, pointer<const float>(x), pointer<const float>(weight),
                                          pointer<const float>(norm_weight), pointer<const float>(norm_bias), eps,
                                          pointer<float>(mean), pointer<float>(variance), pointer<float>(branches),
                                          pointer<float>(remainder)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(temporal_branches, call, device, stream, threads);
}

void temporal_branches_backward(const s2v::TemporalBranchesShape& shape, uintptr_t x, uintptr_t weight,
                                uintptr_t norm_weight, uintptr_t norm_bias, double eps, uintptr_t mean,
                                uintptr_t variance, uintptr_t grad, uintptr_t grad_remainder, uintptr_t d_x,
                                uintptr_t d_weight, uintptr_t d_norm_weight, uintptr_t d_norm_bias, int device,
                                uintptr_t stream, int threads) {
  const s2v::TemporalBranchesBackwardCall call = {
      shape, pointer<const float>(x), pointer<const float>(weight), pointer<const float>(norm_weight),
      pointer<const float>(norm_bias), eps, pointer<const float>(mean), pointer<const float>(variance),
      pointer<const float>(grad), pointer<const float>(grad_remainder), pointer<float>(d_x), pointer<float>(d_weight),
      pointer<float>(d_norm_weight), pointer<float>(d_norm_bias)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(temporal_branches_backward, call, device, stream, threads);
}

void joint_mix(int64_t tracks, int64_t frames, int64_t joints, int64_t channels, int64_t subsets, int64_t units,
               int64_t groups, uintptr_t x, uintptr_t dynamic, uintptr_t constant, uintptr_t bias, uintptr_t gate,
               uintptr_t out, int device, uintptr_t stream, int threads) {
  const s2v::JointMixCall call = {
      tracks, frames, joints, channels, subsets, units, groups, pointer<const float>(x), pointer<const float>(dynamic),
      pointer<const float>(constant), pointer<const float>(bias), pointer<const float>(gate), pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(joint_mix, call, device, stream, threads);
}

void joint_mix_backward(int64_t tracks, int64_t frames, int64_t joints, int64_t channels, int64_t subsets,
                        int64_t units, int64_t groups, uintptr_t x, uintptr_t dynamic, uintptr_t constant,
                        uintptr_t bias, uintptr_t gate, uintptr_t grad, uintptr_t d_x, uintptr_t d_dynamic,
                        uintptr_t d_constant, uintptr_t d_bias, uintptr_t d_gate, int device, uintptr_t stream,
                        int threads) {
  const s2v::JointMixBackwardCall call = {
      tracks, frames, joints, channels, subsets, units, groups, pointer<const float>(x), pointer<const float>(dynamic),
      pointer<const float>(constant), pointer<const float>(bias), pointer<const float>(gate),
      pointer<const float>(grad), pointer<float>(d_x), pointer<float>(d_dynamic), pointer<float>(d_constant),
      pointer<float>(d_bias), pointer<float>(d_gate)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(joint_mix_backward, call, device, stream, threads);
}

void graph_mix(int64_t rows, int64_t joints, int64_t channels, int64_t subsets, uintptr_t x, uintptr_t graph,
               uintptr_t out, int device, uintptr_t stream, int threads) {
  const s2v::GraphMixCall call = {rows, joints, channels, subsets, pointer<const float>(x), pointer<const float>(graph),
                                  pointer<float>(out)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(graph_mix, call, device, stream, threads);
}

void graph_mix_backward(int64_t rows, int64_t joints, int64_t channels, int64_t subsets, uintptr_t x, uintptr_t graph,
                        uintptr_t grad, uintptr_t d_x, uintptr_t d_graph, int device, uintptr_t stream, int threads) {
  const s2v::GraphMixBackwardCall call = {rows, joints, channels, subsets, pointer<const float>(x),
                                          pointer<const float>(graph), pointer<const float>(grad),
                                          pointer<float>(d_x), pointer<float>(d_graph)};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(graph_mix_backward, call, device, stream, threads);
}

}  // namespace

void bind_graph(py::module_& module) {
  module.def("graph_mix", &graph_mix, py::kw_only(), py::arg("rows"), py::arg("joints"), py::arg("channels"),
             py::arg("subsets"), py::arg("x"), py::arg("graph"), py::arg("out"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0,
             "Joints mixed along the edges of a graph; see s2vfast.ops.graph_mix.");
  module.def("graph_mix_backward", &graph_mix_backward, py::kw_only(), py::arg("rows"), py::arg("joints"),
             py::arg("channels"), py::arg("subsets"), py::arg("x"), py::arg("graph"), py::arg("grad"), py::arg("d_x"),
             py::arg("d_graph"), py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Its gradients.");
  module.def("batch_norm", &batch_norm, py::kw_only(), py::arg("rows"), py::arg("widths"), py::arg("x"),
             py::arg("weight"), py::arg("bias"), py::arg("residual") = 0, py::arg("relu_first"), py::arg("relu"),
             py::arg("eps"), py::arg("mean"), py::arg("variance"), py::arg("out"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Batch norm, a residual, ReLU; see s2vfast.ops.batch_norm.");
  module.def("batch_norm_backward", &batch_norm_backward, py::kw_only(), py::arg("rows"), py::arg("widths"),
             py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("mean"), py::arg("variance"),
             py::arg("out") = 0, py::arg("grad"), py::arg("relu_first"), py::arg("relu"), py::arg("eps"),
             py::arg("d_x"), py::arg("d_weight"), py::arg("d_bias"), py::arg("d_residual") = 0,
             py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0, "Its gradients.");
  module.def("graph_attention", &graph_attention, py::kw_only(), py::arg("frames"), py::arg("joints"),
             py::arg("channels"), py::arg("heads"), py::arg("width"), py::arg("results"), py::arg("x"),
             py::arg("qk_weight"), py::arg("qk_bias"), py::arg("topology"), py::arg("weight"), py::arg("eps"),
             py::arg("split"), py::arg("out"), py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Joints of frames mixed by attention times a topology; see s2vfast.ops.graph_attention.");
  module.def("graph_attention_backward", &graph_attention_backward, py::kw_only(), py::arg("frames"),
             py::arg("joints"), py::arg("channels"), py::arg("heads"), py::arg("width"), py::arg("results"),
             py::arg("x"), py::arg("qk_weight"), py::arg("qk_bias"), py::arg("topology"), py::arg("weight"),
             py::arg("eps"), py::arg("split"), py::arg("grad"), py::arg("d_x"), py::arg("d_qk_weight"),
             py::arg("d_qk_bias"), py::arg("d_topology"), py::arg("d_weight"), py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "Its gradients.");
  module.def("graph_attention_parts", &s2v::graph_attention_parts, py::arg("frames"),
             "Parts that gradients of parameters come in.");
  // Of this module alone: a process may load the extension twice.
  py::class_<s2v::TemporalBranchesShape>(module, "TemporalBranchesShape", py::module_local(),
                                         "Sizes of s2vfast.ops.temporal_branches.")
      .def(py::init(&branches_shape), py::kw_only(), py::arg("tracks"), py::arg("frames"), py::arg("joints"),
           py::arg("columns"), py::arg("width"), py::arg("taps"), py::arg("stride"), py::arg("pool"),
           py::arg("dilations"));
  module.def("temporal_branches", &temporal_branches, py::arg("shape"), py::kw_only(), py::arg("x"), py::arg("weight"),
             py::arg("norm_weight") = 0, py::arg("norm_bias") = 0, py::arg("eps"), py::arg("mean") = 0,
             py::arg("variance") = 0, py::arg("branches"), py::arg("remainder"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0,
             "Convolutions over time and a maximum of normalised rows; see s2vfast.ops.temporal_branches.");
  module.def("temporal_branches_backward", &temporal_branches_backward, py::arg("shape"), py::kw_only(), py::arg("x"),
             py::arg("weight"), py::arg("norm_weight") = 0, py::arg("norm_bias") = 0, py::arg("eps"),
             py::arg("mean") = 0, py::arg("variance") = 0, py::arg("grad"), py::arg("grad_remainder"), py::arg("d_x"),
             py::arg("d_weight"), py::arg("d_norm_weight") = 0, py::arg("d_norm_bias") = 0, py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Its gradients.");
  module.def("temporal_branches_parts", &s2v::temporal_branches_parts, py::arg("tracks"),
             "Parts that the weight's gradient comes in.");
  module.def("joint_mix", &joint_mix, py::kw_only(), py::arg("tracks"), py::arg("frames"), py::arg("joints"),
             py::arg("channels"), py::arg("subsets"), py::arg("units"), py::arg("groups"), py::arg("x"),
             py::arg("dynamic"), py::arg("constant"), py::arg("bias") = 0, py::arg("gate") = 0, py::arg("out"),
             py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Joints mixed by maps of their channels; see s2vfast.ops.joint_mix.");
  module.def("joint_mix_backward", &joint_mix_backward, py::kw_only(), py::arg("tracks"), py::arg("frames"),
             py::arg("joints"), py::arg("channels"), py::arg("subsets"), py::arg("units"), py::arg("groups"),
             py::arg("x"), py::arg("dynamic"), py::arg("constant"), py::arg("bias") = 0, py::arg("gate") = 0,
             py::arg("grad"), py::arg("d_x") = 0, py::arg("d_dynamic") = 0, py::arg("d_constant") = 0,
             py::arg("d_bias") = 0, py::arg("d_gate") = 0, py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "Its gradients.");
}
