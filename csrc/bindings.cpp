// The only file that knows pybind11. Shapes and values are checked by hetmerge.ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "zipping.h"

namespace py = pybind11;
using hetmerge::Index;

namespace {

template <class T>
using Matrix = py::array_t<T, py::array::c_style>;

template <class T>
Index order(const Matrix<T>& matrix) {
    if (matrix.ndim() != 2 || matrix.shape(0) != matrix.shape(1))
        throw std::invalid_argument("matrix: must be square");
    return matrix.shape(0);
}

template <class V>
py::array_t<V> to_array(const std::vector<V>& values) {
    return py::array_t<V>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
py::tuple zip(const Matrix<T>& similarity, const std::vector<Index>& sizes,
              const std::vector<Index>& budgets, Index width, double alpha, Index rescan_limit) {
    const Index n = order(similarity);
    Index units = 0;
    for (Index d : sizes) units += d < 0 ? n + 1 : d;
    if (units != n || budgets.size() != sizes.size() || width < 1)
        throw std::invalid_argument("sizes, budgets or width do not fit the similarity");
    const T* data = similarity.data();
    hetmerge::ZipOutcome outcome;
    {
        py::gil_scoped_release release;
        outcome =
            hetmerge::zip<T>(data, sizes, budgets, width, static_cast<T>(alpha), rescan_limit);
    }
    return py::make_tuple(to_array(outcome.labels), to_array(outcome.heights), outcome.relaxed,
                          outcome.rescans, outcome.chained);
}

template <class T>
py::tuple check_symmetric(const Matrix<T>& matrix) {
    const Index n = order(matrix);
    const T* data = matrix.data();
    hetmerge::MatrixCheck check{};
    {
        py::gil_scoped_release release;
        check = hetmerge::check_symmetric(data, n);
    }
    return py::make_tuple(check.peak, check.asymmetry);
}

template <class T>
void register_zipping(py::module_& m) {
    m.def("zip", &zip<T>, py::arg("similarity").noconvert(), py::arg("sizes"), py::arg("budgets"),
          py::arg("width"), py::arg("alpha"), py::arg("rescan_limit") = -1);
    m.def("check_symmetric", &check_symmetric<T>, py::arg("matrix").noconvert());
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    register_zipping<float>(m);
    register_zipping<double>(m);
}
