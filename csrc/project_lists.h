// Device code that turns label vectors into member lists; for project.cu alone.
#pragma once

#include <cstdint>

namespace hetmerge {
namespace {

constexpr int kWarp = 32, kListThreads = 1024;
constexpr int kNone = -1, kMany = -2;  // members of a cluster, instead of the only one

// A label vector and the lists made of it.
struct List {
    const void* labels;
    std::int64_t stride;
    int identity, wide, count, clusters;
    int* begin;   // [clusters + 1] where the members of each cluster begin
    int* member;  // [count] the members of all clusters, ascending in each
    int* only;    // [clusters] the one member, or kNone or kMany
};

__device__ std::int64_t label_at(const List& list, int i) {
    const std::int64_t at = i * list.stride;
    return list.wide ? static_cast<const std::int64_t*>(list.labels)[at]
                     : static_cast<const int*>(list.labels)[at];
}

// Sum over the lanes up to this one.
__device__ int inclusive_scan(int value) {
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(~0u, value, offset);
        if (static_cast<int>(threadIdx.x) % kWarp >= offset) value += other;
    }
    return value;
}

// Counts [clusters] become the sums of those before, and the total after the last, in `begin`.
__device__ void scan(int* counts, int clusters, int* begin) {
    __shared__ int sums[kWarp];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    int carry = 0;
    for (int first = 0; first < clusters; first += kListThreads) {
        const int c = first + static_cast<int>(threadIdx.x);
        const int mine = c < clusters ? counts[c] : 0;
        const int inclusive = inclusive_scan(mine);
        if (lane == kWarp - 1) sums[warp] = inclusive;
        __syncthreads();
        if (warp == 0) sums[lane] = inclusive_scan(sums[lane]);
        __syncthreads();
        const int before = carry + (warp > 0 ? sums[warp - 1] : 0) + inclusive - mine;
        if (c < clusters) counts[c] = begin[c] = before;
        carry += sums[kWarp - 1];
        __syncthreads();
    }
    if (threadIdx.x == 0) begin[clusters] = carry;
}

// One warp walks the labels in order, so members come out ascending; `cursor` is where the next
// one of each cluster goes.
__device__ void fill(const List& list, int* cursor) {
    const int lane = static_cast<int>(threadIdx.x);
    std::int64_t next = lane < list.count ? label_at(list, lane) : -1;
    for (int first = 0; first < list.count; first += kWarp) {
        const int i = first + lane;
        const int label = next < 0 || next >= list.clusters ? -1 : static_cast<int>(next);
        next = i + kWarp < list.count ? label_at(list, i + kWarp) : -1;
        const unsigned same = __match_any_sync(~0u, label);
        const int leader = __ffs(static_cast<int>(same)) - 1;
        int place = 0;
        if (label >= 0 && lane == leader) {
            place = cursor[label];
            cursor[label] = place + __popc(same);
        }
        place = __shfl_sync(~0u, place, leader) + __popc(same & ((1u << lane) - 1));
        if (label >= 0) list.member[place] = i;
        __syncwarp();
    }
}

// One block per label vector. Counts are added by atomics, which whole numbers permit; places are
// not claimed but follow from the order.
__global__ void __launch_bounds__(kListThreads) list_kernel(const List* lists, int held, int* bad) {
    extern __shared__ int held_counts[];
    const List list = lists[blockIdx.x];
    const int thread = static_cast<int>(threadIdx.x);
    if (list.identity) {
        for (int c = thread; c <= list.clusters; c += kListThreads) {
            list.begin[c] = c;
            if (c < list.clusters) list.member[c] = list.only[c] = c;
        }
        return;
    }
    int* counts = list.clusters <= held ? held_counts : list.only;
    for (int c = thread; c < list.clusters; c += kListThreads) counts[c] = 0;
    __syncthreads();
    for (int i = thread; i < list.count; i += kListThreads) {
        const std::int64_t label = label_at(list, i);
        if (label >= 0 && label < list.clusters)
            atomicAdd(counts + label, 1);
        else
            *bad = 1;
    }
    __syncthreads();
    scan(counts, list.clusters, list.begin);
    __syncthreads();
    if (thread < kWarp) fill(list, counts);
    __syncthreads();
    for (int c = thread; c < list.clusters; c += kListThreads) {
        const int first = list.begin[c], count = list.begin[c + 1] - first;
        list.only[c] = count == 0 ? kNone : count == 1 ? list.member[first] : kMany;
    }
}

}  // namespace
}  // namespace hetmerge
