// PKU-MMD's skeleton text: 150 numbers a line.
#include "text.h"

#if defined(S2V_TEXT_PARSERS)

namespace s2v {

bool text_pkummd(const char* data, size_t size, std::vector<double>* out) {
  constexpr int kNumbers = 150;
  Lines lines(data, size);
  bool blank = false;
  while (lines.next()) {
    const char* at = lines.begin;
    int numbers = 0;
    for (;; ++numbers) {
      while (at < lines.end && is_blank(*at)) ++at;
      if (at == lines.end) break;
      double value;
      at = numbers == kNumbers ? nullptr : read_number(at, lines.end, &value);
      if (at == nullptr || (at < lines.end && !is_blank(*at))) return false;
      out->push_back(value);
    }
    if (numbers == 0) {
      blank = true;
    } else if (blank || numbers != kNumbers) {  // blank lines may come at the end alone
      return false;
    }
  }
  return true;
}

}  // namespace s2v
#endif
