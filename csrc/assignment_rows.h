// Scans of one row of costs: the innermost loops of the assignment.
#pragma once

#include "view.h"

namespace hetmerge {

constexpr Index kBlock = 64;  // columns whose least distance is kept together

struct Least {
    double value, next;   // least reduced cost, and the second least (another column)
    Index first, second;  // their columns; second is -1 with one column
    bool finite;
};

// The two least of sign * row[j] - price[j] (price may be nullptr: zeros), j in [0, m), m >= 1.
Least least_two(const float* row, float sign, const double* price, Index m);
Least least_two(const double* row, double sign, const double* price, Index m);

// distance[j] = min(distance[j], sign * row[j] - price[j] + offset); where it fell, before[j] =
// from. least[b] is the least distance of block b of columns.
void relax(const float* row, float sign, const double* price, double offset, Index from,
           double* distance, Index* before, double* least, Index m);
void relax(const double* row, double sign, const double* price, double offset, Index from,
           double* distance, Index* before, double* least, Index m);

}  // namespace hetmerge
