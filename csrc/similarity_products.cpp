// Scalar products of all pairs of long vectors, in double.
#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "similarity.h"
#include "targets.h"

namespace hetmerge {
namespace {

#if defined(__GNUC__)
typedef double Lanes __attribute__((vector_size(64)));
#else
struct Lanes {
    double value[8];
    double& operator[](std::int64_t l) { return value[l]; }
    void operator+=(const Lanes& other) {
        for (int l = 0; l < 8; ++l) value[l] += other.value[l];
    }
};
Lanes operator*(Lanes a, const Lanes& b) {
    for (int l = 0; l < 8; ++l) a.value[l] *= b.value[l];
    return a;
}
#endif

constexpr Index kSide = 4;       // vectors of each side multiplied at a time
constexpr Index kLanes = 8;      // partial sums of a pair
constexpr Index kChunk = 2048;   // entries of all vectors that are read again while in the cache
constexpr Index kFew = 1 << 18;  // multiplications that are not worth another thread

// lanes[r][c] += rows[r] * columns[c] at k .. k + count.
template <Index side>
HETMERGE_INLINE void add_lanes(const double* const* rows, const double* const* columns, Index k,
                               Index count, Lanes* lanes) {
    Lanes x[side] = {}, y[side] = {};
    const auto bytes = static_cast<std::size_t>(count) * sizeof(double);
#pragma GCC unroll 4
    for (Index r = 0; r < side; ++r) {
        std::memcpy(x + r, rows[r] + k, bytes);
        std::memcpy(y + r, columns[r] + k, bytes);
    }
#pragma GCC unroll 4
    for (Index r = 0; r < side; ++r)
#pragma GCC unroll 4
        for (Index c = 0; c < side; ++c) lanes[r * side + c] += x[r] * y[c];
}

// sums[r][c] += products of rows[r] and columns[c] over [begin, end). Written over lanes, since
// compilers may not reorder a floating-point sum; the rest too, since a compiler may fuse a scalar
// product into its sum in one instance of this function and not in another.
template <Index side>
HETMERGE_INLINE void add(const double* const* rows, const double* const* columns, Index begin,
                         Index end, double* sums) {
    Lanes lanes[side * side] = {};
    Index k = begin;
    for (; k + kLanes <= end; k += kLanes) add_lanes<side>(rows, columns, k, kLanes, lanes);
    if (k < end) add_lanes<side>(rows, columns, k, end - k, lanes);
    for (Index pair = 0; pair < side * side; ++pair) {
        double total = 0;
        for (Index l = 0; l < kLanes; ++l) total += lanes[pair][l];
        sums[pair] += total;
    }
}

HETMERGE_CLONES void add_pairs(const double* const* rows, const double* const* columns, Index begin,
                               Index end, double* sums) {
    add<kSide>(rows, columns, begin, end, sums);
}

HETMERGE_CLONES void add_square(const double* const* row, Index begin, Index end, double* sum) {
    add<1>(row, row, begin, end, sum);
}

}  // namespace

void scalar_products(const std::vector<const double*>& rows,
                     const std::vector<const double*>& columns, Index length, double* table,
                     int threads) {
    const auto count = static_cast<Index>(rows.size()), across = static_cast<Index>(columns.size());
    if (count == 0 || across == 0) return;
    const Index groups = (count + kSide - 1) / kSide;
    // Beyond the last vector the last one stands in; what it gives is not kept.
    const auto gather = [](const std::vector<const double*>& all, Index first,
                           const double** into) {
        for (Index r = 0; r < kSide; ++r)
            into[r] = all[std::min(static_cast<std::size_t>(first + r), all.size() - 1)];
    };
    const bool few = count * across * length < kFew;
    parallel_for(groups, few ? 1 : threads, [&](Index group) {
        const double *left[kSide], *right[kSide];
        const Index first = group * kSide, wide = (across + kSide - 1) / kSide * kSide;
        std::vector<double> sums(static_cast<std::size_t>(wide * kSide));
        gather(rows, first, left);
        for (Index begin = 0; begin < length; begin += kChunk)
            for (Index j = 0; j < across; j += kSide) {
                gather(columns, j, right);
                add_pairs(left, right, begin, std::min(length, begin + kChunk),
                          sums.data() + j * kSide);
            }
        for (Index r = 0; r < std::min(kSide, count - first); ++r)
            for (Index j = 0; j < across; ++j)
                table[(first + r) * across + j] = sums[static_cast<std::size_t>(
                    j / kSide * kSide * kSide + r * kSide + j % kSide)];
    });
}

void squares(const std::vector<const double*>& rows, Index length, double* sums, int threads) {
    const auto count = static_cast<Index>(rows.size());
    parallel_for(count, count * length < kFew ? 1 : threads, [&](Index i) {
        sums[i] = 0;
        for (Index begin = 0; begin < length; begin += kChunk)
            add_square(&rows[static_cast<std::size_t>(i)], begin, std::min(length, begin + kChunk),
                       sums + i);
    });
}

}  // namespace hetmerge
