// Projection on a GPU: member lists (project_lists.h), then one block per row of the result.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>

#include "project_cuda.h"
#include "project_lists.h"

namespace hetmerge {
namespace {

constexpr int kEntries = 16;  // of the result that a thread holds
constexpr int kTogether = 4;  // of those, looked up before any is taken
constexpr int kFewThreads = 64, kThreads = 256, kMostThreads = 1024;

void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

struct Source {
    const void* weight;  // null: adds nothing
    std::int64_t row_step, col_step, inner_step;
    DType dtype;
    int entries;       // of a row
    int packed, wide;  // entries next to each other; rows made of whole 16 bytes
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
            for (int p = from; p < to; ++p) total += factor * to_float(row<T>(p)[offset]);
            return total;
        });
    }

    // All entries, to shared memory.
    __device__ void stage(float* sums) const {
        const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
        if (source.wide)
            with_element(source.dtype,
                         [&](auto element) { stage_wide<typename decltype(element)::Type>(sums); });
        else
            for (int e = thread; e < source.entries; e += threads) sums[e] = at(e);
    }

    template <class T>
    __device__ void stage_wide(float* sums) const {
        constexpr int kWide = 16 / sizeof(T);
        const int step = static_cast<int>(blockDim.x) * kWide;
        for (int e = static_cast<int>(threadIdx.x) * kWide; e < source.entries; e += step) {
            float total[kWide] = {};
            for (int p = from; p < to; ++p) {
                const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(row<T>(p) + e));
                const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
                for (int k = 0; k < kWide; ++k) total[k] += factor * to_float(values[k]);
            }
#pragma unroll
            for (int k = 0; k < kWide; k += 4)
                *reinterpret_cast<float4*>(sums + e + k) =
                    make_float4(total[k], total[k + 1], total[k + 2], total[k + 3]);
        }
    }
};

// The members of the column of entry e of a row of the result, `only` one or several, added up;
// `at` gives an entry of the parent's row.
template <class At>
__device__ float add_columns(const List& cols, int only, int inner, int e, const At& at) {
    const int col = inner == 1 ? e : e / inner, tap = e - col * inner;
    if (only >= 0) return at(only * inner + tap);
    float total = 0.0f;
    if (only == kMany)
        for (int p = cols.begin[col]; p < cols.begin[col + 1]; ++p)
            total += at(cols.member[p] * inner + tap);
    return total;
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

// One row of the result per block, or a part of it. Every thread holds up to kEntries of it.
template <class Out>
__global__ void __launch_bounds__(kMostThreads)
    row_kernel(const Source* sources, int parents, Out* out, int length, int inner) {
    extern __shared__ float4 staging[];
    float* sums = reinterpret_cast<float*>(staging);
    const std::int64_t row = blockIdx.x;
    const int threads = static_cast<int>(blockDim.x);
    const int first =
        static_cast<int>(blockIdx.y) * threads * kEntries + static_cast<int>(threadIdx.x);
    float total[kEntries] = {};
    each_parent(sources, parents, row, inner, [&](const Rows& rows) {
        __syncthreads();  // the parent before may still be read
        rows.stage(sums);
        __syncthreads();
        const List& cols = rows.source.cols;
#pragma unroll
        for (int i = 0; i < kEntries; i += kTogether) {
            int only[kTogether];
#pragma unroll
            for (int k = 0; k < kTogether; ++k) {
                const int e = first + (i + k) * threads;
                only[k] = e < length ? cols.only[inner == 1 ? e : e / inner] : kNone;
            }
#pragma unroll
            for (int k = 0; k < kTogether; ++k)
                total[i + k] += add_columns(cols, only[k], inner, first + (i + k) * threads,
                                            [&](int entry) { return sums[entry]; });
        }
    });
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
        const int e = first + i * threads;
        if (e < length) out[row * length + e] = from_float<Out>(total[i]);
    }
}

// Rows that shared memory does not hold: one entry per thread, each from its own member entries.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    entry_kernel(const Source* sources, int parents, Out* out, int length, int inner) {
    const std::int64_t row = blockIdx.x;
    const int e = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
    if (e >= length) return;
    float total = 0.0f;
    each_parent(sources, parents, row, inner, [&](const Rows& rows) {
        const List& cols = rows.source.cols;
        const int only = cols.only[inner == 1 ? e : e / inner];
        total += add_columns(cols, only, inner, e, [&](int entry) { return rows.at(entry); });
    });
    out[row * length + e] = from_float<Out>(total);
}

// The device's memory for one call, cut into arrays; measures what is needed while it has none.
struct Room {
    std::uintptr_t base = 0;
    Index used = 0;

    template <class V>
    V* take(Index count) {
        const Index at = used;
        used += (count * static_cast<Index>(sizeof(V)) + 15) / 16 * 16;
        return reinterpret_cast<V*>(base + static_cast<std::uintptr_t>(at));
    }
};

List list_of(const View& labels, Index clusters, Room& room) {
    List list{};
    list.labels = labels.data<const void>();
    list.stride = labels.strides.empty() ? 1 : labels.strides[0];
    list.identity = labels.shape.empty();
    list.wide = labels.dtype == DType::i64;
    const Index count = list.identity ? clusters : labels.shape[0];
    list.count = static_cast<int>(count);
    list.clusters = static_cast<int>(clusters);
    list.begin = room.take<int>(clusters + 1);
    list.member = room.take<int>(count);
    list.only = room.take<int>(clusters);
    return list;
}

