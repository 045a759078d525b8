// Independent pieces of work on a few threads.
#pragma once

#include <functional>

#include "view.h"

namespace hetmerge {

// Calls body(k) once for every k in [0, count), on up to `threads` threads, in any order. Results
// must not depend on that order: write what belongs to k to a place of its own. The first exception
// is thrown again here, after every thread has stopped.
void parallel_for(Index count, int threads, const std::function<void(Index)>& body);

}  // namespace hetmerge
