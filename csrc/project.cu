// Projection on a GPU: memory, launches and the wait; the kernels are in project_lists.h and
// project_device.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>

#include "project_cuda.h"
#include "project_device.h"

namespace hetmerge {
namespace {

void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
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
    list.first = room.take<int>(clusters);
    list.several = room.take<int2>(count / 2);
    list.several_count = room.take<int>(1);
    list.straight = room.take<int>(1);
    list.spare = room.take<int>(list.identity ? 0 : clusters + count);
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
                  source.entries % kGroup == 0;
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

// Pieces of so many entries that cover a row.
int pieces(int length, int piece) {
    return static_cast<int>((static_cast<Index>(length) + piece - 1) / piece);
}

// One block for every piece of every row; in one dimension of the grid, the only long one.
unsigned blocks_for(const View& out, int parts) {
    const Index blocks = out.shape[0] * parts;
    if (blocks > 0x7fffffff) throw std::runtime_error("the result has too many rows");
    return static_cast<unsigned>(blocks);
}

// `longest`: entries of the longest row of a parent.
template <class Out, int kGroups>
void launch_staged(const Source* sources, int parents, const View& out, int longest, int most,
                   cudaStream_t stream) {
    const int inner = static_cast<int>(out.shape[2]);
    const int length = static_cast<int>(out.shape[1]) * inner, held = kGroups * kGroup;
    const int warps = (std::max(length, longest) / held + kWarp - 1) / kWarp;
    const int threads = std::clamp(warps * kWarp, kFewThreads, kMostThreads);
    const int parts = pieces(length, threads * held);
    const bool wide = out.address % 16 == 0 && length % kGroup == 0;
    allow_shared(row_kernel<Out, kGroups>, most);
    row_kernel<Out, kGroups>
        <<<blocks_for(out, parts), threads, 4 * static_cast<std::size_t>(longest), stream>>>(
            sources, parents, out.data<Out>(), length, inner, parts, wide);
}

template <class Out>
void launch_rows(const Source* sources, int parents, const View& out, int longest, int most,
                 cudaStream_t stream) {
    const int inner = static_cast<int>(out.shape[2]);
    const int length = static_cast<int>(out.shape[1]) * inner;
    if (4 * static_cast<Index>(longest) > most) {
        const int parts = pieces(length, kThreads);
        entry_kernel<Out><<<blocks_for(out, parts), kThreads, 0, stream>>>(
            sources, parents, out.data<Out>(), length, inner, parts);
    } else if (length <= 2 * kGroup * kMostThreads) {
        launch_staged<Out, 2>(sources, parents, out, longest, most, stream);
    } else {
        launch_staged<Out, 4>(sources, parents, out, longest, most, stream);
    }
    require(cudaGetLastError());
}

// Numbers that list_kernel keeps in shared memory, where they fit.
int held_by(const std::vector<List>& lists, int most) {
    Index held = 0;
    for (const List& list : lists) {
        const Index numbers = list.clusters + 2 * static_cast<Index>(list.count);
        if (!list.identity && 4 * numbers <= most) held = std::max(held, numbers);
    }
    return static_cast<int>(held);
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
    int longest = 0;
    for (const Source& source : sources) longest = std::max(longest, source.entries);
    const int most = most_shared() - 512;  // room for what kernels declare themselves
    const int held = held_by(lists, most);
    copy(p_sources, sources, stream);
    copy(p_lists, lists, stream);
    require(cudaMemsetAsync(p_bad, 0, sizeof(int), stream));
    allow_shared(list_kernel, most);
    list_kernel<<<static_cast<unsigned>(lists.size()), kListThreads,
                  static_cast<std::size_t>(4 * held), stream>>>(p_lists, held, p_bad);
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
