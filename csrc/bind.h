// What the binding files share. Only files named bind*.cpp know pybind11; values are checked by
// hetmerge.ops.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "view.h"

namespace hetmerge {

namespace py = pybind11;

// (address, dtype code, shape, strides), as hetmerge.ops.native.view gives it.
inline View to_view(const py::tuple& given) {
    View view;
    view.address = given[0].cast<std::uintptr_t>();
    view.dtype = static_cast<DType>(given[1].cast<int>());
    view.shape = given[2].cast<std::vector<Index>>();
    view.strides = given[3].cast<std::vector<Index>>();
    return view;
}

inline std::vector<View> to_views(const std::vector<py::tuple>& given) {
    std::vector<View> views;
    for (const py::tuple& one : given) views.push_back(to_view(one));
    return views;
}

template <class V>
py::array_t<V> to_array(const std::vector<V>& values) {
    return py::array_t<V>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace hetmerge
