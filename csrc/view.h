// A tensor as Python hands it over: address, element type, shape and strides in elements.
#pragma once

#include <cstdint>
#include <vector>

namespace hetmerge {

using Index = std::int64_t;

enum class DType { f32 = 0, f64 = 1, f16 = 2, bf16 = 3, i32 = 4, i64 = 5, b8 = 6 };

struct View {
    std::uintptr_t address = 0;
    DType dtype = DType::f32;
    std::vector<Index> shape, strides;

    template <class T>
    T* data() const {
        return reinterpret_cast<T*>(address);
    }
    Index dims() const { return static_cast<Index>(shape.size()); }
    Index count() const {
        Index total = 1;
        for (Index size : shape) total *= size;
        return total;
    }
};

}  // namespace hetmerge
