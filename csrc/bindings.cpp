// The contents page of the compiled extension s2vfast._native: what Python can call. Addresses come in as integers
// (tensor.data_ptr()); shapes, dtypes and devices are checked in Python before a call.
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw_ema.h"
#include "attention.h"
#include "bindings.h"
#include "clip_sample.h"
#include "embed_gather.h"
#include "lanes.h"
#include "mask_fill.h"
#include "parallel.h"
#include "split_product.h"
#include "text.h"
#include "tube_mask.h"

namespace {

void tube_mask(uintptr_t clips, int itemsize, int64_t tracks, int64_t frames, int64_t joints, int64_t channels,
               int64_t segment_frames, int64_t tube_len, int64_t keep, double motion_weight, uintptr_t noise,
               uint64_t seed, uint32_t epoch, uintptr_t ids, uintptr_t visible, uintptr_t masked, int device,
               uintptr_t stream, int threads) {
  const s2v::TubeMaskCall call = {pointer<const void>(clips), itemsize, tracks, frames, joints, channels,
                                  segment_frames, tube_len, keep, motion_weight, pointer<const void>(noise), seed,
                                  epoch, pointer<const int64_t>(ids), pointer<int32_t>(visible),
                                  pointer<int32_t>(masked)};
  const py::gil_scoped_release release;
  S2V_RUN(tube_mask, call, device, stream, threads);
}

void clip_sample(uintptr_t frames, int kind, uintptr_t frame_index, uintptr_t row, uintptr_t count, uintptr_t ids,
                 int64_t samples, int64_t sequences, int64_t rows, int64_t bodies, int64_t joints, int64_t length,
                 bool crop, double crop_min,
                 const std::string& center, bool torso, bool yaw, const std::array<double, 3>& rotate, double scale_jitter,
                 double velocity, const std::vector<int>& root, const std::array<std::vector<int>, 2>& ends,
                 const std::array<int, 2>& sides, int up,
                 uint64_t seed, uint32_t epoch, bool training, uintptr_t out, int device, uintptr_t stream, int threads) {
  s2v::ClipSampleCall call = {};
  call.frames = pointer<const void>(frames);
  call.kind = kind;
  call.frame_index = pointer<const int32_t>(frame_index);
  call.row = pointer<const int64_t>(row);
  call.count = pointer<const int32_t>(count);
  call.ids = pointer<const int64_t>(ids);
  call.samples = samples;
  call.sequences = sequences;
  call.rows = rows;
  call.out = pointer<float>(out);
  s2v::ClipSampleSpec& spec = call.spec;
  spec.bodies = int32_t(bodies);
  spec.joints = int32_t(joints);
  spec.length = int32_t(length);
  spec.crop = crop;
  spec.crop_min = float(crop_min);
  spec.crop_rest = float(1.0 - crop_min);
  spec.center = center == "first" ? s2v::kCenterFirst : center == "frame" ? s2v::kCenterFrame : s2v::kCenterNone;
  spec.torso = torso;
  spec.yaw = yaw;
  for (int i = 0; i < 3; ++i) spec.rotate[i] = float(rotate[i]);
  spec.scale_jitter = float(scale_jitter);
  spec.velocity = float(velocity);
  spec.root = s2v::clip_anchor(root);
  spec.lower = s2v::clip_anchor(ends[0]);
  spec.upper = s2v::clip_anchor(ends[1]);
  spec.left = sides[0];
  spec.right = sides[1];
  spec.up = up;
  spec.seed = seed;
  spec.epoch = epoch;
  spec.training = training;
  const py::gil_scoped_release release;
  S2V_RUN(clip_sample, call, device, stream, threads);
}

void embed_gather(int itemsize, int64_t tracks, int64_t frames, int64_t joints, int64_t channels,
                  int64_t segment_frames, int64_t width, int64_t kept, uintptr_t clips, uintptr_t weight_t,
                  uintptr_t bias, uintptr_t positions, uintptr_t visible, uintptr_t out, int device,
                  uintptr_t stream, int threads) {
  const s2v::EmbedGatherCall call = {itemsize, tracks, frames, joints, channels, segment_frames, width, kept,
                                     pointer<const float>(clips), pointer<const float>(weight_t),
                                     pointer<const float>(bias), pointer<const float>(positions),
                                     pointer<const int32_t>(visible), pointer<void>(out)};
  const py::gil_scoped_release release;
  S2V_RUN(embed_gather, call, device, stream, threads);
}

void embed_gather_backward(int itemsize, int64_t tracks, int64_t frames, int64_t joints, int64_t channels,
                           int64_t segment_frames, int64_t width, int64_t kept, uintptr_t clips, uintptr_t weight_t,
                           uintptr_t visible, uintptr_t grad, uintptr_t d_map, uintptr_t d_positions,
                           uintptr_t d_clips, uintptr_t partial, int64_t map_tiles, uintptr_t places, int device,
                           uintptr_t stream, int threads) {
  const s2v::EmbedGatherBackwardCall call = {itemsize, tracks, frames, joints, channels, segment_frames, width, kept,
                                             pointer<const float>(clips), pointer<const float>(weight_t),
                                             pointer<const int32_t>(visible), pointer<const void>(grad),
                                             pointer<float>(d_map), pointer<float>(d_positions),
                                             pointer<float>(d_clips), pointer<float>(partial), map_tiles,
                                             pointer<int32_t>(places)};
  const py::gil_scoped_release release;
  S2V_RUN(embed_gather_backward, call, device, stream, threads);
}

void attention(bool half, int64_t tracks, int64_t tokens, int64_t heads, int64_t width, uintptr_t qkv, uintptr_t out,
               uintptr_t lse, int64_t group, int device, uintptr_t stream, int threads) {
  const s2v::AttentionCall call = {half, tracks, tokens, heads, width, pointer<const void>(qkv), pointer<void>(out),
                                   pointer<float>(lse), group};
  const py::gil_scoped_release release;
  S2V_RUN(attention, call, device, stream, threads);
}

py::tuple attention_backward_workspace(int64_t batch_heads, int64_t tokens, int64_t width, int device) {
#if defined(S2V_CUDA)
  const s2v::AttentionWorkspace workspace =
      s2v::attention_backward_workspace(batch_heads, tokens, width, s2v::CudaTarget{device, nullptr});
  return py::make_tuple(workspace.blocks, workspace.floats);
#else
  (void)batch_heads, (void)tokens, (void)width, (void)device;
  throw std::invalid_argument("attention_backward: built without CUDA");
#endif
}

void attention_backward(bool half, int64_t tracks, int64_t tokens, int64_t heads, int64_t width, uintptr_t qkv,
                        uintptr_t out, uintptr_t lse, uintptr_t grad_out, uintptr_t grad_lse, uintptr_t grad_qkv,
                        uintptr_t workspace, int64_t blocks, int64_t group, int device, uintptr_t stream,
                        int threads) {
  const s2v::AttentionBackwardCall call = {half, tracks, tokens, heads, width, pointer<const void>(qkv),
                                           pointer<const void>(out), pointer<const float>(lse),
                                           pointer<const void>(grad_out), pointer<const float>(grad_lse),
                                           pointer<void>(grad_qkv), pointer<float>(workspace), blocks,
                                           group};
  const py::gil_scoped_release release;
  S2V_RUN(attention_backward, call, device, stream, threads);
}

void mask_fill(int itemsize, int64_t tracks, int64_t kept, int64_t tokens, int64_t width, uintptr_t latents,
               uintptr_t mask_token, uintptr_t positions, uintptr_t visible, uintptr_t out, int device,
               uintptr_t stream, int threads) {
  const s2v::MaskFillCall call = {itemsize, tracks, kept, tokens, width, pointer<const void>(latents),
                                  pointer<const float>(mask_token), pointer<const float>(positions),
                                  pointer<const int32_t>(visible), pointer<void>(out)};
  const py::gil_scoped_release release;
  S2V_RUN(mask_fill, call, device, stream, threads);
}

void mask_fill_backward(int itemsize, int64_t tracks, int64_t kept, int64_t tokens, int64_t width, uintptr_t grad,
                        uintptr_t visible, uintptr_t d_latents, uintptr_t d_mask_token, uintptr_t d_positions,
                        uintptr_t masked_sums, uintptr_t has_latent, int device,
                        uintptr_t stream, int threads) {
  const s2v::MaskFillBackwardCall call = {itemsize, tracks, kept, tokens, width, pointer<const void>(grad),
                                          pointer<const int32_t>(visible), pointer<void>(d_latents),
                                          pointer<float>(d_mask_token), pointer<float>(d_positions),
                                          pointer<float>(masked_sums), pointer<uint8_t>(has_latent)};
  const py::gil_scoped_release release;
  S2V_RUN(mask_fill_backward, call, device, stream, threads);
}

void adamw_ema(uintptr_t param, uintptr_t grad, uintptr_t exp_avg, uintptr_t exp_avg_sq, uintptr_t teacher,
               int64_t numel, int64_t teacher_numel, uintptr_t spans, int64_t span_count, uintptr_t step_at,
               uintptr_t lr_at, uintptr_t tau_at, double step, double lr, double tau, double beta1, double beta2,
               double eps, double weight_decay, double clip, uintptr_t partial, uintptr_t norm, int device,
               uintptr_t stream, int threads) {
  const s2v::AdamwEmaCall call = {pointer<float>(param), pointer<float>(grad), pointer<float>(exp_avg),
                                  pointer<float>(exp_avg_sq), pointer<float>(teacher), numel, teacher_numel,
                                  pointer<const int64_t>(spans), span_count, pointer<const double>(step_at),
                                  pointer<const double>(lr_at), pointer<const double>(tau_at), step, lr, tau, beta1,
                                  beta2, eps, weight_decay, clip, pointer<double>(partial), pointer<float>(norm)};
  const py::gil_scoped_release release;
  S2V_RUN(adamw_ema, call, device, stream, threads);
}

#define S2V_TEXT_(x) #x
#define S2V_TEXT(x) S2V_TEXT_(x)

#if defined(S2V_TEXT_PARSERS)
template <class T>
py::bytearray bytes_of(const std::vector<T>& values) {
  return py::bytearray(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// None for what the Python parser is to read.
py::object text_ntu(const py::bytes& data) {
  char* text = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &text, &size) != 0) throw py::error_already_set();
  s2v::TextNtu parsed;
  bool whole;
  {
    const py::gil_scoped_release release;
    whole = s2v::text_ntu(text, size_t(size), &parsed);
  }
  if (!whole) return py::none();
  py::list tracks;
  for (const s2v::TextTrack& track : parsed.tracks)
    tracks.append(py::make_tuple(track.id, bytes_of(track.frame_index), bytes_of(track.joints)));
  return py::make_tuple(parsed.frames, tracks);
}

py::object text_pkummd(const py::bytes& data) {
  char* text = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &text, &size) != 0) throw py::error_already_set();
  std::vector<double> numbers;
  bool whole;
  {
    const py::gil_scoped_release release;
    whole = s2v::text_pkummd(text, size_t(size), &numbers);
  }
  if (!whole) return py::none();
  return bytes_of(numbers);
}
#endif

