// Large uninitialised buffers.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "view.h"

namespace hetmerge {

struct Release {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Workspace = std::unique_ptr<T[], Release>;

// Memory that is never touched costs nothing. Huge pages, where the system has them, spare a page
// fault per 4 KiB.
template <class T>
Workspace<T> make_workspace(Index count) {
    constexpr std::size_t page = std::size_t{1} << 21;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    const std::size_t rounded = (bytes + page - 1) / page * page;
    if (bytes < page) {
        if (void* memory = std::malloc(bytes > 0 ? bytes : 1))
            return Workspace<T>(static_cast<T*>(memory));
        throw std::bad_alloc();
    }
    void* memory = std::aligned_alloc(page, rounded);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return Workspace<T>(static_cast<T*>(memory));
}

}  // namespace hetmerge
