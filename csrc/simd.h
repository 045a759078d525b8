// Row primitives: the inner loops every algorithm on a similarity matrix is made of.
#pragma once

#include "view.h"

namespace hetmerge {

// Largest of x[begin:end], -inf when empty. Values must not be NaN.
float row_max(const float* x, Index begin, Index end);
double row_max(const double* x, Index begin, Index end);

// First k in [begin, end) with x[k] == value, or -1.
Index row_find(const float* x, float value, Index begin, Index end);
Index row_find(const double* x, double value, Index begin, Index end);

// x[k] = alpha * min(x[k], y[k]) for k in [0, n). Where alpha can overflow (alpha > 1), finite
// values saturate at the largest finite ones and -inf stays -inf.
void row_join(float* x, const float* y, float alpha, Index n);
void row_join(double* x, const double* y, double alpha, Index n);

// x[k] = -inf for k in [begin, end) where bits[k] shares a bit with `mine`.
void row_close(float* x, const std::uint32_t* bits, std::uint32_t mine, Index begin, Index end);
void row_close(double* x, const std::uint32_t* bits, std::uint32_t mine, Index begin, Index end);

// max(|value|) over x[0:n], or NaN if any value is NaN or infinite.
float row_peak(const float* x, Index n);
double row_peak(const double* x, Index n);

}  // namespace hetmerge
