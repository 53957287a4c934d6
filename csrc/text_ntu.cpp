// NTU RGB+D's .skeleton text: frames; for each its bodies; for each a line of ten fields, the number of joints, and
// twelve numbers a joint, of which x y z are read.
#include "text.h"

#if defined(S2V_TEXT_PARSERS)
#include <cmath>
#include <string_view>
#include <unordered_map>

namespace s2v {
namespace {

constexpr int kJoints = 25, kBodyFields = 10, kJointFields = 12, kIdLength = 20;
constexpr int64_t kMaxFrames = 1000000, kMaxBodies = 64;
constexpr double kMaxMetres = 20.0;

const char* skip_blanks(const char* at, const char* end) {
  while (at < end && is_blank(*at)) ++at;
  return at;
}

// x y z of a joint's line; false unless it has twelve fields.
bool joint_line(const Lines& line, double* xyz) {
  const char* at = line.begin;
  for (int i = 0; i < 3; ++i) {
    at = skip_blanks(at, line.end);
    at = read_number(at, line.end, xyz + i);
    if (at == nullptr || (at < line.end && !is_blank(*at)) || !(std::fabs(xyz[i]) <= kMaxMetres)) return false;
  }
  return count_fields(at, line.end, true) == kJointFields - 3;
}

// The id that a body's line begins with; empty unless it has ten fields and the first is digits.
std::string_view body_line(const Lines& line) {
  const char* const begin = skip_blanks(line.begin, line.end);
  const char* const stop = digits_end(begin, line.end);
  if (stop == begin || stop - begin > kIdLength || (stop < line.end && !is_blank(*stop))) return {};
  if (count_fields(stop, line.end, true) != kBodyFields - 1) return {};
  return {begin, size_t(stop - begin)};
}

}  // namespace

bool text_ntu(const char* data, size_t size, TextNtu* out) {
  Lines lines(data, size);
  if (!lines.next() || !lines.whole_number(&out->frames) || out->frames > kMaxFrames) return false;
  std::unordered_map<std::string_view, size_t> numbers;  // id -> track
  std::vector<int64_t> last;                             // frame in which a track was seen last, all zero or not
  for (int64_t frame = 0; frame < out->frames; ++frame) {
    int64_t bodies = 0;
    if (!lines.next() || !lines.whole_number(&bodies) || bodies > kMaxBodies) return false;
    for (int64_t body = 0; body < bodies; ++body) {
      if (!lines.next()) return false;
      const std::string_view id = body_line(lines);
      int64_t joints = 0;
      if (id.empty() || !lines.next() || !lines.whole_number(&joints) || joints != kJoints) return false;
      const auto [entry, appears] = numbers.try_emplace(id, out->tracks.size());
      if (appears) {
        out->tracks.emplace_back();
        out->tracks.back().id = std::string(id);
        last.push_back(-1);
      }
      if (last[entry->second] == frame) return false;
      last[entry->second] = frame;
      float row[kJoints * 3];
      bool present = false;
      for (int joint = 0; joint < kJoints; ++joint) {
        double xyz[3];
        if (!lines.next() || !joint_line(lines, xyz)) return false;
        for (int i = 0; i < 3; ++i) {
          present |= xyz[i] != 0.0;
          row[3 * joint + i] = float(xyz[i]);
        }
      }
      if (present) {
        TextTrack& track = out->tracks[entry->second];
        track.frame_index.push_back(int32_t(frame));
        track.joints.insert(track.joints.end(), row, row + kJoints * 3);
      }
    }
  }
  while (lines.next())  // blank lines at the end
    if (count_fields(lines.begin, lines.end, false) != 0) return false;
  return true;
}

}  // namespace s2v
#endif
