// What zip in rounds asks of a device, one block per row of any space.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "zipping_rounds.h"

namespace hetmerge {
namespace {

constexpr int kThreads = 256, kWarp = 32;

void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Memory of the device for as long as this lives.
template <class V>
class Array {
  public:
    explicit Array(std::size_t count) {
        if (count > 0) require(cudaMalloc(&data_, count * sizeof(V)));
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { cudaFree(data_); }

    V* data() const { return data_; }
    void from(const V* host, std::size_t count, cudaStream_t stream) {
        require(cudaMemcpyAsync(data_, host, count * sizeof(V), cudaMemcpyHostToDevice, stream));
    }
    void to(V* host, std::size_t count, cudaStream_t stream) const {
        require(cudaMemcpyAsync(host, data_, count * sizeof(V), cudaMemcpyDeviceToHost, stream));
    }

  private:
    V* data_ = nullptr;
};

// Where a row lies: its matrix, its number in it, and the number of the matrix's first row.
struct Place {
    std::int64_t matrix;  // first element
    int row, count, first;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    best_kernel(const T* work, const Place* places, const char* live, const unsigned* bits,
                int* column, T* value) {
    __shared__ T values[kThreads / kWarp];
    __shared__ int columns[kThreads / kWarp];
    const Place place = places[blockIdx.x];
    T best = T(0);
    int found = place.count;  // none
    if (live[blockIdx.x]) {
        const T* row = work + place.matrix + std::int64_t(place.row) * place.count;
        const unsigned mine = bits[blockIdx.x];
        for (int j = static_cast<int>(threadIdx.x); j < place.count; j += kThreads) {
            const T v = row[j];
            if (!(v > best) || j == place.row || !live[place.first + j]) continue;
            if (mine & bits[place.first + j]) continue;
            best = v;  // the smallest column of equal ones: a thread's columns rise
            found = j;
        }
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const T v = __shfl_down_sync(~0u, best, offset);
        const int j = __shfl_down_sync(~0u, found, offset);
        if (v > best || (v == best && j < found)) {
            best = v;
            found = j;
        }
    }
    if (threadIdx.x % kWarp == 0) {
        values[threadIdx.x / kWarp] = best;
        columns[threadIdx.x / kWarp] = found;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kThreads / kWarp; ++w)
        if (values[w] > best || (values[w] == best && columns[w] < found)) {
            best = values[w];
            found = columns[w];
        }
    value[blockIdx.x] = best;
    column[blockIdx.x] = found < place.count ? found : -1;
}

// In every row, each merged column becomes alpha times the lesser of the two.
template <class T>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(T* work, const Place* places, const int* partner, T alpha) {
    const Place place = places[blockIdx.x];
    T* row = work + place.matrix + std::int64_t(place.row) * place.count;
    for (int i = static_cast<int>(threadIdx.x); i < place.count; i += kThreads) {
        const int j = partner[place.first + i];
        if (j < 0) continue;
        const T a = row[i], b = row[j];
        row[i] = alpha * (a < b ? a : b);
    }
}

// Each merged row becomes alpha times the lesser of the two.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(T* work, const Place* places, const int* partner, T alpha) {
    const Place place = places[blockIdx.x];
    const int other = partner[blockIdx.x];
    if (other < 0) return;
    T* row = work + place.matrix + std::int64_t(place.row) * place.count;
    const T* gone = work + place.matrix + std::int64_t(other) * place.count;
    for (int k = static_cast<int>(threadIdx.x); k < place.count; k += kThreads) {
        const T a = row[k], b = gone[k];
        row[k] = alpha * (a < b ? a : b);
    }
}

std::size_t sum(const std::vector<Index>& counts, bool squares) {
    Index total = 0;
    for (Index n : counts) total += squares ? n * n : n;
    return static_cast<std::size_t>(total);
}

template <class T>
class CudaRows : public RoundRows<T> {
  public:
    CudaRows(const std::vector<const T*>& similarities, const std::vector<Index>& counts, T alpha,
             cudaStream_t stream)
        : source_(similarities),
          counts_(counts),
          alpha_(alpha),
          stream_(stream),
          rows_(sum(counts, false)),
          work_(sum(counts, true)),
          places_(rows_),
          live_(rows_),
          bits_(rows_),
          column_(rows_),
          partner_(rows_),
          value_(rows_) {
        std::vector<Place> places;
        Index first = 0, matrix = 0;
        for (Index n : counts) {
            for (Index r = 0; r < n; ++r)
                places.push_back(
                    {matrix, static_cast<int>(r), static_cast<int>(n), static_cast<int>(first)});
            matrices_.push_back(matrix);
            first += n;
            matrix += n * n;
        }
        if (rows_ > 0) places_.from(places.data(), rows_, stream_);
        for (std::size_t s = 0; s < counts.size(); ++s) CudaRows::reset(s);
        require(cudaStreamSynchronize(stream_));  // `places` may go now
    }

    void best(const std::vector<char>& live, const std::vector<std::uint32_t>& bits,
              std::vector<int>& column, std::vector<T>& value) override {
        live_.from(live.data(), rows_, stream_);
        bits_.from(bits.data(), rows_, stream_);
        best_kernel<<<grid(), kThreads, 0, stream_>>>(work_.data(), places_.data(), live_.data(),
                                                      bits_.data(), column_.data(), value_.data());
        require(cudaGetLastError());
        column_.to(column.data(), rows_, stream_);
        value_.to(value.data(), rows_, stream_);
        require(cudaStreamSynchronize(stream_));
    }

    void join(const std::vector<int>& partner) override {
        partner_.from(partner.data(), rows_, stream_);
        columns_kernel<<<grid(), kThreads, 0, stream_>>>(work_.data(), places_.data(),
                                                         partner_.data(), alpha_);
        rows_kernel<<<grid(), kThreads, 0, stream_>>>(work_.data(), places_.data(), partner_.data(),
                                                      alpha_);
        require(cudaGetLastError());
        require(cudaStreamSynchronize(stream_));  // the caller changes `partner`
    }

    void reset(std::size_t space) override {
        const auto bytes = static_cast<std::size_t>(counts_[space] * counts_[space]) * sizeof(T);
        if (bytes > 0)
            require(cudaMemcpyAsync(work_.data() + matrices_[space], source_[space], bytes,
                                    cudaMemcpyDeviceToDevice, stream_));
    }

  private:
    unsigned grid() const { return static_cast<unsigned>(rows_); }

    std::vector<const T*> source_;
    std::vector<Index> counts_, matrices_;
    T alpha_;
    cudaStream_t stream_;
    std::size_t rows_;
    Array<T> work_;
    Array<Place> places_;
    Array<char> live_;
    Array<unsigned> bits_;
    Array<int> column_, partner_;
    Array<T> value_;
};

}  // namespace

template <class T>
std::unique_ptr<RoundRows<T>> cuda_rows(const std::vector<const T*>& similarities,
                                        const std::vector<Index>& counts, T alpha, void* stream) {
    return std::make_unique<CudaRows<T>>(similarities, counts, alpha,
                                         static_cast<cudaStream_t>(stream));
}

template std::unique_ptr<RoundRows<float>> cuda_rows(const std::vector<const float*>&,
                                                     const std::vector<Index>&, float, void*);
template std::unique_ptr<RoundRows<double>> cuda_rows(const std::vector<const double*>&,
                                                      const std::vector<Index>&, double, void*);

}  // namespace hetmerge
