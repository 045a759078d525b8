#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bind.h"
#include "moments.h"

namespace hetmerge {
namespace {

constexpr int kBest = static_cast<int>(Level::avx512);

const double* optional_data(const std::optional<View>& view) {
    return view ? view->data<const double>() : nullptr;
}

std::optional<View> maybe(const std::optional<py::tuple>& given) {
    return given ? std::optional<View>(to_view(*given)) : std::nullopt;
}

void check_size(const View& product, Index wanted) {
    if (product.dtype != DType::f64 || product.count() != wanted)
        throw std::invalid_argument("product: must be float64 of the size the features need");
}

Batch columns(const std::vector<py::tuple>& tensors, Index dim,
              const std::optional<py::tuple>& mask) {
    const std::vector<View> views = to_views(tensors);
    const std::optional<View> counted = maybe(mask);
    py::gil_scoped_release release;
    return Batch::columns(views, dim, counted ? &*counted : nullptr);
}

// (tensor, sample offsets, feature offsets) of each source; the offsets are contiguous int64.
Batch operands(const std::vector<std::tuple<py::tuple, py::tuple, py::tuple>>& given) {
    std::vector<Source> sources;
    for (const auto& [tensor, samples, features] : given) {
        const View data = to_view(tensor), rows = to_view(samples), columns = to_view(features);
        const auto *s = rows.data<const Index>(), *f = columns.data<const Index>();
        sources.push_back({data.data<const std::byte>(), data.dtype,
                           std::make_shared<const std::vector<Index>>(s, s + rows.count()),
                           std::vector<Index>(f, f + columns.count())});
    }
    return Batch(std::move(sources));
}

// Adds the sums of a batch to `count` and `rows` [3, width] (pivot, total, squares) if its values
// are finite and the mean of all samples stays near the pivot. Returns (first source with bad
// values or -1, None) or, where a pivot must be chosen first, (-1, (shift, total, squares)) and
// adds nothing.
py::tuple add_sums(const Batch& batch, const py::tuple& count, const py::tuple& rows, double far,
                   int threads) {
    double* first = to_view(rows).data<double>();
    const Index width = batch.width();
    const SumsState state{to_view(count).data<Index>(), first, first + width, first + 2 * width};
    Sums found;
    bool added = false;
    {
        py::gil_scoped_release release;
        found = sums(batch, has_pivot(state, width) ? state.pivot : nullptr, threads);
        added = found.unfit < 0 && add_if_near(found, batch.samples(), state, far);
    }
    if (added || found.unfit >= 0) return py::make_tuple(found.unfit, py::none());
    return py::make_tuple(
        -1, py::make_tuple(to_array(found.shift), to_array(found.total), to_array(found.squares)));
}

void gram(const Batch& batch, const std::optional<py::tuple>& pivot, const py::tuple& product,
          int threads, int level) {
    const std::optional<View> given = maybe(pivot);
    const View out = to_view(product);
    check_size(out, panels_size(batch.width()));
    py::gil_scoped_release release;
    add_gram(batch, optional_data(given), out.data<double>(), threads, static_cast<Level>(level));
}

void cross(const Batch& left, const Batch& right, const std::optional<py::tuple>& left_pivot,
           const std::optional<py::tuple>& right_pivot, const py::tuple& product, int threads,
           int level) {
    const std::optional<View> p = maybe(left_pivot), q = maybe(right_pivot);
    const View out = to_view(product);
    check_size(out, left.width() * right.width());
    if (left.samples() != right.samples())
        throw std::invalid_argument("left, right: must have the same samples");
    py::gil_scoped_release release;
    add_cross(left, right, optional_data(p), optional_data(q), out.data<double>(), threads,
              static_cast<Level>(level));
}

}  // namespace

void register_moments(py::module_& m) {
    py::class_<Batch>(m, "Batch")
        .def_static("columns", &columns)
        .def_static("operands", &operands)
        .def("part", &Batch::part)
        .def_property_readonly("samples", &Batch::samples)
        .def_property_readonly("width", &Batch::width);
    m.def("moments_sums", &add_sums);
    m.def("moments_gram", &gram, py::arg("batch"), py::arg("pivot"), py::arg("product"),
          py::arg("threads"), py::arg("level") = kBest);
    m.def("moments_cross", &cross, py::arg("left"), py::arg("right"), py::arg("left_pivot"),
          py::arg("right_pivot"), py::arg("product"), py::arg("threads"), py::arg("level") = kBest);
}

}  // namespace hetmerge
