// clip_sample as the bindings call it: raw pointers and sizes. Shapes are those of s2vfast/ops/clip_sample.py.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_launch.h"

namespace s2v {

enum Center : int32_t { kCenterNone, kCenterFirst, kCenterFrame };
enum FrameKind : int { kFloat32, kFloat16, kBfloat16 };

constexpr int32_t kMaxAnchor = 4;
// x of a joint that was seen and is at the origin: zeros are one that was not.
constexpr float kAtOrigin = 1e-30f;

// Joints whose mean counts: of those that a frame has.
struct ClipAnchor {
  int32_t count;
  int32_t joint[kMaxAnchor];
};

// s2vfast.reference.clip_sample.ClipSpec, its numbers in float32, and what the draws depend on.
struct ClipSampleSpec {
  int32_t bodies, joints, length;  // M, V, T
  bool crop;
  float crop_min, crop_rest;  // least share of the frames, and 1 less that
  int32_t center;
  bool torso, yaw;
  float rotate[3];  // radians
  float scale_jitter, velocity;
  ClipAnchor root, lower, upper;
  int32_t left, right, up;
  uint64_t seed;
  uint32_t epoch;
  bool training;
};

struct ClipSampleCall {
  const void* frames;  // [R, V, 3]
  int kind;            // of frames: FrameKind
  const int32_t* frame_index;  // [R]
  const int64_t* row;          // [Q, M]
  const int32_t* count;        // [Q, M]
  const int64_t* ids;          // [B]
  int64_t samples;             // B
  int64_t sequences, rows;     // Q, R: what ids, row and count may name
  ClipSampleSpec spec;
  float* out;  // [B * M, T, V, C]
};

// On the host, on `threads` threads (0: one for each core). Throws std::invalid_argument for what cannot be.
void clip_sample(const ClipSampleCall& call, int threads);

// On a device, where all addresses are the device's; in a build with CUDA.
void clip_sample_cuda(const ClipSampleCall& call, const CudaTarget& target);

// Of a list of joints; one that is too long is refused by the check.
ClipAnchor clip_anchor(const std::vector<int>& joints);

// What both refuse.
void clip_sample_check(const ClipSampleCall& call);

}  // namespace s2v
