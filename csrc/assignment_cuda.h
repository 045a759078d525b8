// Launchers of the CUDA assignment, and its steps on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "view.h"

// scores [batch, n, m] contiguous, n <= m; minimises scale * score. Writes the column of each row
// [batch, n] and the prices of the columns [batch, m]. The status is a cudaError_t.
extern "C" int hetmerge_assign_f32(const float* scores, double scale, std::int64_t batch, int n,
                                   int m, int* columns, double* prices, void* stream);
extern "C" int hetmerge_assign_f64(const double* scores, double scale, std::int64_t batch, int n,
                                   int m, int* columns, double* prices, void* stream);
extern "C" const char* hetmerge_cuda_error(int status);

namespace hetmerge {

// Column of each row; score [n, m] with n <= m and columns next to each other.
std::vector<int> assign_by_team(const View& score, bool maximise);

}  // namespace hetmerge
