// Device code that takes rows of the result from those of the parents; for project.cu alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "project_lists.h"
#include "view.h"

namespace hetmerge {
namespace {

constexpr int kGroup = 8;  // entries next to each other that a thread reads and writes together
constexpr int kLoads = 2;  // of 16 bytes that a thread waits for together
constexpr int kFewThreads = 64, kThreads = 256, kMostThreads = 448;

struct Source {
    const void* weight;  // null: adds nothing
    std::int64_t row_step, col_step, inner_step;
    DType dtype;
    int entries;       // of a row
    int packed, wide;  // entries next to each other; rows made of whole groups, on 16 bytes
    List rows, cols;
    double share;
};

__device__ float to_float(float x) { return x; }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ float from_float(float x) {
    return x;
}
template <>
__device__ __half from_float(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __nv_bfloat16 from_float(float x) {
    return __float2bfloat16_rn(x);
}

template <class T>
struct Element {
    using Type = T;
};

// Calls body with the Element of the type that a code names.
template <class Body>
__device__ auto with_element(DType dtype, const Body& body) {
    if (dtype == DType::f32) return body(Element<float>{});
    return dtype == DType::f16 ? body(Element<__half>{}) : body(Element<__nv_bfloat16>{});
}

// 16 bytes of a parent, which are read once.
__device__ uint4 load_once(const void* p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

// The member rows from .. to of a row of the result, added up.
struct Rows {
    const Source& source;
    int inner, from, to;
    float factor;

    template <class T>
    __device__ const T* row(int place) const {
        return static_cast<const T*>(source.weight) + source.rows.member[place] * source.row_step;
    }

    __device__ float at(int entry) const {
        std::int64_t offset = entry;
        if (!source.packed) {
            const int col = inner == 1 ? entry : entry / inner;
            offset = col * source.col_step + (entry - col * inner) * source.inner_step;
        }
        return with_element(source.dtype, [&](auto element) {
            using T = typename decltype(element)::Type;
            float total = 0.0f;
#pragma unroll 1  // spares registers
            for (int p = from; p < to; ++p) total += factor * to_float(row<T>(p)[offset]);
            return total;
        });
    }

    // All entries, to shared memory.
    __device__ void stage(float* sums) const {
        const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
        if (source.wide)
            with_element(source.dtype, [&](auto element) {
                using T = typename decltype(element)::Type;
#pragma unroll 1  // spares registers
                for (int p = from; p < to; ++p) stage_wide(row<T>(p), p > from, sums);
            });
        else
#pragma unroll 1  // spares registers
            for (int e = thread; e < source.entries; e += threads) sums[e] = at(e);
    }

    // A thread adds to what itself has written.
    template <class T>
    __device__ void stage_wide(const T* values, bool more, float* sums) const {
        constexpr int kWide = 16 / sizeof(T);
        const int step = static_cast<int>(blockDim.x) * kWide;
        const int first = static_cast<int>(threadIdx.x) * kWide;
        for (int begin = first; begin < source.entries; begin += kLoads * step) {
            uint4 raw[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; ++i)
                if (begin + i * step < source.entries)
                    raw[i] = load_once(values + begin + i * step);
#pragma unroll
            for (int i = 0; i < kLoads; ++i)
                if (begin + i * step < source.entries)
                    put(reinterpret_cast<const T*>(raw + i), more, sums + begin + i * step);
        }
    }

    // 16 bytes of a parent.
    template <class T>
    __device__ void put(const T* values, bool more, float* sums) const {
#pragma unroll
        for (int k = 0; k < static_cast<int>(16 / sizeof(T)); k += 4) {
            float4* target = reinterpret_cast<float4*>(sums + k);
            float4 total = more ? *target : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            total.x += factor * to_float(values[k]);
            total.y += factor * to_float(values[k + 1]);
            total.z += factor * to_float(values[k + 2]);
            total.w += factor * to_float(values[k + 3]);
            *target = total;
        }
    }

    // Groups of entries of the only member row, from `first` on and `step` apart.
    template <class T, int kGroups>
    __device__ void add_wide(int first, int step, float* total) const {
        constexpr int kParts = kGroup * sizeof(T) / 16, kBatch = kLoads / kParts;
        const T* values = row<T>(from) + first;
#pragma unroll
        for (int g = 0; g < kGroups; g += kBatch) {
            uint4 raw[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const int e = (g + i / kParts) * step;
                if (first + e < source.entries)
                    raw[i] = load_once(values + e + i % kParts * (kGroup / kParts));
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (first + (g + i) * step >= source.entries) break;
                const T* group = reinterpret_cast<const T*>(raw + i * kParts);
#pragma unroll
                for (int k = 0; k < kGroup; ++k)
                    // rounded before it is added, as what goes through shared memory is
                    total[(g + i) * kGroup + k] += __fmul_rn(factor, to_float(group[k]));
            }
        }
    }
};

// Adds the members of each column that has several to the first of them.
__device__ void fold(const List& cols, int inner, float* sums) {
    const int count = *cols.several_count * inner, threads = static_cast<int>(blockDim.x);
    for (int k = static_cast<int>(threadIdx.x); k < count; k += threads) {
        const int which = inner == 1 ? k : k / inner, tap = k - which * inner;
        const int2 places = cols.several[which];
        float* target = sums + cols.member[places.x] * inner + tap;
        float total = *target;
        for (int p = places.x + 1; p < places.y; ++p) total += sums[cols.member[p] * inner + tap];
        *target = total;
    }
}

// Where the group of entries from e on begins to be read in a parent's row: per entry, or kNone.
__device__ void look_up(const List& cols, int inner, int e, int length, int* places) {
    if (inner == 1 && e + kGroup <= length) {
#pragma unroll
        for (int k = 0; k < kGroup; k += 4) {
            const int4 found = *reinterpret_cast<const int4*>(cols.first + e + k);
            places[k] = found.x;
            places[k + 1] = found.y;
            places[k + 2] = found.z;
            places[k + 3] = found.w;
        }
        return;
    }
    int col = e / inner, tap = e - col * inner;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
        const int first = e + k < length ? cols.first[col] : kNone;
        places[k] = first == kNone ? kNone : first * inner + tap;
        if (++tap < inner) continue;
        tap = 0;
        ++col;
    }
}

// Calls body with the member rows of each parent that has any in a row of the result.
template <class Body>
__device__ void each_parent(const Source* sources, int parents, std::int64_t row, int inner,
                            const Body& body) {
    double mass = 0.0;
    for (int m = 0; m < parents; ++m) {
        const int* begin = sources[m].rows.begin + row;
        mass += sources[m].share * (begin[1] - begin[0]);
    }
    for (int m = 0; m < parents; ++m) {
        const Source& source = sources[m];
        const int from = source.rows.begin[row], to = source.rows.begin[row + 1];
        if (source.weight == nullptr || from == to) continue;
        body(Rows{source, inner, from, to, static_cast<float>(source.share / mass)});
    }
}

// One group of the result, of which `count` entries exist; `wide`: on 16 bytes.
template <class Out>
__device__ void store(const float* total, int count, bool wide, Out* out) {
    constexpr int kWide = 16 / sizeof(Out);
    if (!wide) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k)
            if (k < count) out[k] = from_float<Out>(total[k]);
        return;
    }
#pragma unroll
    for (int i = 0; i < kGroup; i += kWide) {
        uint4 raw;
        Out* values = reinterpret_cast<Out*>(&raw);
#pragma unroll
        for (int k = 0; k < kWide; ++k) values[k] = from_float<Out>(total[i + k]);
        __stcs(reinterpret_cast<uint4*>(out + i), raw);
    }
}

// One row of the result per block, or a part of it. Every thread holds up to kGroups groups of it.
// Shared memory holds the row of one parent at a time.
template <class Out, int kGroups>
__global__ void __launch_bounds__(kMostThreads, 2)
    row_kernel(const Source* sources, int parents, Out* out, int length, int inner, int parts,
               bool wide) {
    extern __shared__ float4 staging[];
    float* sums = reinterpret_cast<float*>(staging);
    const std::int64_t row = blockIdx.x / parts;
    const int part = static_cast<int>(blockIdx.x % parts);
    const int step = static_cast<int>(blockDim.x) * kGroup;
    const int first = part * step * kGroups + static_cast<int>(threadIdx.x) * kGroup;
    float total[kGroups * kGroup] = {};
    each_parent(sources, parents, row, inner, [&](const Rows& rows) {
        const List& cols = rows.source.cols;
        if (rows.source.wide && rows.to - rows.from == 1 && *cols.straight) {
            with_element(rows.source.dtype, [&](auto element) {
                rows.template add_wide<typename decltype(element)::Type, kGroups>(first, step,
                                                                                  total);
            });
            return;
        }
        __syncthreads();  // the parent before may still be read
        rows.stage(sums);
        __syncthreads();
        if (*cols.several_count > 0) {
            fold(cols, inner, sums);
            __syncthreads();
        }
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
            if (first + g * step >= length) break;
            int places[kGroup];
            look_up(cols, inner, first + g * step, length, places);
#pragma unroll
            for (int k = 0; k < kGroup; ++k)
                total[g * kGroup + k] += places[k] == kNone ? 0.0f : sums[places[k]];
        }
    });
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
        const int e = first + g * step;
        if (e < length) store(total + g * kGroup, length - e, wide, out + row * length + e);
    }
}

// Rows that shared memory does not hold: one entry per thread, each from its own member entries.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    entry_kernel(const Source* sources, int parents, Out* out, int length, int inner, int parts) {
    const std::int64_t row = blockIdx.x / parts;
    const int part = static_cast<int>(blockIdx.x % parts);
    const int e = part * kThreads + static_cast<int>(threadIdx.x);
    if (e >= length) return;
    float total = 0.0f;
    each_parent(sources, parents, row, inner, [&](const Rows& rows) {
        const List& cols = rows.source.cols;
        const int col = e / inner, tap = e - col * inner;
        float sum = 0.0f;
        for (int p = cols.begin[col]; p < cols.begin[col + 1]; ++p)
            sum += rows.at(cols.member[p] * inner + tap);
        total += sum;
    });
    out[row * length + e] = from_float<Out>(total);
}

}  // namespace
}  // namespace hetmerge
