// Gram matrices of many layers' features, made ready for unbiased CKA.
#pragma once

#include <vector>

#include "view.h"

namespace hetmerge {

// features: per layer [n, d], of type f32, f16 or bf16, rows of consecutive entries. grams: per
// layer [n, n], row-major: X X^T for X = features minus their first row, U-centred (zero diagonal,
// rows and columns that add up to zero).
//
// Products are float, over at most kGramDepth features at a time; those sums are added up in
// double. Returns per layer the largest diagonal entry before centring: whether float could hold
// the squares.
std::vector<double> centred_grams(const std::vector<View>& features,
                                  const std::vector<double*>& grams, int threads);

constexpr Index kGramDepth = 256;

// table[i * columns.size() + j] = sum of rows[i][k] * columns[j][k] for k in [0, length). The order
// of the sum does not depend on i and j: equal vectors give equal entries.
void scalar_products(const std::vector<const double*>& rows,
                     const std::vector<const double*>& columns, Index length, double* table,
                     int threads);

// sums[i] = the entry that scalar_products gives for rows[i] and itself.
void squares(const std::vector<const double*>& rows, Index length, double* sums, int threads);

}  // namespace hetmerge
