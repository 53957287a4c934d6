// clip_sample on the host: sequences are shared out over threads.
#include "clip_sample.h"

#include <limits>
#include <vector>

#include "clip_sample.cuh"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

template <class T>
void run(const ClipSampleCall& call, int threads) {
  const ClipSampleSpec& spec = call.spec;
  const T* frames = static_cast<const T*>(call.frames);
  const int64_t size = int64_t(spec.bodies) * spec.length * spec.joints * (spec.velocity != 0.0f ? 6 : 3);
  parallel_for(call.samples, 4, threads, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> lower(spec.length);
    std::vector<float> weight(spec.length);
    std::vector<int64_t> from(2 * int64_t(spec.length));
    std::vector<uint64_t> order(spec.length + 1);
    const ClipScratch scratch = {lower.data(), weight.data(), from.data(), order.data()};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = call.ids[i];
      clip_item(spec, frames, call.frame_index, call.row + id * spec.bodies, call.count + id * spec.bodies, uint64_t(id),
                scratch, call.out + i * size, HostLane());
    }
  });
}

// Tables that name a row which is not there would be read beyond the frames.
void check_tables(const ClipSampleCall& call) {
  const int64_t bodies = call.spec.bodies;
  for (int64_t i = 0; i < call.samples; ++i) {
    const int64_t id = call.ids[i];
    require(id >= 0 && id < call.sequences, "clip_sample: ids has a number that is no sequence's");
    for (int64_t at = id * bodies; at < (id + 1) * bodies; ++at) {
      const int64_t row = call.row[at], count = call.count[at];
      require(count >= (at == id * bodies) && row >= 0 && row <= call.rows && count <= call.rows - row,
              "clip_sample: row and count of a track are not within the frames");
    }
  }
}

}  // namespace

ClipAnchor clip_anchor(const std::vector<int>& joints) {
  ClipAnchor anchor = {int32_t(joints.size()), {}};
  for (size_t i = 0; i < joints.size() && i < size_t(kMaxAnchor); ++i) anchor.joint[i] = joints[i];
  return anchor;
}

void clip_sample_check(const ClipSampleCall& call) {
  const ClipSampleSpec& spec = call.spec;
  require(call.kind >= kFloat32 && call.kind <= kBfloat16, "clip_sample: no such kind of frames");
  require(call.samples >= 0, "clip_sample: a negative number of sequences");
  require(spec.bodies >= 1 && spec.joints >= 1 && spec.length >= 1, "clip_sample: bodies, joints, frames >= 1");
  require(int64_t(spec.length) * spec.joints <= std::numeric_limits<int32_t>::max() / 6,
          "clip_sample: a clip of 2**31 numbers or more");
  const auto check_joint = [&](int32_t joint) {
    require(joint >= 0 && joint < spec.joints, "clip_sample: a joint of the spec is not one of the skeleton's");
  };
  check_joint(spec.left);
  check_joint(spec.right);
  for (const ClipAnchor& anchor : {spec.root, spec.lower, spec.upper}) {
    require(anchor.count >= 1 && anchor.count <= kMaxAnchor, "clip_sample: a mean of 1 to 4 joints");
    for (int32_t i = 0; i < anchor.count; ++i) check_joint(anchor.joint[i]);
  }
  require(spec.up >= 0 && spec.up <= 2, "clip_sample: up is 0, 1 or 2");
  if (call.samples == 0) return;
  require(call.frames != nullptr && call.frame_index != nullptr && call.row != nullptr && call.count != nullptr &&
              call.ids != nullptr && call.out != nullptr,
          "clip_sample: a null pointer");
}

void clip_sample(const ClipSampleCall& call, int threads) {
  clip_sample_check(call);
  if (call.samples == 0) return;
  check_tables(call);
  if (call.kind == kFloat32) run<float>(call, threads);
  else if (call.kind == kFloat16) run<Half>(call, threads);
  else run<Bf16>(call, threads);
}

}  // namespace s2v
