// Second moments of packed samples: symmetric as row panels, between two batches as a matrix.
#pragma once

#include "moments_batch.h"

namespace hetmerge {

// Sums over the samples of a batch, taken in float64.
struct Sums {
    Index unfit = -1;             // first source with a NaN or infinite value
    std::vector<double> shift;    // [width] what was subtracted: `pivot`, or the first sample
    std::vector<double> total;    // [width] of x - shift
    std::vector<double> squares;  // [width] of (x - shift)^2
};

Sums sums(const Batch& batch, const double* pivot, int threads);

// The sums of all batches so far, of x - pivot; the pivot is NaN before the first.
struct SumsState {
    Index* count;
    const double* pivot;
    double *total, *squares;
};

bool has_pivot(const SumsState& state, Index width);

// Adds the sums of `samples` samples about the state's pivot, unless that lets the mean of all be
// more than `far` standard deviations away from it (or there is no pivot): then adds nothing.
bool add_if_near(const Sums& found, Index samples, const SumsState& state, double far);

constexpr Index kPanel = 128;  // rows of a panel of the symmetric product

// Adds (x - pivot)^T (x - pivot) to row panels: panel p holds the rows [128 p, 128 p + 128) and the
// columns from 128 p on, row-major, one panel after another. Only entries on and above the diagonal
// have a meaning.
void add_gram(const Batch& batch, const double* pivot, double* product, int threads, Level most);

// Entries of those panels.
Index panels_size(Index width);

// Adds (x - p)^T (y - q) to the matrix `product` [width of left, width of right]; pivots may be
// nullptr. Both batches have the same samples.
void add_cross(const Batch& left, const Batch& right, const double* left_pivot,
               const double* right_pivot, double* product, int threads, Level most);

}  // namespace hetmerge
