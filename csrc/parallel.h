// One small pool of threads for the host part of every operation.
#pragma once

#include <cstdint>
#include <functional>

namespace s2v {

// Cores that this process may use.
int available_threads();

// Calls body(begin, end) on ranges that cover [0, items) once each, `grain` items or fewer a call, on at most
// `threads` threads including the caller (0: as many as there are cores). Returns when all is done; an exception of
// body is rethrown here. Ranges depend on items and grain alone, so results never depend on the number of threads.
// Safe from several threads (a caller that finds the pool busy works alone) and after a fork.
void parallel_for(int64_t items, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace s2v
