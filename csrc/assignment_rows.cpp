#include "assignment_rows.h"

#include <algorithm>
#include <limits>

#include "targets.h"

namespace hetmerge {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();
constexpr Index kLanes = 16;

struct Lanes {
    double value[kLanes], next[kLanes], taint[kLanes];
};

template <class T>
HETMERGE_INLINE void fold(const T* row, T sign, const double* price, Index count, Lanes& lanes) {
    for (Index k = 0; k < count; ++k) {
        const double cost = static_cast<double>(sign * row[k]);
        const double x = price ? cost - price[k] : cost;
        const double high = lanes.value[k] > x ? lanes.value[k] : x;
        lanes.value[k] = lanes.value[k] < x ? lanes.value[k] : x;
        lanes.next[k] = lanes.next[k] < high ? lanes.next[k] : high;
        lanes.taint[k] += 0.0 * cost;
    }
}

template <class T>
HETMERGE_INLINE Index find(const T* row, T sign, const double* price, double value, Index skip,
                           Index m) {
    Index j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        int hit = 0;
        for (Index k = 0; k < kLanes; ++k) {
            const double cost = static_cast<double>(sign * row[j + k]);
            const double x = price ? cost - price[j + k] : cost;
            hit |= (x == value) & (j + k != skip);
        }
        if (hit) break;
    }
    for (; j < m; ++j) {
        const double cost = static_cast<double>(sign * row[j]);
        if (j != skip && (price ? cost - price[j] : cost) == value) return j;
    }
    return -1;
}

template <class T>
HETMERGE_INLINE Least two(const T* row, T sign, const double* price, Index m) {
    Lanes lanes;
    for (Index k = 0; k < kLanes; ++k) {
        lanes.value[k] = lanes.next[k] = kFar;
        lanes.taint[k] = 0.0;
    }
    Index j = 0;
    for (; j + kLanes <= m; j += kLanes)
        fold(row + j, sign, price ? price + j : nullptr, kLanes, lanes);
    fold(row + j, sign, price ? price + j : nullptr, m - j, lanes);
    Least least{kFar, kFar, -1, -1, true};
    double taint = 0.0;
    for (Index k = 0; k < kLanes; ++k) {
        taint += lanes.taint[k];
        const double high = std::max(least.value, lanes.value[k]);
        least.value = std::min(least.value, lanes.value[k]);
        least.next = std::min({least.next, high, lanes.next[k]});
    }
    if (!(taint == 0.0)) {
        least.finite = false;
        return least;
    }
    least.first = find(row, sign, price, least.value, -1, m);
    least.second = m > 1 ? find(row, sign, price, least.next, least.first, m) : -1;
    return least;
}

template <class T>
HETMERGE_INLINE double relax_block(const T* row, T sign, const double* price, double offset,
                                   Index from, double* distance, Index* before, Index count) {
    double least[kLanes];
    for (Index k = 0; k < kLanes; ++k) least[k] = kFar;
    Index j = 0;
    for (; j + kLanes <= count; j += kLanes)
        for (Index k = 0; k < kLanes; ++k) {
            const double x = static_cast<double>(sign * row[j + k]) - price[j + k] + offset;
            const bool fell = x < distance[j + k];
            const double d = fell ? x : distance[j + k];
            distance[j + k] = d;
            before[j + k] = fell ? from : before[j + k];
            least[k] = d < least[k] ? d : least[k];
        }
    for (; j < count; ++j) {
        const double x = static_cast<double>(sign * row[j]) - price[j] + offset;
        if (x < distance[j]) {
            distance[j] = x;
            before[j] = from;
        }
        least[0] = std::min(least[0], distance[j]);
    }
    return *std::min_element(least, least + kLanes);
}

template <class T>
HETMERGE_INLINE void relax_all(const T* row, T sign, const double* price, double offset, Index from,
                               double* distance, Index* before, double* least, Index m) {
    for (Index begin = 0; begin < m; begin += kBlock)
        least[begin / kBlock] =
            relax_block(row + begin, sign, price + begin, offset, from, distance + begin,
                        before + begin, std::min(kBlock, m - begin));
}

}  // namespace

#define HETMERGE_DEFINE(T)                                                                 \
    HETMERGE_CLONES Least least_two(const T* row, T sign, const double* price, Index m) {  \
        return two(row, sign, price, m);                                                   \
    }                                                                                      \
    HETMERGE_CLONES void relax(const T* row, T sign, const double* price, double offset,   \
                               Index from, double* distance, Index* before, double* least, \
                               Index m) {                                                  \
        relax_all(row, sign, price, offset, from, distance, before, least, m);             \
    }

HETMERGE_DEFINE(float)
HETMERGE_DEFINE(double)

}  // namespace hetmerge