void split_product(int64_t rows, int64_t count, int64_t columns, uintptr_t left, int64_t left_step, bool turned,
                   uintptr_t right, int64_t right_step, uintptr_t bias, uintptr_t out, int64_t out_step, int device,
                   uintptr_t stream, int threads) {
  const s2v::SplitProductCall call = {rows, count, columns, pointer<const float>(left), left_step, turned,
                                      pointer<const float>(right), right_step, pointer<const float>(bias), false,
                                      pointer<float>(out), out_step};
  const py::gil_scoped_release release;
  S2V_RUN_CPU(split_product, call, device, stream, threads);
}

py::dict features() {
  py::dict facts;
#if defined(__clang__)
  facts["compiler"] = "clang " S2V_TEXT(__clang_major__) "." S2V_TEXT(__clang_minor__);
#elif defined(__GNUC__)
  facts["compiler"] = "g++ " S2V_TEXT(__GNUC__) "." S2V_TEXT(__GNUC_MINOR__);
#else
  facts["compiler"] = "unknown";
#endif
  const int lanes = s2v::widest_lanes();
  facts["vectors"] = lanes == 16 ? "avx512" : lanes == 8 ? "avx2" : "baseline";
  facts["matrix unit"] = s2v::has_split_product();
  facts["threads"] = s2v::available_threads();
#if defined(S2V_CUDA)
  facts["cuda"] = true;
#else
  facts["cuda"] = false;
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled implementations of s2vfast's operations: raw addresses and sizes in, nothing returned.";
  module.def("features", &features, "What this build can do: compiler, vectors (registers of csrc/lanes.h), threads, cuda.");
  module.def("use_lanes", &s2v::use_lanes, py::arg("lanes"),
             "For tests: work with registers of 4, 8 or 16 float32 from now on; 0: with the widest.");
#if defined(S2V_TEXT_PARSERS)
  module.def("text_ntu", &text_ntu, py::arg("data"), "Tracks of an NTU file, or None; see s2vfast.data.formats.text.");
  module.def("text_pkummd", &text_pkummd, py::arg("data"), "Numbers of a PKU-MMD file, or None; likewise.");
#endif
  module.def("split_product", &split_product, py::kw_only(), py::arg("rows"), py::arg("count"), py::arg("columns"),
             py::arg("left"), py::arg("left_step"), py::arg("turned"), py::arg("right"), py::arg("right_step"),
             py::arg("bias") = 0, py::arg("out"), py::arg("out_step"), py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "A product of matrices of precision high; see s2vfast.ops._linear.");
  module.def("clip_sample", &clip_sample, py::kw_only(), py::arg("frames"), py::arg("kind"), py::arg("frame_index"),
             py::arg("row"), py::arg("count"), py::arg("ids"), py::arg("samples"), py::arg("sequences"),
             py::arg("rows"), py::arg("bodies"), py::arg("joints"), py::arg("length"), py::arg("crop"), py::arg("crop_min"), py::arg("center"), py::arg("torso"),
             py::arg("yaw"), py::arg("rotate"), py::arg("scale_jitter"), py::arg("velocity"), py::arg("root"),
             py::arg("ends"), py::arg("sides"), py::arg("up"), py::arg("seed"), py::arg("epoch"), py::arg("training"),
             py::arg("out"), py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Clips of the sequences ids; see s2vfast.ops.clip_sample.");
  module.def("tube_mask", &tube_mask, py::kw_only(), py::arg("clips"), py::arg("itemsize"), py::arg("tracks"),
             py::arg("frames"), py::arg("joints"), py::arg("channels"), py::arg("segment_frames"), py::arg("tube_len"),
             py::arg("keep"), py::arg("motion_weight"), py::arg("noise") = 0, py::arg("seed") = 0, py::arg("epoch") = 0,
             py::arg("ids") = 0, py::arg("visible"), py::arg("masked"), py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "Visible and masked token ids of every track; see s2vfast.ops.tube_mask.");
  module.def("embed_gather", &embed_gather, py::kw_only(), py::arg("itemsize"), py::arg("tracks"), py::arg("frames"),
             py::arg("joints"), py::arg("channels"), py::arg("segment_frames"), py::arg("width"), py::arg("kept"),
             py::arg("clips"), py::arg("weight_t"), py::arg("bias"), py::arg("positions"),
             py::arg("visible") = 0, py::arg("out"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0,
             "Tokens of the chosen pieces; see s2vfast.ops.embed_gather.");
  module.def("embed_gather_map_tiles", &s2v::embed_gather_map_tiles, py::arg("rows"),
             "Partial sums that the gradient of the linear map needs room for.");
  module.def("embed_gather_backward", &embed_gather_backward, py::kw_only(), py::arg("itemsize"), py::arg("tracks"),
             py::arg("frames"), py::arg("joints"), py::arg("channels"), py::arg("segment_frames"), py::arg("width"),
             py::arg("kept"), py::arg("clips"), py::arg("weight_t"), py::arg("visible") = 0, py::arg("grad"),
             py::arg("d_map") = 0, py::arg("d_positions") = 0, py::arg("d_clips") = 0, py::arg("partial") = 0,
             py::arg("map_tiles") = 0, py::arg("places") = 0, py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Its gradients.");
  module.def("attention", &attention, py::kw_only(), py::arg("half") = false, py::arg("tracks"), py::arg("tokens"),
             py::arg("heads"), py::arg("width"), py::arg("qkv"), py::arg("out"), py::arg("lse"),
             py::arg("group") = 0, py::arg("device") = -1, py::arg("stream") = 0, py::arg("threads") = 0,
             "Attention and its log-sum-exp; see s2vfast.ops.attention.");
  module.def("attention_backward_workspace", &attention_backward_workspace, py::kw_only(), py::arg("batch_heads"),
             py::arg("tokens"), py::arg("width"), py::arg("device"),
             "(blocks, floats of each): the workspace that its gradient needs on a GPU.");
  module.def("attention_backward", &attention_backward, py::kw_only(), py::arg("half") = false, py::arg("tracks"),
             py::arg("tokens"), py::arg("heads"), py::arg("width"), py::arg("qkv"), py::arg("out"), py::arg("lse"),
             py::arg("grad_out"), py::arg("grad_lse") = 0, py::arg("grad_qkv"), py::arg("workspace") = 0,
             py::arg("blocks") = 0, py::arg("group") = 0, py::arg("device") = -1, py::arg("stream") = 0,
             py::arg("threads") = 0, "Its gradient.");
  bind_graph(module);
  bind_points(module);
  module.def("mask_fill", &mask_fill, py::kw_only(), py::arg("itemsize"), py::arg("tracks"), py::arg("kept"),
             py::arg("tokens"), py::arg("width"), py::arg("latents"), py::arg("mask_token"), py::arg("positions"),
             py::arg("visible"), py::arg("out"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0,
             "Latents at their places, the mask token elsewhere; see s2vfast.ops.mask_fill.");
  module.def("mask_fill_backward", &mask_fill_backward, py::kw_only(), py::arg("itemsize"), py::arg("tracks"),
             py::arg("kept"), py::arg("tokens"), py::arg("width"), py::arg("grad"), py::arg("visible"),
             py::arg("d_latents") = 0, py::arg("d_mask_token") = 0, py::arg("d_positions") = 0,
             py::arg("masked_sums") = 0, py::arg("has_latent") = 0, py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0, "Its gradients.");
  module.def("adamw_ema_partials", &s2v::adamw_ema_partials, py::arg("numel"),
             "Partial sums that the norm needs room for.");
  module.def("adamw_ema", &adamw_ema, py::kw_only(), py::arg("param"), py::arg("grad"), py::arg("exp_avg"),
             py::arg("exp_avg_sq"), py::arg("teacher"), py::arg("numel"), py::arg("teacher_numel"), py::arg("spans"),
             py::arg("span_count"), py::arg("step_at") = 0, py::arg("lr_at") = 0, py::arg("tau_at") = 0,
             py::arg("step"), py::arg("lr"), py::arg("tau"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
             py::arg("weight_decay"), py::arg("clip"), py::arg("partial"), py::arg("norm"), py::arg("device") = -1,
             py::arg("stream") = 0, py::arg("threads") = 0,
             "Clip, AdamW, EMA over flat buffers in place; see s2vfast.ops.adamw_ema.");
}
