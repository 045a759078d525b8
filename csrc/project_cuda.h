// Projection on a GPU: what bind_project.cpp hands to project.cu.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "view.h"

namespace hetmerge {

// Addresses are of the device. Labels without a shape are the identity.
struct CudaParent {
    View weight;  // [R, C, inner] float32, float16 or bfloat16; no shape: absent
    View rows;    // [R] int32 or int64, any stride
    View cols;    // [C]
    double share = 1.0;
};

// As `project` of project.h, into contiguous out [rows, cols, inner] of a type as above. Sums are
// float32, in the order of the parents and of their members. `allocate` gives bytes of the device's
// memory that stay until the stream has done its work. Waits for the stream; false: a label is out
// of range, and the result has no meaning. Errors of CUDA are thrown as std::runtime_error.
bool project_on_cuda(const std::vector<CudaParent>& parents, const View& out,
                     const std::function<std::uintptr_t(Index)>& allocate, void* stream);

}  // namespace hetmerge
