// A partition of the rows and columns of one tensor, applied to all parents in one pass.
#pragma once

#include <string>
#include <vector>

#include "view.h"

namespace hetmerge {

using Labels = std::vector<std::int32_t>;

struct Parent {
    bool present = false;  // false: the rows only count in the averages
    View weight;           // [R, C, ...] or [R], any strides
    Labels rows;           // [R] in [0, out rows)
    Labels cols;           // [C] in [0, out cols); empty for vectors
    double share = 1;      // >= 0
};

// out[r, c] = sum over parents m, rows i of r and columns j of c of
//             share_m / (sum of the shares of all members of r) * weight_m[i, j],
// and 0 where the shares of r add up to 0; trailing axes are equal in all tensors. `out` is dense:
// contiguous up to the order of its axes, which is the order of the loops. Sums run in double if a
// weight is f64, else in float, over parents, rows and columns in ascending order, whatever the
// number of threads.
void project(const std::vector<Parent>& parents, const View& out, int threads);

}  // namespace hetmerge
