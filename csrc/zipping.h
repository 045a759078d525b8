// Greedy elastic zip: exact labels of the published full-scan algorithm in about O(n^2).
#pragma once

#include <vector>

#include "simd.h"

namespace hetmerge {

struct ZipOutcome {
    std::vector<Index> labels;  // cluster of each unit, clusters numbered by their smallest member
    std::vector<double> heights;  // similarity at which each merge happened, in order
    bool relaxed = false;         // budgets had to be dropped to reach the width
    Index rescans = 0;            // rows searched again by the row-best cache
    bool chained = false;         // nearest-neighbour chains took part
};

// similarity: [n, n] row-major, bitwise symmetric, finite, diagonal ignored, never written.
// sizes: units per model, summing to n. budgets: within-model merges allowed per model.
// The cache hands over to chains after `rescan_limit` rescans; negative means 32 n.
template <class T>
ZipOutcome zip(const T* similarity, const std::vector<Index>& sizes, std::vector<Index> budgets,
               Index width, T alpha, Index rescan_limit);

struct MatrixCheck {
    double peak;       // largest magnitude; NaN if any entry is not finite
    double asymmetry;  // largest |s(i, j) - s(j, i)|
};

template <class T>
MatrixCheck check_symmetric(const T* matrix, Index n);

}  // namespace hetmerge
