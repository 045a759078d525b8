#include "project_rows.h"

#include <algorithm>
#include <stdexcept>

#include "project_cast.h"
#include "targets.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace hetmerge {

// One compiled copy per instruction set; declared apart from the templates because multiversioned
// functions need external linkage.
namespace clones {

#define HETMERGE_DEFINE(Sum, T)                                                                 \
    HETMERGE_CLONES void add(Sum* __restrict sum, const T* __restrict x, Sum factor, Index n) { \
        for (Index k = 0; k < n; ++k) sum[k] += factor * static_cast<Sum>(widen(x[k]));         \
    }                                                                                           \
    HETMERGE_CLONES void convert(const Sum* __restrict x, T* __restrict out, Index n) {         \
        for (Index k = 0; k < n; ++k) narrow(x[k], out + k);                                    \
    }

HETMERGE_DEFINE(float, float)
HETMERGE_DEFINE(float, Half)
HETMERGE_DEFINE(float, BFloat)
HETMERGE_DEFINE(double, float)
HETMERGE_DEFINE(double, double)
HETMERGE_DEFINE(double, Half)
HETMERGE_DEFINE(double, BFloat)

HETMERGE_CLONES void convert(const float* __restrict x, double* __restrict out, Index n) {
    for (Index k = 0; k < n; ++k) narrow(x[k], out + k);
}
HETMERGE_CLONES void scale(float* __restrict x, const float* __restrict factor, Index n) {
    for (Index k = 0; k < n; ++k) x[k] *= factor[k];
}
HETMERGE_CLONES void scale(double* __restrict x, const double* __restrict factor, Index n) {
    for (Index k = 0; k < n; ++k) x[k] *= factor[k];
}

}  // namespace clones

namespace {

template <class Sum, class T>
void add(Sum* sum, const void* given, Index stride, const Index* offset, Sum factor, Index n) {
    const T* x = static_cast<const T*>(given);
    if (offset != nullptr) {
        for (Index k = 0; k < n; ++k) sum[k] += factor * static_cast<Sum>(widen(x[offset[k]]));
    } else if (stride == 1) {
        clones::add(sum, x, factor, n);
    } else {
        for (Index k = 0; k < n; ++k) sum[k] += factor * static_cast<Sum>(widen(x[k * stride]));
    }
}

// Scalar loads put together in registers: on many machines faster than gather instructions.
template <class Sum>
void gather(Sum* __restrict sum, const Sum* __restrict x, const std::int32_t* __restrict from,
            Index n, Ahead ahead) {
    Index k = 0;
#if defined(__GNUC__)
    constexpr Index bytes = sizeof(Sum), lanes = 4, line = 64;
    typedef Sum Lanes __attribute__((vector_size(lanes * bytes)));
    for (; k + line / bytes <= n; k += line / bytes) {
        if (k * bytes < ahead.bytes) __builtin_prefetch(ahead.begin + k * bytes, 0, 2);
        for (Index i = k; i < k + line / bytes; i += lanes) {
            const Lanes moved = {x[from[i]], x[from[i + 1]], x[from[i + 2]], x[from[i + 3]]};
            Lanes old;
            std::memcpy(&old, sum + i, sizeof(old));
            old += moved;
            std::memcpy(sum + i, &old, sizeof(old));
        }
    }
#else
    (void)ahead;
#endif
    for (; k < n; ++k) sum[k] += x[from[k]];
}

void stream(const void* from, void* to, std::size_t bytes) {
#if defined(__SSE2__)
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
    const std::size_t head = std::min(bytes, (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16);
    std::memcpy(target, source, head);
    std::size_t done = head;
    for (; done + 16 <= bytes; done += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + done),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + done)));
    std::memcpy(target + done, source + done, bytes - done);
#else
    std::memcpy(to, from, bytes);
#endif
}

template <class Sum, class T>
void store(const Sum* x, void* out, Index n, bool streamed) {
    if (!streamed) {
        clones::convert(x, static_cast<T*>(out), n);
        return;
    }
    constexpr Index part = 1024;  // stays in the first-level cache
    T line[part];
    for (Index k = 0; k < n; k += part) {
        const Index count = std::min(part, n - k);
        clones::convert(x + k, line, count);
        stream(line, static_cast<T*>(out) + k, static_cast<std::size_t>(count) * sizeof(T));
    }
}

template <class Sum>
void store_any(const Sum* x, DType dtype, void* out, Index n, bool streamed) {
    switch (dtype) {
        case DType::f32:
            return store<Sum, float>(x, out, n, streamed);
        case DType::f64:
            return store<Sum, double>(x, out, n, streamed);
        case DType::f16:
            return store<Sum, Half>(x, out, n, streamed);
        case DType::bf16:
            return store<Sum, BFloat>(x, out, n, streamed);
        default:
            throw std::invalid_argument("out: not floating point");
    }
}

}  // namespace

void add_row(float* sum, DType dtype, const void* x, Index stride, const Index* offset,
             float factor, Index n) {
    switch (dtype) {
        case DType::f32:
            return add<float, float>(sum, x, stride, offset, factor, n);
        case DType::f16:
            return add<float, Half>(sum, x, stride, offset, factor, n);
        case DType::bf16:
            return add<float, BFloat>(sum, x, stride, offset, factor, n);
        default:
            throw std::invalid_argument("weights: this dtype has no float sums");
    }
}

void add_row(double* sum, DType dtype, const void* x, Index stride, const Index* offset,
             double factor, Index n) {
    switch (dtype) {
        case DType::f32:
            return add<double, float>(sum, x, stride, offset, factor, n);
        case DType::f64:
            return add<double, double>(sum, x, stride, offset, factor, n);
        case DType::f16:
            return add<double, Half>(sum, x, stride, offset, factor, n);
        case DType::bf16:
            return add<double, BFloat>(sum, x, stride, offset, factor, n);
        default:
            throw std::invalid_argument("weights: not floating point");
    }
}

void scale_row(float* x, const float* factor, Index n) { clones::scale(x, factor, n); }
void scale_row(double* x, const double* factor, Index n) { clones::scale(x, factor, n); }

void gather_row(float* sum, const float* x, const std::int32_t* from, Index n, Ahead ahead) {
    gather(sum, x, from, n, ahead);
}
void gather_row(double* sum, const double* x, const std::int32_t* from, Index n, Ahead ahead) {
    gather(sum, x, from, n, ahead);
}

void store_row(const float* x, DType dtype, void* out, Index n, bool streamed) {
    store_any(x, dtype, out, n, streamed);
}
void store_row(const double* x, DType dtype, void* out, Index n, bool streamed) {
    store_any(x, dtype, out, n, streamed);
}

void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace hetmerge
