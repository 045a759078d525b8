#include <algorithm>
#include <stdexcept>
#include <string>

#include "assignment.h"
#include "assignment_cuda.h"
#include "bind.h"
#include "parallel.h"

namespace hetmerge {
namespace {

View problem(const View& scores, Index k) {
    View one = scores;
    const Index size = scores.dtype == DType::f32 ? 4 : 8;
    one.address += static_cast<std::uintptr_t>(k * scores.strides[0] * size);
    one.shape.erase(one.shape.begin());
    one.strides.erase(one.strides.begin());
    return one;
}

// scores [batch, n, m] -> rows and columns of the pairs, [batch, min(n, m)] each, the first problem
// that is not finite (or -1), scans of all. With `proof`: also totals, sums of the prices and
// infeasibilities, [batch] each.
py::tuple linear_sum_assignment(const py::tuple& given, bool maximise, int threads, bool proof) {
    const View scores = to_view(given);
    if (scores.dims() != 3 || (scores.dtype != DType::f32 && scores.dtype != DType::f64))
        throw std::invalid_argument("scores: must be [batch, n, m] of float32 or float64");
    const Index batch = scores.shape[0], n = scores.shape[1], m = scores.shape[2];
    const Index pairs = std::min(n, m);
    const std::vector<py::ssize_t> shape{batch, pairs};
    py::array_t<Index> left(shape), right(shape);
    Index *rows = left.mutable_data(), *columns = right.mutable_data();
    std::vector<Index> scans(static_cast<std::size_t>(batch));
    std::vector<double> prices(proof ? scans.size() : 0), violations(prices.size());
    std::vector<char> unfit(scans.size());
    {
        py::gil_scoped_release release;
        parallel_for(batch, threads, [&](Index k) {
            const auto at = static_cast<std::size_t>(k);
            const View score = problem(scores, k);
            const Pairing pairing = pair(score, maximise);
            unfit[at] = !pairing.finite;
            scans[at] = pairing.scans;
            if (!pairing.finite) return;
            Index next = k * pairs;
            for (Index i = 0; i < n; ++i) {
                const Index j = pairing.column[static_cast<std::size_t>(i)];
                if (j < 0) continue;
                rows[next] = i;
                columns[next++] = j;
            }
            if (!proof) return;
            for (double price : pairing.row_price) prices[at] += price;
            for (double price : pairing.column_price) prices[at] += price;
            violations[at] = infeasibility(score, maximise, pairing);
        });
    }
    Index first = -1;
    for (Index k = batch; k-- > 0;)
        if (unfit[static_cast<std::size_t>(k)]) first = k;
    return py::make_tuple(left, right, first, to_array(scans), to_array(prices),
                          to_array(violations));
}

#ifdef HETMERGE_CUDA
// scores [batch, n, m] contiguous on the device, n <= m -> message of the error, or "".
std::string assign_cuda(const py::tuple& given, bool maximise, std::uintptr_t columns,
                        std::uintptr_t prices, std::uintptr_t stream) {
    const View scores = to_view(given);
    const double scale = maximise ? -1.0 : 1.0;
    const auto n = static_cast<int>(scores.shape[1]), m = static_cast<int>(scores.shape[2]);
    auto* to = reinterpret_cast<int*>(columns);
    auto* price = reinterpret_cast<double*>(prices);
    auto* on = reinterpret_cast<void*>(stream);
    const int status = scores.dtype == DType::f32
                           ? hetmerge_assign_f32(scores.data<const float>(), scale, scores.shape[0],
                                                 n, m, to, price, on)
                           : hetmerge_assign_f64(scores.data<const double>(), scale,
                                                 scores.shape[0], n, m, to, price, on);
    return status == 0 ? "" : hetmerge_cuda_error(status);
}
#endif

}  // namespace

void register_assignment(py::module_& m) {
    m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("scores"), py::arg("maximise"),
          py::arg("threads"), py::arg("proof") = false);
    m.def("assign_by_team", [](const py::tuple& score, bool maximise) {
        return assign_by_team(to_view(score), maximise);
    });
#ifdef HETMERGE_CUDA
    m.def("assign_cuda", &assign_cuda);
#endif
}

}  // namespace hetmerge
