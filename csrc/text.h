// Text formats: the number grammar, and what the parsers of csrc/text_*.cpp give. s2vfast/data/formats/text.py holds the same
// rules in Python, and every message. A parser here reads whole, good files alone: what it leaves (anything broken,
// a number that is not finite, a body twice in a frame) is read again there, which says what is wrong.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <vector>

// Without std::from_chars for floating point (GCC 10 and older) the Python parsers do it all.
// count_fields takes characters from words.
#if defined(__cpp_lib_to_chars) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define S2V_TEXT_PARSERS 1
#endif

namespace s2v {

struct TextTrack {
  std::string id;                     // digits
  std::vector<int32_t> frame_index;   // frames in which a joint is not at zero
  std::vector<float> joints;          // [frames, 25, 3]
};

struct TextNtu {
  int64_t frames = 0;
  std::vector<TextTrack> tracks;  // in the order in which they appear
};

bool text_ntu(const char* data, size_t size, TextNtu* out);
// out: numbers [lines, 150].
bool text_pkummd(const char* data, size_t size, std::vector<double>* out);

#if defined(S2V_TEXT_PARSERS)

constexpr int kNumberLength = 64;  // characters of the longest number

inline bool is_blank(char c) { return c == ' ' || c == '\t'; }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The end of the digits that begin at `at`; `at` itself where there are none.
inline const char* digits_end(const char* at, const char* end) {
  while (at < end && is_digit(*at)) ++at;
  return at;
}

// -?digits(.digits)?([eE][+-]?digits)?: reads one at `at`, to its end; null where there is none, or where it is too
// long or its value out of a double's range.
inline const char* read_number(const char* at, const char* end, double* value) {
  static constexpr double kPowers[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14,
                                       1e15};
  const char* const begin = at;
  const bool negative = at < end && *at == '-';
  if (negative) ++at;
  uint64_t digits = 0;
  const char* stop = at;
  for (; stop < end && is_digit(*stop); ++stop) digits = 10 * digits + uint64_t(*stop - '0');
  if (stop == at) return nullptr;
  const char* const first = at;
  int64_t decimals = 0;
  if (stop < end && *stop == '.') {
    at = ++stop;
    for (; stop < end && is_digit(*stop); ++stop) digits = 10 * digits + uint64_t(*stop - '0');
    decimals = stop - at;
    if (decimals == 0) return nullptr;
  }
  // Up to 15 digits and their power of ten are exact, and one division is rounded once: the nearest double.
  if (stop - first <= 16 && !(stop < end && (*stop == 'e' || *stop == 'E'))) {
    const double magnitude = double(int64_t(digits)) / kPowers[decimals];
    *value = negative ? -magnitude : magnitude;
    return stop;
  }
  if (stop < end && (*stop == 'e' || *stop == 'E')) {
    at = ++stop;
    if (at < end && (*at == '+' || *at == '-')) ++at;
    stop = digits_end(at, end);
    if (stop == at) return nullptr;
  }
  if (stop - begin > kNumberLength) return nullptr;
  const std::from_chars_result result = std::from_chars(begin, stop, *value);
  return result.ec == std::errc() && result.ptr == stop ? stop : nullptr;
}

// Goes through a text line by line. A line ends with LF or CR LF; one that a CR alone ends is left to Python.
class Lines {
 public:
  Lines(const char* data, size_t size) : at_(data), end_(data + size) {}

  // The next line without its end; false where there is none.
  bool next() {
    if (at_ == end_) return false;
    const void* const newline = std::memchr(at_, '\n', size_t(end_ - at_));
    begin = at_;
    end = newline == nullptr ? end_ : static_cast<const char*>(newline);
    at_ = newline == nullptr ? end_ : end + 1;
    if (end > begin && end[-1] == '\r') --end;
    return true;
  }

  // The whole line is a number of at most 18 digits, blanks around it left aside.
  bool whole_number(int64_t* value) const {
    const char* from = begin;
    const char* to = end;
    while (from < to && is_blank(*from)) ++from;
    while (to > from && is_blank(to[-1])) --to;
    if (to == from || to - from > 18 || digits_end(from, to) != to) return false;
    return std::from_chars(from, to, *value).ptr == to;
  }

  const char* begin = nullptr;
  const char* end = nullptr;

 private:
  const char* at_;
  const char* const end_;
};

// Fields from `at` to `end`, separated by spaces, of which the first may have begun before `at` (`inside`); -1 where a
// control character is met, tabs too. Eight characters at a time, their high bits being the answers.
inline int64_t count_fields(const char* at, const char* end, bool inside) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f, kHigh = ~kLow, kSpaces = 0x2020202020202020;
  int64_t starts = 0;
  uint64_t before = inside ? 0x80 : 0, controls = 0;
  for (; at < end; at += 8) {
    uint64_t x = kSpaces;
    std::memcpy(&x, at, size_t(end - at < 8 ? end - at : 8));
    const uint64_t field = (((x & kLow) + 0x5f5f5f5f5f5f5f5f) | x) & kHigh;  // above a space
    const uint64_t y = x ^ kSpaces;
    controls |= ~field & (((y & kLow) + kLow) | y) & kHigh;
    starts += int64_t(((field & ~(field << 8 | before)) >> 7) * 0x0101010101010101 >> 56);
    before = field >> 56;
  }
  return controls ? -1 : starts;
}

#endif

}  // namespace s2v
