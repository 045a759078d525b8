#include "moments_tile.h"

#include <cstring>

#include "targets.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HETMERGE_X86 1
#include <immintrin.h>
#endif

namespace hetmerge {
namespace {

template <class Real, int Bytes>
struct Vector {
    typedef Real type __attribute__((vector_size(Bytes), may_alias, aligned(Bytes)));
};

// The block of `out` is wanted when the sums are ready; by then it is in the cache.
HETMERGE_INLINE void prefetch(const double* out, Index stride, Index rows, Index columns) {
    for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; c += 8) __builtin_prefetch(out + r * stride + c, 1);
}

template <class Real>
HETMERGE_INLINE void add(const Real* sums, Index count, double* out) {
    for (Index c = 0; c < count; ++c) out[c] += static_cast<double>(sums[c]);
}

template <class Real, int Bytes, int Rows, int Panels>
HETMERGE_INLINE void multiply(const std::byte* left, const std::byte* right, Index panel_bytes,
                              Index depth, double* out, Index stride) {
    using V = typename Vector<Real, Bytes>::type;
    constexpr int each = kLine / Bytes;
    constexpr int vectors = Panels * each;
    prefetch(out, stride, Rows, Panels * kLine / static_cast<Index>(sizeof(Real)));
    V sums[Rows][vectors] = {};
    for (Index k = 0; k < depth; ++k) {
        const Real* a = reinterpret_cast<const Real*>(left + k * kLine);
        V b[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v)
            b[v] = *reinterpret_cast<const V*>(right + (v / each) * panel_bytes + k * kLine +
                                               (v % each) * Bytes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sums[r][v] += b[v] * a[r];
    }
    for (int r = 0; r < Rows; ++r) {
        Real row[vectors * Bytes / sizeof(Real)];
        std::memcpy(row, sums[r], sizeof(row));
        add(row, vectors * Bytes / static_cast<Index>(sizeof(Real)), out + r * stride);
    }
}

#define HETMERGE_TILE(name, attribute, Real, Bytes, Rows)                                 \
    attribute void name(const std::byte* left, const std::byte* right, Index panels,      \
                        Index panel_bytes, Index depth, double* out, Index stride) {      \
        if (panels == 3) {                                                                \
            multiply<Real, Bytes, Rows, 3>(left, right, panel_bytes, depth, out, stride); \
            return;                                                                       \
        }                                                                                 \
        if (panels == 2) {                                                                \
            multiply<Real, Bytes, Rows, 2>(left, right, panel_bytes, depth, out, stride); \
            return;                                                                       \
        }                                                                                 \
        multiply<Real, Bytes, Rows, 1>(left, right, panel_bytes, depth, out, stride);     \
    }
#define HETMERGE_NARROW_TILE(name, attribute, Real, Bytes, Rows)                                  \
    attribute void name(const std::byte* left, const std::byte* right, Index, Index, Index depth, \
                        double* out, Index stride) {                                              \
        multiply<Real, Bytes, Rows, 1>(left, right, 0, depth, out, stride);                       \
    }

HETMERGE_NARROW_TILE(portable_f32, , float, 16, 2)
HETMERGE_NARROW_TILE(portable_f64, , double, 16, 2)

#ifdef HETMERGE_X86

#define HETMERGE_AVX2 __attribute__((target("avx2,fma")))
#define HETMERGE_AVX512 __attribute__((target("avx512f,avx2,fma")))
HETMERGE_NARROW_TILE(avx2_f32, HETMERGE_AVX2, float, 32, 4)
HETMERGE_NARROW_TILE(avx2_f64, HETMERGE_AVX2, double, 32, 4)
HETMERGE_TILE(avx512_f32, HETMERGE_AVX512, float, 64, 8)
HETMERGE_TILE(avx512_f64, HETMERGE_AVX512, double, 64, 8)

#define HETMERGE_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")))

template <int Panels>
HETMERGE_BF16 inline void multiply_bf16(const std::byte* left, const std::byte* right,
                                        Index panel_bytes, Index depth, double* out, Index stride) {
    constexpr int rows = 8;
    prefetch(out, stride, rows, Panels * 16);
    __m512 sums[rows][Panels];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
        for (int p = 0; p < Panels; ++p) sums[r][p] = _mm512_setzero_ps();
    for (Index k = 0; k < depth; ++k) {
        const int* a = reinterpret_cast<const int*>(left + k * kLine);
        __m512i b[Panels];
#pragma GCC unroll 3
        for (int p = 0; p < Panels; ++p)
            b[p] = _mm512_load_si512(right + p * panel_bytes + k * kLine);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const __m512i x = _mm512_set1_epi32(a[r]);
#pragma GCC unroll 3
            for (int p = 0; p < Panels; ++p)
                sums[r][p] = _mm512_dpbf16_ps(sums[r][p], (__m512bh)x, (__m512bh)b[p]);
        }
    }
    for (int r = 0; r < rows; ++r) {
        float row[Panels * 16];
        for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(row + p * 16, sums[r][p]);
        add(row, Panels * 16, out + r * stride);
    }
}

HETMERGE_BF16 void avx512_bf16(const std::byte* left, const std::byte* right, Index panels,
                               Index panel_bytes, Index depth, double* out, Index stride) {
    const auto run = panels == 3   ? multiply_bf16<3>
                     : panels == 2 ? multiply_bf16<2>
                                   : multiply_bf16<1>;
    run(left, right, panel_bytes, depth, out, stride);
}

#endif

bool have(Level level) {
#ifdef HETMERGE_X86
    __builtin_cpu_init();
    if (level == Level::avx512) return __builtin_cpu_supports("avx512f");
    if (level == Level::avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return level == Level::portable;
}

}  // namespace

bool has_bf16(Level most) {
#ifdef HETMERGE_X86
    __builtin_cpu_init();
    return most == Level::avx512 && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    static_cast<void>(most);
    return false;
#endif
}

Tile tile_for(Packing packing, Level most) {
    const bool wide = packing == Packing::f64;
#ifdef HETMERGE_X86
    if (packing == Packing::bf16) return {8, 3, avx512_bf16};
    if (most == Level::avx512 && have(Level::avx512)) return {8, 3, wide ? avx512_f64 : avx512_f32};
    if (most >= Level::avx2 && have(Level::avx2)) return {4, 1, wide ? avx2_f64 : avx2_f32};
#endif
    return {2, 1, wide ? portable_f64 : portable_f32};
}

}  // namespace hetmerge
