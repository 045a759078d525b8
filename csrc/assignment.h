// Linear sum assignment: the cheapest one-to-one pairing of rows and columns, exactly.
#pragma once

#include <vector>

#include "view.h"

namespace hetmerge {

struct Pairing {
    std::vector<Index> column;  // [rows] of each row; -1 where there are fewer columns than rows
    std::vector<double> row_price;  // duals of the minimised problem: cost(i, j) >= row_price[i] +
    std::vector<double> column_price;  // column_price[j], with equality for pairs
    Index scans = 0;     // rows scanned after the first pass: 0 if that was the optimum
    bool finite = true;  // false: a score is NaN or infinite, nothing else is set
};

// score: [rows, columns], f32 or f64, any strides. Maximises, or minimises, the sum over pairs.
// float32 scores are read as they are; prices and path lengths are float64.
Pairing pair(const View& score, bool maximise);

// How far the prices are from proving the pairing: the largest violation of
// cost(i, j) >= row_price[i] + column_price[j].
double infeasibility(const View& score, bool maximise, const Pairing& found);

}  // namespace hetmerge
