#include "moments_batch.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "targets.h"

namespace hetmerge {
namespace {

constexpr Index kBlock = 64;  // samples read at a time: what is written stays in the first cache

struct Half {
    std::uint16_t bits;
};
struct Brain {
    std::uint16_t bits;
};

HETMERGE_INLINE float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

HETMERGE_INLINE double widen(double x) { return x; }
HETMERGE_INLINE double widen(float x) { return x; }
HETMERGE_INLINE double widen(Brain x) {
    return from_bits(static_cast<std::uint32_t>(x.bits) << 16);
}
// Exponent and fraction move to their places in a float; the factor mends the exponent's offset,
// subnormal numbers included.
HETMERGE_INLINE double widen(Half x) {
    const std::uint32_t bits = x.bits;
    const float finite = from_bits((bits & 0x7fffu) << 13) * 0x1p112f;
    std::uint32_t found;
    std::memcpy(&found, &finite, sizeof(found));
    found |= (bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    return from_bits(found | (bits & 0x8000u) << 16);
}

template <class In, class Real>
HETMERGE_INLINE void read_rows(const In* data, const Index* samples, Index count, const double* p,
                               Index lanes, Index line, Real* out) {
    for (Index k = 0; k < count; ++k) {
        const In* row = data + samples[k];
        Real* to = out + k * line;
        for (Index f = 0; f < lanes; ++f) to[f] = static_cast<Real>(widen(row[f]) - p[f]);
    }
}

template <class In, class Real>
HETMERGE_INLINE void read_feature(const In* data, const Index* samples, Index count, double p,
                                  Index line, Real* out) {
    for (Index k = 0; k < count; ++k)
        out[k * line] = static_cast<Real>(widen(data[samples[k]]) - p);
}

template <class In, class Real>
HETMERGE_INLINE void read_block(const std::byte* bytes, const Index* samples, Index count,
                                const Index* features, const double* p, Index lanes, Index line,
                                Real* out) {
    const In* data = reinterpret_cast<const In*>(bytes);
    bool together = true;
    for (Index f = 1; f < lanes; ++f) together = together && features[f] == features[0] + f;
    if (together && lanes == line) {
        read_rows(data + features[0], samples, count, p, line, line, out);
        return;
    }
    if (together) {
        read_rows(data + features[0], samples, count, p, lanes, line, out);
        return;
    }
    for (Index f = 0; f < lanes; ++f)
        read_feature(data + features[f], samples, count, p[f], line, out + f);
}

template <class Real>
HETMERGE_INLINE void read_any(DType dtype, const std::byte* data, const Index* samples, Index count,
                              const Index* features, const double* p, Index lanes, Index line,
                              Real* out) {
    if (dtype == DType::f32)
        read_block<float>(data, samples, count, features, p, lanes, line, out);
    else if (dtype == DType::f64)
        read_block<double>(data, samples, count, features, p, lanes, line, out);
    else if (dtype == DType::f16)
        read_block<Half>(data, samples, count, features, p, lanes, line, out);
    else
        read_block<Brain>(data, samples, count, features, p, lanes, line, out);
}

HETMERGE_CLONES void read_source(DType dtype, const std::byte* data, const Index* samples,
                                 Index count, const Index* features, const double* p, Index lanes,
                                 float* out) {
    read_any(dtype, data, samples, count, features, p, lanes, 16, out);
}
HETMERGE_CLONES void read_source(DType dtype, const std::byte* data, const Index* samples,
                                 Index count, const Index* features, const double* p, Index lanes,
                                 double* out) {
    read_any(dtype, data, samples, count, features, p, lanes, 8, out);
}

// Rounds to nearest, ties to even, and puts the values of two samples side by side.
HETMERGE_CLONES void round_pairs(const float* values, Index lines, std::uint16_t* out) {
    for (Index k = 0; k < lines; ++k)
        for (Index f = 0; f < 16; ++f)
            for (Index s = 0; s < 2; ++s) {
                std::uint32_t bits;
                std::memcpy(&bits, values + (2 * k + s) * 16 + f, sizeof(bits));
                bits += 0x7fffu + (bits >> 16 & 1u);
                out[(k * 16 + f) * 2 + s] = static_cast<std::uint16_t>(bits >> 16);
            }
}

bool is_brain(double x) {
    const float value = static_cast<float>(x);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<double>(value) == x && (bits & 0xffffu) == 0;
}

// Where each position of a strided block lies, row-major.
std::vector<Index> offsets(const std::vector<Index>& shape, const std::vector<Index>& strides) {
    std::vector<Index> found{0};
    for (std::size_t d = 0; d < shape.size(); ++d) {
        std::vector<Index> next;
        next.reserve(found.size() * static_cast<std::size_t>(shape[d]));
        for (Index base : found)
            for (Index k = 0; k < shape[d]; ++k) next.push_back(base + k * strides[d]);
        found = std::move(next);
    }
    return found;
}

template <class T>
std::vector<T> without(std::vector<T> values, Index dim) {
    values.erase(values.begin() + dim);
    return values;
}

}  // namespace

Batch::Batch(std::vector<Source> sources) : sources_(std::move(sources)), starts_{0} {
    for (const Source& source : sources_) {
        starts_.push_back(starts_.back() + static_cast<Index>(source.features.size()));
        samples_ = static_cast<Index>(source.samples->size());
    }
}

Batch Batch::columns(const std::vector<View>& tensors, Index dim, const View* mask) {
    std::vector<Index> counted;
    if (mask != nullptr) {
        const bool* data = mask->data<bool>();
        const std::vector<Index> at = offsets(mask->shape, mask->strides);
        for (std::size_t s = 0; s < at.size(); ++s)
            if (data[at[s]]) counted.push_back(static_cast<Index>(s));
    }
    std::vector<Source> sources;
    for (const View& view : tensors) {
        std::vector<Index> samples = offsets(without(view.shape, dim), without(view.strides, dim));
        if (mask != nullptr) {
            for (std::size_t s = 0; s < counted.size(); ++s)
                samples[s] = samples[static_cast<std::size_t>(counted[s])];
            samples.resize(counted.size());
        }
        Source source{view.data<const std::byte>(), view.dtype,
                      std::make_shared<const std::vector<Index>>(std::move(samples)),
                      offsets({view.shape[dim]}, {view.strides[dim]})};
        sources.push_back(std::move(source));
    }
    return Batch(std::move(sources));
}

Packing Batch::packing(const double* pivot, Level most) const {
    bool brain = has_bf16(most);
    for (Index f = 0; pivot != nullptr && f < width(); ++f) brain = brain && is_brain(pivot[f]);
    for (const Source& source : sources_) {
        if (source.dtype == DType::f64) return Packing::f64;
        brain = brain && source.dtype == DType::bf16;
    }
    return brain ? Packing::bf16 : Packing::f32;
}

template <class Real>
void Batch::read(Index first, Index lanes, Index begin, Index end, const double* pivot,
                 Real* out) const {
    static constexpr double kNone[16] = {};
    if (first + lanes > width()) std::fill(out, out + (end - begin) * lanes, Real(0));
    for (std::size_t m = 0; m < sources_.size(); ++m) {
        const Index from = std::max(first, starts_[m]);
        const Index to = std::min(first + lanes, starts_[m + 1]);
        if (from >= to) continue;
        const Source& source = sources_[m];
        read_source(source.dtype, source.data, source.samples->data() + begin, end - begin,
                    source.features.data() + (from - starts_[m]), pivot ? pivot + from : kNone,
                    to - from, out + (from - first));
    }
}

void Batch::pack(Packing packing, Index panel, Index begin, Index end, const double* pivot,
                 std::byte* out) const {
    const Index lanes = features_per_line(packing);
    for (Index k = begin; k < end; k += kBlock) {
        const Index last = std::min(k + kBlock, end);
        std::byte* to = out + (k - begin) / samples_per_line(packing) * kLine;
        if (packing == Packing::f64) {
            read(panel * lanes, lanes, k, last, pivot, reinterpret_cast<double*>(to));
        } else if (packing == Packing::f32) {
            read(panel * lanes, lanes, k, last, pivot, reinterpret_cast<float*>(to));
        } else {
            alignas(64) float values[kBlock * 16];
            read(panel * lanes, lanes, k, last, pivot, values);
            const Index lines = (last - k + 1) / 2;
            std::fill(values + (last - k) * 16, values + lines * 32, 0.0f);
            round_pairs(values, lines, reinterpret_cast<std::uint16_t*>(to));
        }
    }
}

}  // namespace hetmerge