Source source_of(const CudaParent& parent, const View& out, Room& room) {
    Source source{};
    source.share = parent.share;
    const Index inner = out.shape[2];
    source.rows = list_of(parent.rows, out.shape[0], room);
    if (parent.weight.shape.empty()) return source;
    const View& weight = parent.weight;
    source.cols = list_of(parent.cols, out.shape[1], room);
    if (parent.share > 0 && weight.count() > 0) source.weight = weight.data<const void>();
    source.dtype = weight.dtype;
    source.row_step = weight.strides[0];
    source.col_step = weight.strides[1];
    source.inner_step = weight.strides[2];
    if (source.weight != nullptr) source.entries = static_cast<int>(weight.shape[1] * inner);
    source.packed = (inner == 1 || source.inner_step == 1) &&
                    (weight.shape[1] == 1 || source.col_step == inner);
    const Index size = weight.dtype == DType::f32 ? 4 : 2;
    source.wide = source.packed && weight.address % 16 == 0 && source.row_step * size % 16 == 0 &&
                  source.entries * size % 16 == 0;
    return source;
}

int most_shared() {
    int device = 0, most = 0;
    require(cudaGetDevice(&device));
    require(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return most;
}

template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
    require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <class V>
void copy(V* target, const std::vector<V>& values, cudaStream_t stream) {
    require(cudaMemcpyAsync(target, values.data(), values.size() * sizeof(V),
                            cudaMemcpyHostToDevice, stream));
}

template <class Out>
void launch_rows(const Source* sources, int parents, const View& out, int longest, int most,
                 cudaStream_t stream) {
    const int length = static_cast<int>(out.shape[1] * out.shape[2]);
    int threads = std::max(length, longest) <= 8 * kFewThreads ? kFewThreads : kThreads;
    while (threads < kMostThreads && threads * kEntries < length) threads *= 2;
    const bool staged = 4 * static_cast<Index>(longest) <= most;
    const int part = staged ? threads * kEntries : kThreads;
    const dim3 grid(static_cast<unsigned>(out.shape[0]),
                    static_cast<unsigned>((length + part - 1) / part));
    const int inner = static_cast<int>(out.shape[2]);
    if (staged) {
        allow_shared(row_kernel<Out>, most);
        row_kernel<Out><<<grid, threads, 4 * static_cast<std::size_t>(longest), stream>>>(
            sources, parents, out.data<Out>(), length, inner);
    } else {
        entry_kernel<Out>
            <<<grid, kThreads, 0, stream>>>(sources, parents, out.data<Out>(), length, inner);
    }
    require(cudaGetLastError());
}

}  // namespace

bool project_on_cuda(const std::vector<CudaParent>& parents, const View& out,
                     const std::function<std::uintptr_t(Index)>& allocate, void* given) {
    const auto stream = static_cast<cudaStream_t>(given);
    std::vector<Source> sources;
    std::vector<List> lists;
    Room room;
    Source* p_sources = nullptr;
    List* p_lists = nullptr;
    int* p_bad = nullptr;
    for (int pass = 0; pass < 2; ++pass) {  // the first finds out how much memory it takes
        if (pass == 1) room = {allocate(room.used), 0};
        sources.clear();
        lists.clear();
        for (const CudaParent& parent : parents) {
            sources.push_back(source_of(parent, out, room));
            lists.push_back(sources.back().rows);
            if (!parent.weight.shape.empty()) lists.push_back(sources.back().cols);
        }
        p_sources = room.take<Source>(static_cast<Index>(sources.size()));
        p_lists = room.take<List>(static_cast<Index>(lists.size()));
        p_bad = room.take<int>(1);
    }
    int longest = 0, clusters = 0;
    for (const Source& source : sources) longest = std::max(longest, source.entries);
    const int most = most_shared() - 256;  // room for what kernels declare themselves
    for (const List& list : lists)
        if (4 * static_cast<Index>(list.clusters) <= most)
            clusters = std::max(clusters, list.clusters);
    copy(p_sources, sources, stream);
    copy(p_lists, lists, stream);
    require(cudaMemsetAsync(p_bad, 0, sizeof(int), stream));
    allow_shared(list_kernel, most);
    list_kernel<<<static_cast<unsigned>(lists.size()), kListThreads,
                  static_cast<std::size_t>(4 * clusters), stream>>>(p_lists, clusters, p_bad);
    require(cudaGetLastError());
    const int count = static_cast<int>(sources.size());
    if (out.dtype == DType::f32)
        launch_rows<float>(p_sources, count, out, longest, most, stream);
    else if (out.dtype == DType::f16)
        launch_rows<__half>(p_sources, count, out, longest, most, stream);
    else
        launch_rows<__nv_bfloat16>(p_sources, count, out, longest, most, stream);
    int bad = 0;
    require(cudaMemcpyAsync(&bad, p_bad, sizeof(int), cudaMemcpyDeviceToHost, stream));
    require(cudaStreamSynchronize(stream));
    return bad == 0;
}

}  // namespace hetmerge
