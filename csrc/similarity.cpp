#include "similarity.h"

#include <algorithm>
#include <stdexcept>

#include "parallel.h"
#include "project_cast.h"

namespace hetmerge {
namespace {

constexpr Index kPanel = 32;  // samples side by side, so that one feature of all is one load
constexpr Index kRows = 8;    // samples of another panel multiplied with them at a time

// c[r][l] = sum over k of a[k][r] * b[k][l], for r < kRows and l < kPanel; rows of a and b are a
// panel wide.
using Tile = void (*)(const float* a, const float* b, Index depth, float* c);

#if defined(__GNUC__)
template <int bytes, Index rows>
HETMERGE_INLINE void tile(const float* a, const float* b, Index depth, float* c) {
    typedef float Lanes __attribute__((vector_size(bytes)));
    constexpr Index lanes = bytes / sizeof(float), across = kPanel / lanes;
    for (Index first = 0; first < kRows; first += rows) {
        Lanes sum[rows][across] = {};
        for (Index k = 0; k < depth; ++k) {
            Lanes y[across];
#pragma GCC unroll 8
            for (Index l = 0; l < across; ++l)
                std::memcpy(y + l, b + k * kPanel + l * lanes, sizeof(Lanes));
#pragma GCC unroll 8
            for (Index r = 0; r < rows; ++r)
#pragma GCC unroll 8
                for (Index l = 0; l < across; ++l) sum[r][l] += a[k * kPanel + first + r] * y[l];
        }
        // One by one: copied as a whole, the sums would live in memory.
#pragma GCC unroll 8
        for (Index r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (Index l = 0; l < across; ++l) {
                const Lanes value = sum[r][l];
                std::memcpy(c + (first + r) * kPanel + l * lanes, &value, sizeof(value));
            }
    }
}
#endif

#if defined(__GNUC__) && defined(__x86_64__)
__attribute__((target("avx512f"))) void tile_512(const float* a, const float* b, Index depth,
                                                 float* c) {
    tile<64, 8>(a, b, depth, c);
}
__attribute__((target("avx2,fma"))) void tile_256(const float* a, const float* b, Index depth,
                                                  float* c) {
    tile<32, 2>(a, b, depth, c);
}
#endif

void tile_plain(const float* a, const float* b, Index depth, float* c) {
#if defined(__GNUC__)
    tile<16, 1>(a, b, depth, c);
#else
    std::fill(c, c + kRows * kPanel, 0.0f);
    for (Index k = 0; k < depth; ++k)
        for (Index r = 0; r < kRows; ++r)
            for (Index l = 0; l < kPanel; ++l)
                c[r * kPanel + l] += a[k * kPanel + r] * b[k * kPanel + l];
#endif
}

Tile best_tile() {
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return tile_512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return tile_256;
#endif
    return tile_plain;
}

class Gram {
  public:
    Gram(const View& features, double* gram)
        : features_(features),
          n_(features.shape[0]),
          gram_(gram),
          panels_((n_ + kPanel - 1) / kPanel),
          packed_(static_cast<std::size_t>(panels_ * kPanel * kGramDepth)) {}

    double run() {
        static const Tile tile = best_tile();
        std::fill(gram_, gram_ + n_ * n_, 0.0);
        for (Index begin = 0; begin < features_.shape[1]; begin += kGramDepth) {
            const Index depth = std::min(kGramDepth, features_.shape[1] - begin);
            pack(begin, depth);
            multiply(tile, depth);
        }
        double longest = 0;
        for (Index i = 0; i < n_; ++i) {
            const double length = gram_[i * n_ + i];
            longest = length <= longest ? longest : length;  // NaN stays
            if (longest != longest) break;
        }
        centre();
        return longest;
    }

  private:
    // packed_[panel][feature][sample]: differences to the first sample, zero beyond the last one.
    void pack(Index begin, Index depth) {
        switch (features_.dtype) {
            case DType::f32:
                return pack_as<float>(begin, depth);
            case DType::f16:
                return pack_as<Half>(begin, depth);
            case DType::bf16:
                return pack_as<BFloat>(begin, depth);
            default:
                throw std::invalid_argument("features: allowed are f32, f16 and bf16");
        }
    }

    template <class T>
    void pack_as(Index begin, Index depth) {
        constexpr Index together = 4;
        const T* data = features_.data<T>() + begin;
        float pivot[kGramDepth], rows[together][kGramDepth];
        for (Index k = 0; k < depth; ++k) pivot[k] = widen(data[k]);
        for (Index i = 0; i < panels_ * kPanel; i += together) {
            for (Index r = 0; r < together; ++r) {
                const T* row = data + (i + r) * features_.strides[0];
                for (Index k = 0; k < depth; ++k)
                    rows[r][k] = i + r < n_ ? widen(row[k]) - pivot[k] : 0.0f;
            }
            float* to = packed_.data() + i / kPanel * kPanel * kGramDepth + i % kPanel;
            for (Index k = 0; k < depth; ++k)
                for (Index r = 0; r < together; ++r) to[k * kPanel + r] = rows[r][k];
        }
    }

    // Adds the products of the packed features to the lower triangle.
    void multiply(Tile tile, Index depth) {
        float block[kRows * kPanel];
        const auto panel = [&](Index p) { return packed_.data() + p * kPanel * kGramDepth; };
        for (Index q = 0; q < panels_; ++q)
            for (Index i = q * kPanel; i < n_; i += kRows) {
                tile(panel(i / kPanel) + i % kPanel, panel(q), depth, block);
                for (Index r = 0; r < std::min(kRows, n_ - i); ++r) {
                    double* row = gram_ + (i + r) * n_ + q * kPanel;
                    for (Index l = 0; l < std::min(kPanel, n_ - q * kPanel); ++l)
                        row[l] += static_cast<double>(block[r * kPanel + l]);
                }
            }
    }

    void centre() {
        std::vector<double> mean(static_cast<std::size_t>(n_));
        const auto at = [&](Index i) -> double& { return mean[static_cast<std::size_t>(i)]; };
        for (Index i = 0; i < n_; ++i)
            for (Index j = 0; j < i; ++j) {
                at(i) += gram_[i * n_ + j];
                at(j) += gram_[i * n_ + j];
            }
        double all = 0;
        for (double& m : mean) all += m /= static_cast<double>(n_ - 2);
        for (double& m : mean) m -= all / static_cast<double>(2 * (n_ - 1));
        for (Index i = 0; i < n_; ++i) {
            for (Index j = 0; j < i; ++j) gram_[j * n_ + i] = gram_[i * n_ + j] -= at(i) + at(j);
            gram_[i * n_ + i] = 0;
        }
    }

    const View& features_;
    Index n_;
    double* gram_;
    Index panels_;
    std::vector<float> packed_;
};

}  // namespace

std::vector<double> centred_grams(const std::vector<View>& features,
                                  const std::vector<double*>& grams, int threads) {
    std::vector<double> longest(features.size());
    parallel_for(static_cast<Index>(features.size()), threads, [&](Index layer) {
        const std::size_t k = static_cast<std::size_t>(layer);
        longest[k] = Gram(features[k], grams[k]).run();
    });
    return longest;
}

}  // namespace hetmerge
