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

}  // namespace

void register_similarity(py::module_& m) {
    m.def("centred_grams", &run, py::arg("features"), py::arg("grams"), py::arg("threads"));
}

}  // namespace hetmerge
