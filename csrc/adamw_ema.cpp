// adamw_ema on the host: ranges of numbers are shared out over threads, numbers over vector lanes.
#include "adamw_ema.h"

#include <algorithm>

#include "adamw_ema.cuh"
#include "parallel.h"
#include "require.h"

namespace s2v {
namespace {

constexpr int64_t kRange = 16384;  // numbers an item of the second pass

S2V_CLONES double squares(const float* grad, int64_t begin, int64_t end) {
  return adamw_ema_squares<8, 4>(grad, begin, end, 0, 1);
}
S2V_CLONES void update(const AdamwEmaFactors& factors, const AdamwEmaBuffers& buffers, int64_t begin, int64_t end) {
  adamw_ema_item<8>(factors, buffers, begin, end, 0, 1);
}

}  // namespace

int64_t adamw_ema_partials(int64_t numel) {
  const int64_t numbers = adamw_ema_partial_numbers(numel);
  return numel > 0 ? (numel + numbers - 1) / numbers : 0;
}

void adamw_ema(const AdamwEmaCall& call, int threads) {
  require(call.numel >= 0 && call.teacher_numel >= 0 && call.teacher_numel <= call.numel,
          "adamw_ema: the teacher has more numbers than there are parameters");
  require(call.norm != nullptr, "adamw_ema: norm is a null pointer");
  require((call.param != nullptr && call.grad != nullptr && call.exp_avg != nullptr && call.exp_avg_sq != nullptr &&
           call.partial != nullptr) || call.numel == 0,
          "adamw_ema: a buffer is a null pointer");
  require(call.teacher != nullptr || call.teacher_numel == 0, "adamw_ema: teacher is a null pointer");
  int64_t covered = 0;
  for (int64_t i = 0; i < call.span_count; ++i) {
    require(call.spans[3 * i] == covered && call.spans[3 * i + 1] >= covered, "adamw_ema: spans are not in order");
    covered = call.spans[3 * i + 1];
  }
  require(covered == call.numel, "adamw_ema: spans do not cover the parameters");

  const AdamwEmaBuffers buffers = {call.param, call.grad, call.exp_avg, call.exp_avg_sq, call.teacher, call.numel,
                                   call.teacher_numel, call.spans, call.span_count};
  const int64_t numbers = adamw_ema_partial_numbers(call.numel), partials = adamw_ema_partials(call.numel);
  parallel_for(partials, std::max<int64_t>(1, 4 * kRange / std::max<int64_t>(numbers, 1)), threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i)
                   call.partial[i] = squares(call.grad, i * numbers, std::min((i + 1) * numbers, call.numel));
               });
  double sum = 0;
  for (int64_t i = 0; i < partials; ++i) sum += call.partial[i];
  *call.norm = adamw_ema_norm(sum);
  const AdamwEmaNumbers given = {{call.step_at, call.step}, {call.lr_at, call.lr}, {call.tau_at, call.tau}};
  const AdamwEmaFactors factors =
      adamw_ema_factors(*call.norm, given, {call.beta1, call.beta2, call.eps, call.weight_decay, call.clip});
  parallel_for(call.numel, kRange, threads,
               [&](int64_t begin, int64_t end) { update(factors, buffers, begin, end); });
}

}  // namespace s2v
