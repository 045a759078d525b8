#include <stdexcept>

#include "bind.h"
#include "similarity.h"

namespace hetmerge {
namespace {

std::vector<double> run(const std::vector<py::tuple>& features, const std::vector<py::tuple>& grams,
                        int threads) {
    const std::vector<View> layers = to_views(features);
    std::vector<double*> targets;
    for (const View& layer : layers) {
        const View out = to_view(grams.at(targets.size()));
        const bool rows = layer.dims() == 2 && layer.shape[0] >= 4 &&
                          (layer.shape[1] < 2 || layer.strides[1] == 1);
        if (!rows || out.count() != layer.shape[0] * layer.shape[0] || out.dtype != DType::f64)
            throw std::invalid_argument("features: [n, d] with consecutive rows, grams: [n, n]");
        targets.push_back(out.data<double>());
    }
    py::gil_scoped_release release;
    return centred_grams(layers, targets, threads);
}

std::vector<const double*> vectors_of(const View& given) {
    const bool rows = given.dims() == 2 && given.dtype == DType::f64 &&
                      (given.shape[1] < 2 || given.strides[1] == 1);
    if (!rows) throw std::invalid_argument("vectors: [count, length] float64, consecutive");
    std::vector<const double*> vectors;
    for (Index i = 0; i < given.shape[0]; ++i)
        vectors.push_back(given.data<const double>() + i * given.strides[0]);
    return vectors;
}

// Of all rows of a with all rows of b, and of each with itself, divided: [La, Lb], [La], [Lb].
py::tuple products(const py::tuple& first, const py::tuple& second, double divisor, int threads) {
    const View a = to_view(first), b = to_view(second);
    const std::vector<const double*> rows = vectors_of(a), columns = vectors_of(b);
    const Index length = a.shape[1];
    if (length != b.shape[1]) throw std::invalid_argument("vectors: of different lengths");
    py::array_t<double> table(std::vector<py::ssize_t>{a.shape[0], b.shape[0]}), left(a.shape[0]),
        right(b.shape[0]);
    double *to = table.mutable_data(), *one = left.mutable_data(), *two = right.mutable_data();
    {
        py::gil_scoped_release release;
        scalar_products(rows, columns, length, to, threads);
        squares(rows, length, one, threads);
        squares(columns, length, two, threads);
        for (Index k = 0; k < a.shape[0] * b.shape[0]; ++k) to[k] /= divisor;
        for (Index k = 0; k < a.shape[0]; ++k) one[k] /= divisor;
        for (Index k = 0; k < b.shape[0]; ++k) two[k] /= divisor;
    }
    return py::make_tuple(table, left, right);
}

}  // namespace

void register_similarity(py::module_& m) {
    m.def("centred_grams", &run, py::arg("features"), py::arg("grams"), py::arg("threads"));
    m.def("scalar_products", &products, py::arg("rows"), py::arg("columns"), py::arg("divisor"),
          py::arg("threads"));
}

}  // namespace hetmerge
