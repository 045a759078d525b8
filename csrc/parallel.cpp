#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace hetmerge {

void parallel_for(Index count, int threads, const std::function<void(Index)>& body) {
    const Index helpers = std::min<Index>(threads, count) - 1;
    if (helpers <= 0) {
        for (Index k = 0; k < count; ++k) body(k);
        return;
    }
    std::atomic<Index> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto work = [&] {
        try {
            for (Index k = next++; k < count; k = next++) body(k);
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(guard);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    for (Index t = 0; t < helpers; ++t) pool.emplace_back(work);
    work();
    for (std::thread& thread : pool) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace hetmerge
