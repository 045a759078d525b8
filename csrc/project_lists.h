// Device code that turns label vectors into member lists; for project.cu alone.
#pragma once

#include <cstdint>

namespace hetmerge {
namespace {

constexpr int kWarp = 32, kListThreads = 1024;
constexpr int kLabels = 4;  // that a thread reads before it uses one
constexpr int kFew = 64;    // members of a cluster that are compared with each other
constexpr int kNone = -1;   // instead of a member

// A label vector and the lists made of it.
struct List {
    const void* labels;
    std::int64_t stride;
    int identity, wide, count, clusters;
    int* begin;     // [clusters + 1] where the members of each cluster begin
    int* member;    // [count] the members of all clusters, ascending in each
    int* first;     // [clusters] the first member, or kNone
    int2* several;  // where the members of each cluster that has several begin and end
    int* several_count;
    int* straight;  // whether the members of cluster c are c alone, for every c
    int* spare;     // [clusters + count]
};

// -1: out of range.
__device__ int label_at(const List& list, int i) {
    const std::int64_t at = i * list.stride;
    const std::int64_t label = list.wide ? static_cast<const std::int64_t*>(list.labels)[at]
                                         : static_cast<const int*>(list.labels)[at];
    return label < 0 || label >= list.clusters ? -1 : static_cast<int>(label);
}

// Calls body with every index and its label.
template <class Body>
__device__ void each_label(const List& list, const Body& body) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int from = 0; from < list.count; from += kListThreads * kLabels) {
        int labels[kLabels];
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            const int i = from + k * kListThreads + thread;
            labels[k] = i < list.count ? label_at(list, i) : -1;
        }
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            const int i = from + k * kListThreads + thread;
            if (i < list.count) body(i, labels[k]);
        }
    }
}

// Sum over the lanes up to this one.
__device__ std::int64_t inclusive_scan(std::int64_t value) {
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const std::int64_t other = __shfl_up_sync(~0u, value, offset);
        if (static_cast<int>(threadIdx.x) % kWarp >= offset) value += other;
    }
    return value;
}

// Sum over the threads of the block before this one; `all` grows by that over all threads.
__device__ std::int64_t sum_before(std::int64_t value, std::int64_t& all) {
    __shared__ std::int64_t sums[kWarp];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const std::int64_t inclusive = inclusive_scan(value);
    if (lane == kWarp - 1) sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) sums[lane] = inclusive_scan(sums[lane]);
    __syncthreads();
    const std::int64_t before = (warp > 0 ? sums[warp - 1] : 0) + inclusive - value;
    all += sums[kWarp - 1];
    __syncthreads();
    return before;
}

// Members below, clusters with several of them above.
__device__ std::int64_t packed(int members) {
    return members + (static_cast<std::int64_t>(members > 1) << 32);
}

// Counts [clusters] become the places where members begin; fills begin and several.
__device__ void scan(const List& list, int* counts) {
    std::int64_t all = 0;
    for (int from = 0; from < list.clusters; from += kListThreads * kLabels) {
        const int cluster = from + static_cast<int>(threadIdx.x) * kLabels;
        int mine[kLabels];
        std::int64_t total = 0, before = all;
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            mine[k] = cluster + k < list.clusters ? counts[cluster + k] : 0;
            total += packed(mine[k]);
        }
        before += sum_before(total, all);
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            if (cluster + k >= list.clusters) break;
            const int place = static_cast<int>(before);
            counts[cluster + k] = list.begin[cluster + k] = place;
            if (mine[k] > 1) list.several[before >> 32] = make_int2(place, place + mine[k]);
            before += packed(mine[k]);
        }
    }
    if (threadIdx.x == 0) {
        list.begin[list.clusters] = static_cast<int>(all);
        *list.several_count = static_cast<int>(all >> 32);
    }
    __syncthreads();
}

__device__ int begin_of(const int* ends, int cluster) {
    return cluster > 0 ? ends[cluster - 1] : 0;
}

