// Element types of stored tensors and their conversion, in a form that compilers vectorise.
#pragma once

#include <cstring>

#include "view.h"

#if defined(__GNUC__)
#define HETMERGE_INLINE inline __attribute__((always_inline))
#else
#define HETMERGE_INLINE inline
#endif

namespace hetmerge {

struct Half {
    std::uint16_t bits;
};
struct BFloat {
    std::uint16_t bits;
};

template <class To, class From>
HETMERGE_INLINE To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

HETMERGE_INLINE float widen(float x) { return x; }
HETMERGE_INLINE double widen(double x) { return x; }
HETMERGE_INLINE float widen(BFloat x) {
    return bits_of<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
// Shifted into place, a half's exponent is too small by 112. The product mends that, for subnormals
// too.
HETMERGE_INLINE float widen(Half x) {
    const std::uint32_t h = x.bits;
    const float value = bits_of<float>((h & 0x7fffu) << 13) * 0x1p112f;
    const std::uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    return bits_of<float>(bits_of<std::uint32_t>(value) | special | ((h & 0x8000u) << 16));
}

// Conversions round to nearest, ties to even. From double to 16 bits they go through float.
HETMERGE_INLINE void narrow(float x, float* out) { *out = x; }
HETMERGE_INLINE void narrow(float x, double* out) { *out = x; }
HETMERGE_INLINE void narrow(double x, float* out) { *out = static_cast<float>(x); }
HETMERGE_INLINE void narrow(double x, double* out) { *out = x; }
HETMERGE_INLINE void narrow(float x, BFloat* out) {
    const std::uint32_t u = bits_of<std::uint32_t>(x);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    out->bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
HETMERGE_INLINE void narrow(float x, Half* out) {
    const std::uint32_t u = bits_of<std::uint32_t>(x), size = u & 0x7fffffffu;
    // The last place of 0.5 is that of half's smallest subnormal, so this addition rounds.
    const std::uint32_t small =
        bits_of<std::uint32_t>(bits_of<float>(size) + 0.5f) - bits_of<std::uint32_t>(0.5f);
    const std::uint32_t usual = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    const std::uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t found = size < 0x38800000u ? small : size < 0x47800000u ? usual : large;
    out->bits = static_cast<std::uint16_t>(found | ((u & 0x80000000u) >> 16));
}
template <class T>
HETMERGE_INLINE void narrow(double x, T* out) {
    narrow(static_cast<float>(x), out);
}

}  // namespace hetmerge
