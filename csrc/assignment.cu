// Linear sum assignment of many small problems: one block each, the steps of assignment_core.h.
#include <cuda_runtime.h>

#include "assignment_core.h"
#include "assignment_cuda.h"

namespace hetmerge {
namespace {

constexpr int kWarp = 32, kMostWarps = 8;

struct BlockTeam {
    Lowest* shared;  // [kMostWarps + 1]

    __device__ bool leader() const { return threadIdx.x == 0; }
    __device__ void sync() const { __syncthreads(); }

    template <class Step>
    __device__ void each(int m, const Step& step) const {
        for (int j = static_cast<int>(threadIdx.x); j < m; j += static_cast<int>(blockDim.x))
            step(j);
    }

    template <class Step>
    __device__ Lowest lowest(const double* d, int m, const int* owner, const Step& step) const {
        return lowest_two(d, m, owner, step);
    }

    template <class Step>
    __device__ Lowest lowest_two(const double* d, int m, const int* owner, const Step& step) const {
        Lowest mine{kFar, -1, kFar};
        for (int j = static_cast<int>(threadIdx.x); j < m; j += static_cast<int>(blockDim.x)) {
            step(j);
            mine = better(mine, {d[j], j, kFar}, owner);
        }
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
            const Lowest other{__shfl_down_sync(~0u, mine.value, offset),
                               __shfl_down_sync(~0u, mine.column, offset),
                               __shfl_down_sync(~0u, mine.second, offset)};
            mine = better(mine, other, owner);
        }
        const int warp = static_cast<int>(threadIdx.x) / kWarp;
        if (threadIdx.x % kWarp == 0) shared[warp] = mine;
        __syncthreads();
        if (leader()) {
            const int warps = static_cast<int>(blockDim.x) / kWarp;
            for (int w = 1; w < warps; ++w) mine = better(mine, shared[w], owner);
            shared[kMostWarps] = mine;
        }
        __syncthreads();
        return shared[kMostWarps];
    }

  private:
    // The lower one with the runner-up of both; of equal ones a free column, then the first.
    __device__ static Lowest better(const Lowest& a, const Lowest& b, const int* owner) {
        if (a.column < 0) return b;
        if (b.column < 0) return a;
        bool first = a.value < b.value;
        if (a.value == b.value) {
            const bool free_a = owner[a.column] < 0, free_b = owner[b.column] < 0;
            first = free_a == free_b ? a.column < b.column : free_a;
        }
        const Lowest& low = first ? a : b;
        const Lowest& high = first ? b : a;
        double second = low.second < high.value ? low.second : high.value;
        second = second < high.second ? second : high.second;
        return {low.value, low.column, second};
    }
};

template <class T>
__global__ void __launch_bounds__(kWarp* kMostWarps)
    assignment_kernel(const T* scores, double scale, int n, int m, bool staged, int* columns,
                      double* prices) {
    extern __shared__ double memory[];
    __shared__ Lowest lowest[kMostWarps + 1];
    const std::int64_t problem = blockIdx.x;
    const T* score = scores + problem * n * m;
    const Matching matching = Matching::at(memory, n, m);
    if (staged) {
        T* copy = reinterpret_cast<T*>(matching.waiting + n + (n & 1));
        for (int k = static_cast<int>(threadIdx.x); k < n * m; k += static_cast<int>(blockDim.x))
            copy[k] = score[k];
        score = copy;
        __syncthreads();
    }
    BlockTeam team{lowest};
    assign_small(team, Costs<T>{score, m, scale, n, m}, matching);
    team.sync();
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
        columns[problem * n + i] = matching.column_of[i];
    for (int j = static_cast<int>(threadIdx.x); j < m; j += static_cast<int>(blockDim.x))
        prices[problem * m + j] = matching.v[j];
}

template <class T>
int launch(const T* scores, double scale, std::int64_t batch, int n, int m, int* columns,
           double* prices, cudaStream_t stream) {
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status != cudaSuccess) return status;
    const std::int64_t fixed = sizeof(Lowest) * (kMostWarps + 1);
    const std::int64_t arrays = Matching::bytes(n, m);
    const std::int64_t matrix = 8 + static_cast<std::int64_t>(sizeof(T)) * n * m;
    const bool staged = fixed + arrays + matrix <= most;
    const std::int64_t bytes = arrays + (staged ? matrix : 0);
    status = cudaFuncSetAttribute(assignment_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes));
    if (status != cudaSuccess) return status;
    const int warps = (m + kWarp - 1) / kWarp;
    const int threads = kWarp * (warps < kMostWarps ? warps : kMostWarps);
    assignment_kernel<T>
        <<<static_cast<unsigned>(batch), threads, static_cast<std::size_t>(bytes), stream>>>(
            scores, scale, n, m, staged, columns, prices);
    return cudaGetLastError();
}

}  // namespace
}  // namespace hetmerge

extern "C" int hetmerge_assign_f32(const float* scores, double scale, std::int64_t batch, int n,
                                   int m, int* columns, double* prices, void* stream) {
    return hetmerge::launch(scores, scale, batch, n, m, columns, prices,
                            static_cast<cudaStream_t>(stream));
}

extern "C" int hetmerge_assign_f64(const double* scores, double scale, std::int64_t batch, int n,
                                   int m, int* columns, double* prices, void* stream) {
    return hetmerge::launch(scores, scale, batch, n, m, columns, prices,
                            static_cast<cudaStream_t>(stream));
}

extern "C" const char* hetmerge_cuda_error(int status) {
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}