// Puts member i of a cluster behind all that are smaller, whatever their order in the draft.
__device__ void place(const int* draft, int begin, int end, int i, int* member) {
    int smaller = 0;
    for (int p = begin; p < end; ++p) smaller += draft[p] < i;
    member[begin + smaller] = i;
}

// One warp walks the labels for the members of one cluster.
__device__ void collect(const List& list, int cluster, int place, int* member) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int from = 0; from < list.count; from += kWarp * kLabels) {
        int labels[kLabels];
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            const int i = from + k * kWarp + lane;
            labels[k] = i < list.count ? label_at(list, i) : -1;
        }
#pragma unroll
        for (int k = 0; k < kLabels; ++k) {
            const unsigned same = __ballot_sync(~0u, labels[k] == cluster);
            if (labels[k] == cluster)
                member[place + __popc(same & ((1u << lane) - 1))] = from + k * kWarp + lane;
            place += __popc(same);
        }
    }
}

// The members of clusters that have more than kFew.
__device__ void collect_large(const List& list, const int* ends, int* member) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int from = static_cast<int>(threadIdx.x) - lane; from < list.clusters;
         from += kListThreads) {
        const int c = from + lane;
        const bool large = c < list.clusters && ends[c] - begin_of(ends, c) > kFew;
        for (unsigned left = __ballot_sync(~0u, large); left != 0; left &= left - 1) {
            const int cluster = from + __ffs(static_cast<int>(left)) - 1;
            collect(list, cluster, begin_of(ends, cluster), member);
        }
    }
}

__device__ void fill_straight(const List& list) {
    for (int c = static_cast<int>(threadIdx.x); c <= list.clusters; c += kListThreads) {
        list.begin[c] = c;
        if (c < list.clusters) list.member[c] = list.first[c] = c;
    }
    if (threadIdx.x > 0) return;
    *list.straight = 1;
    *list.several_count = 0;
}

// One block per label vector. Atomics add counts and claim places in a draft, in an order that may
// differ; the order of the members does not.
__global__ void __launch_bounds__(kListThreads) list_kernel(const List* lists, int held, int* bad) {
    extern __shared__ int shared[];
    const List list = lists[blockIdx.x];
    if (list.identity) {
        fill_straight(list);
        return;
    }
    const int thread = static_cast<int>(threadIdx.x);
    const bool fits = list.clusters + 2 * static_cast<std::int64_t>(list.count) <= held;
    int* ends = fits ? shared : list.spare;
    int* draft = ends + list.clusters;
    int* member = fits ? draft + list.count : list.member;
    for (int c = thread; c < list.clusters; c += kListThreads) ends[c] = 0;
    __syncthreads();
    bool moved = list.count != list.clusters;
    each_label(list, [&](int i, int label) {
        moved |= label != i;
        if (label < 0)
            *bad = 1;
        else
            atomicAdd(ends + label, 1);
    });
    if (!__syncthreads_or(moved)) {
        fill_straight(list);
        return;
    }
    scan(list, ends);
    each_label(list, [&](int i, int label) {
        if (label >= 0) draft[atomicAdd(ends + label, 1)] = i;  // ends are begins until then
    });
    __syncthreads();
    each_label(list, [&](int i, int label) {
        if (label < 0) return;
        const int begin = begin_of(ends, label), end = ends[label];
        if (end - begin <= kFew) place(draft, begin, end, i, member);
    });
    collect_large(list, ends, member);
    __syncthreads();
    for (int c = thread; c < list.clusters; c += kListThreads) {
        const int begin = begin_of(ends, c);
        list.first[c] = ends[c] > begin ? member[begin] : kNone;
    }
    for (int p = thread; fits && p < ends[list.clusters - 1]; p += kListThreads)
        list.member[p] = member[p];
    if (thread == 0) *list.straight = 0;
}

}  // namespace
}  // namespace hetmerge
