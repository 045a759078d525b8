// Greedy elastic zip: exact labels of the published full-scan algorithm in about O(n^2).
#pragma once

#include <vector>

#include "zipping_steps.h"

namespace hetmerge {

struct ZipOutcome {
    std::vector<Index> labels;  // cluster of each unit, clusters numbered by their smallest member
    std::vector<double> heights;  // similarity at which each merge happened, in order
    bool relaxed = false;         // budgets had to be dropped to reach the width
    Index rescans = 0;            // rows searched again by the row-best cache
    bool chained = false;         // nearest-neighbour chains took part
};

// How to zip: features per model, within-model merges allowed per model, clusters wanted, factor on
// a merged similarity. The cache hands over to chains after `rescan_limit` rescans; negative means
// 32 n. Results do not depend on `threads`.
struct ZipSettings {
    std::vector<Index> sizes, budgets;
    Index width = 1;
    double alpha = 1;
    Index rescan_limit = -1;
    int threads = 1;
};

// similarity: [n, n] row-major, bitwise symmetric, finite, diagonal ignored. `workspace` takes the
// matrix under merging: null for one of its own, or `similarity` itself to merge in place.
template <class T>
ZipOutcome zip(const T* similarity, T* workspace, const ZipSettings& settings);

struct MatrixCheck {
    double peak;       // largest magnitude; NaN if any entry is not finite
    double asymmetry;  // largest |s(i, j) - s(j, i)|
};

template <class T>
MatrixCheck check_symmetric(const T* matrix, Index n, int threads);

// Copies the upper triangle over the lower one.
template <class T>
void mirror_upper(T* matrix, Index n, int threads);

}  // namespace hetmerge
