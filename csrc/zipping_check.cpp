#include <cmath>
#include <limits>

#include "parallel.h"
#include "zipping.h"

namespace hetmerge {
namespace {

// A tile and its mirror image fit the first-level cache. The image is transposed into a buffer of
// its own: read in place, its rows would fall into the same few cache sets for most n.
constexpr Index kTile = 64;

Index tiles(Index n) { return (n + kTile - 1) / kTile; }

template <class T>
MatrixCheck check_stripe(const T* matrix, Index n, Index stripe) {
    const Index r0 = stripe * kTile, r1 = std::min(n, r0 + kTile);
    MatrixCheck found{0, 0};
    T image[kTile][kTile + 1];
    for (Index r = r0; r < r1; ++r) {
        const T peak = row_peak(matrix + r * n, n);
        if (!(peak <= std::numeric_limits<T>::max()))
            return {std::numeric_limits<double>::quiet_NaN(), 0};
        found.peak = std::max(found.peak, static_cast<double>(peak));
    }
    for (Index c0 = r0; c0 < n; c0 += kTile) {
        const Index c1 = std::min(n, c0 + kTile);
        for (Index c = c0; c < c1; ++c)
            for (Index r = r0; r < r1; ++r) image[r - r0][c - c0] = matrix[c * n + r];
        for (Index r = r0; r < r1; ++r) {
            int differs = 0;
            for (Index c = c0; c < c1; ++c)
                differs |= matrix[r * n + c] != image[r - r0][c - c0] ? 1 : 0;
            for (Index c = differs ? c0 : c1; c < c1; ++c)
                found.asymmetry =
                    std::max(found.asymmetry, std::abs(static_cast<double>(matrix[r * n + c]) -
                                                       static_cast<double>(image[r - r0][c - c0])));
        }
    }
    return found;
}

}  // namespace

template <class T>
MatrixCheck check_symmetric(const T* matrix, Index n, int threads) {
    std::vector<MatrixCheck> found(static_cast<std::size_t>(tiles(n)));
    parallel_for(tiles(n), threads, [&](Index stripe) {
        found[static_cast<std::size_t>(stripe)] = check_stripe(matrix, n, stripe);
    });
    MatrixCheck total{0, 0};
    for (const MatrixCheck& one : found) {
        if (std::isnan(one.peak)) return one;
        total.peak = std::max(total.peak, one.peak);
        total.asymmetry = std::max(total.asymmetry, one.asymmetry);
    }
    return total;
}

template <class T>
void mirror_upper(T* matrix, Index n, int threads) {
    parallel_for(tiles(n), threads, [&](Index stripe) {
        const Index r0 = stripe * kTile, r1 = std::min(n, r0 + kTile);
        for (Index c0 = 0; c0 <= r0; c0 += kTile)
            for (Index r = r0; r < r1; ++r)
                for (Index c = c0; c < std::min(r, c0 + kTile); ++c)
                    matrix[r * n + c] = matrix[c * n + r];
    });
}

template MatrixCheck check_symmetric(const float*, Index, int);
template MatrixCheck check_symmetric(const double*, Index, int);
template void mirror_upper(float*, Index, int);
template void mirror_upper(double*, Index, int);

}  // namespace hetmerge
