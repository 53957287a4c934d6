// The check of an argument.
#pragma once

#include <stdexcept>

namespace s2v {

// Raises ValueError in Python; a message begins with the operation, then names the argument.
inline void require(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

}  // namespace s2v
