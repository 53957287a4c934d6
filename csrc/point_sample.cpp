// point_sample on the host: frames of clips are shared out over threads.
#include "point_sample.h"

#include <limits>

#include "parallel.h"
#include "point_sample.cuh"
#include "require.h"

namespace s2v {
namespace {

template <class T>
void run(const PointSampleCall& call, int threads) {
  parallel_for(call.samples * call.length, 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      point_item<T>(call, call.ids[i / call.length], int32_t(i % call.length), call.out + i * call.drawn * 3);
  });
}

// Tables that name a point which is not there would be read beyond the points.
void check(const PointSampleCall& call) {
  require(call.kind >= 0 && call.kind <= 2, "point_sample: no such kind of points");
  require(call.samples >= 0 && call.length >= 1 && call.drawn >= 1 && call.stride >= 1 && call.windows >= 1,
          "point_sample: frames, points, stride, windows >= 1");
  require(int64_t(call.length) * call.drawn <= std::numeric_limits<int32_t>::max(),
          "point_sample: a clip of 2**31 points or more");
  if (call.samples == 0) return;
  require(call.begin != nullptr && call.size != nullptr && call.row != nullptr && call.count != nullptr &&
              call.origin != nullptr && call.ids != nullptr && call.out != nullptr &&
              (call.points != nullptr || call.points_count == 0),
          "point_sample: a null pointer");
  for (int64_t i = 0; i < call.samples; ++i) {
    const int64_t id = call.ids[i];
    require(id >= 0 && id < call.sequences, "point_sample: ids has a number that is no sequence's");
    const int64_t row = call.row[id], count = call.count[id];
    require(count >= 1 && row >= 0 && row <= call.frames && count <= call.frames - row,
            "point_sample: row and count of a sequence are not within the frames");
    for (int64_t f = row; f < row + count; ++f) {
      const int64_t begin = call.begin[f], size = call.size[f];
      require(size == 0 || (size > 0 && begin >= 0 && begin <= call.points_count && size <= call.points_count - begin),
              "point_sample: begin and size of a frame are not within the points");
    }
  }
}

}  // namespace

void point_sample(const PointSampleCall& call, int threads) {
  check(call);
  if (call.kind == 0) run<float>(call, threads);
  else if (call.kind == 1) run<Half>(call, threads);
  else run<Bf16>(call, threads);
}

}  // namespace s2v
