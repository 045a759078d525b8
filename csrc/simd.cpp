#include "simd.h"

#include <limits>

#include "targets.h"

namespace hetmerge {
namespace {

// Enough independent lanes to hide the latency of max; compilers may not reorder a plain
// floating-point reduction, so the lanes are spelled out.
constexpr Index kLanes = 64;

template <class T>
HETMERGE_INLINE T max_of(const T* x, Index begin, Index end) {
    T lane[kLanes];
    for (Index l = 0; l < kLanes; ++l) lane[l] = -std::numeric_limits<T>::infinity();
    Index k = begin;
    for (; k + kLanes <= end; k += kLanes)
        for (Index l = 0; l < kLanes; ++l) lane[l] = x[k + l] > lane[l] ? x[k + l] : lane[l];
    for (; k < end; ++k) lane[0] = x[k] > lane[0] ? x[k] : lane[0];
    for (Index half = kLanes / 2; half > 0; half /= 2)
        for (Index l = 0; l < half; ++l)
            lane[l] = lane[l + half] > lane[l] ? lane[l + half] : lane[l];
    return lane[0];
}

template <class T>
HETMERGE_INLINE Index find_in(const T* x, T value, Index begin, Index end) {
    Index k = begin;
    for (; k + kLanes <= end; k += kLanes) {
        int hit = 0;
        for (Index l = 0; l < kLanes; ++l) hit |= x[k + l] == value ? 1 : 0;
        if (hit != 0) break;
    }
    for (; k < end; ++k)
        if (x[k] == value) return k;
    return -1;
}

template <class T>
HETMERGE_INLINE void join(T* x, const T* y, T alpha, Index n) {
    constexpr T most = std::numeric_limits<T>::max();
    constexpr T none = -std::numeric_limits<T>::infinity();
    if (alpha <= T(1)) {
        for (Index k = 0; k < n; ++k) x[k] = alpha * (x[k] < y[k] ? x[k] : y[k]);
        return;
    }
    for (Index k = 0; k < n; ++k) {
        const T low = x[k] < y[k] ? x[k] : y[k];
        T v = alpha * low;
        v = v > most ? most : v;
        v = v < -most ? -most : v;
        x[k] = low == none ? none : v;
    }
}

template <class T>
HETMERGE_INLINE void close_pairs(T* x, const std::uint32_t* bits, std::uint32_t mine, Index begin,
                                 Index end) {
    for (Index k = begin; k < end; ++k)
        x[k] = (bits[k] & mine) != 0 ? -std::numeric_limits<T>::infinity() : x[k];
}

template <class T>
HETMERGE_INLINE T peak_of(const T* x, Index n) {
    // 0 * v is 0 for finite v and NaN otherwise, and NaN survives every later addition.
    T lane[kLanes] = {}, taint[kLanes] = {};
    Index k = 0;
    for (; k + kLanes <= n; k += kLanes)
        for (Index l = 0; l < kLanes; ++l) {
            const T v = x[k + l] < T(0) ? -x[k + l] : x[k + l];
            lane[l] = v > lane[l] ? v : lane[l];
            taint[l] += T(0) * v;
        }
    for (; k < n; ++k) {
        const T v = x[k] < T(0) ? -x[k] : x[k];
        lane[0] = v > lane[0] ? v : lane[0];
        taint[0] += T(0) * v;
    }
    T peak = T(0);
    for (Index l = 0; l < kLanes; ++l) {
        peak = lane[l] > peak ? lane[l] : peak;
        taint[0] += l > 0 ? taint[l] : T(0);
    }
    return peak + taint[0];
}

}  // namespace

#define HETMERGE_DEFINE(T)                                                                      \
    HETMERGE_CLONES T row_max(const T* x, Index begin, Index end) {                             \
        return max_of(x, begin, end);                                                           \
    }                                                                                           \
    HETMERGE_CLONES Index row_find(const T* x, T value, Index begin, Index end) {               \
        return find_in(x, value, begin, end);                                                   \
    }                                                                                           \
    HETMERGE_CLONES void row_join(T* x, const T* y, T alpha, Index n) { join(x, y, alpha, n); } \
    HETMERGE_CLONES void row_close(T* x, const std::uint32_t* bits, std::uint32_t mine,         \
                                   Index begin, Index end) {                                    \
        close_pairs(x, bits, mine, begin, end);                                                 \
    }                                                                                           \
    HETMERGE_CLONES T row_peak(const T* x, Index n) { return peak_of(x, n); }

HETMERGE_DEFINE(float)
HETMERGE_DEFINE(double)

}  // namespace hetmerge
