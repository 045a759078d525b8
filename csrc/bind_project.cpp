#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "project.h"
#include "project_cuda.h"

namespace hetmerge {
namespace {

using Given = std::vector<std::optional<py::tuple>>;

template <class T>
Labels read(const View& view, Index clusters, const std::string& name) {
    const T* given = view.data<T>();
    const Index stride = view.strides[0];
    Labels labels(static_cast<std::size_t>(view.shape[0]));
    T low = 0, high = 0;
    for (std::size_t k = 0; k < labels.size(); ++k) {
        const T label = given[static_cast<Index>(k) * stride];
        low = k == 0 ? label : std::min(low, label);
        high = k == 0 ? label : std::max(high, label);
        labels[k] = static_cast<std::int32_t>(label);
    }
    if (low < 0 || static_cast<Index>(high) >= clusters)
        throw std::invalid_argument(name + ": labels " + std::to_string(low) + ".." +
                                    std::to_string(high) + " are not in 0.." +
                                    std::to_string(clusters - 1));
    return labels;
}

// None is the identity.
Labels labels_of(const std::optional<py::tuple>& given, Index clusters, const std::string& name) {
    if (given) {
        const View view = to_view(*given);
        return view.dtype == DType::i32 ? read<std::int32_t>(view, clusters, name)
                                        : read<Index>(view, clusters, name);
    }
    Labels labels(static_cast<std::size_t>(clusters));
    for (std::size_t k = 0; k < labels.size(); ++k) labels[k] = static_cast<std::int32_t>(k);
    return labels;
}

void run(const Given& weights, const Given& row_labels, const Given& col_labels,
         const std::vector<double>& shares, const py::tuple& target, int threads) {
    const View out = to_view(target);
    std::vector<Parent> parents(weights.size());
    for (std::size_t m = 0; m < parents.size(); ++m) {
        const std::string index = "[" + std::to_string(m) + "]";
        Parent& parent = parents[m];
        parent.share = shares.at(m);
        parent.rows = labels_of(row_labels.at(m), out.shape.at(0), "row_labels" + index);
        parent.present = weights[m].has_value();
        if (!parent.present) continue;
        parent.weight = to_view(*weights[m]);
        if (out.dims() > 1)
            parent.cols = labels_of(col_labels.at(m), out.shape[1], "col_labels" + index);
        const std::vector<Index>& shape = parent.weight.shape;
        bool fits = parent.weight.dims() == out.dims() &&
                    shape[0] == static_cast<Index>(parent.rows.size()) &&
                    (out.dims() < 2 || shape[1] == static_cast<Index>(parent.cols.size()));
        for (std::size_t axis = 2; fits && axis < shape.size(); ++axis)
            fits = shape[axis] == out.shape[axis];
        if (!fits) throw std::invalid_argument("weights" + index + ": shape does not fit");
    }
    py::gil_scoped_release release;
    project(parents, out, threads);
}

// Whether all labels are in range; if not, the result has no meaning.
bool run_on_cuda(const Given& weights, const Given& row_labels, const Given& col_labels,
                 const std::vector<double>& shares, const py::tuple& target,
                 const py::function& allocate, std::uintptr_t stream) {
    const auto view = [](const std::optional<py::tuple>& given) {
        return given ? to_view(*given) : View{};
    };
    const View out = to_view(target);
    std::vector<CudaParent> parents;
    for (std::size_t m = 0; m < weights.size(); ++m)
        parents.push_back(
            {view(weights[m]), view(row_labels.at(m)), view(col_labels.at(m)), shares.at(m)});
#ifdef HETMERGE_CUDA
    const auto reserve = [&](Index bytes) {
        py::gil_scoped_acquire acquire;
        return allocate(bytes).cast<std::uintptr_t>();
    };
    py::gil_scoped_release release;
    return project_on_cuda(parents, out, reserve, reinterpret_cast<void*>(stream));
#else
    (void)allocate;
    (void)stream;
    throw std::runtime_error("built without CUDA");
#endif
}

}  // namespace

void register_project(py::module_& m) {
    m.def("project", &run, py::arg("weights"), py::arg("row_labels"), py::arg("col_labels"),
          py::arg("shares"), py::arg("out"), py::arg("threads"));
    m.def("project_cuda", &run_on_cuda, py::arg("weights"), py::arg("row_labels"),
          py::arg("col_labels"), py::arg("shares"), py::arg("out"), py::arg("allocate"),
          py::arg("stream"));
}

}  // namespace hetmerge
