#include <stdexcept>

#include "bind.h"
#include "zipping.h"

namespace hetmerge {
namespace {

template <class T>
using Matrix = py::array_t<T, py::array::c_style>;

template <class T>
Index order(const Matrix<T>& matrix) {
    if (matrix.ndim() != 2 || matrix.shape(0) != matrix.shape(1))
        throw std::invalid_argument("matrix: must be square");
    return matrix.shape(0);
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
    ZipOutcome outcome;
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
    MatrixCheck check{};
    {
        py::gil_scoped_release release;
        check = hetmerge::check_symmetric(data, n);
    }
    return py::make_tuple(check.peak, check.asymmetry);
}

template <class T>
void register_for(py::module_& m) {
    m.def("zip", &zip<T>, py::arg("similarity").noconvert(), py::arg("sizes"), py::arg("budgets"),
          py::arg("width"), py::arg("alpha"), py::arg("rescan_limit") = -1);
    m.def("check_symmetric", &check_symmetric<T>, py::arg("matrix").noconvert());
}

}  // namespace

void register_zipping(py::module_& m) {
    register_for<float>(m);
    register_for<double>(m);
}

}  // namespace hetmerge
