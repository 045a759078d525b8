#include <stdexcept>

#include "bind.h"
#include "parallel.h"
#include "zipping_rounds.h"

namespace hetmerge {
namespace {

// Calls body with a null pointer of the element type.
template <class Body>
auto with_type(DType dtype, const Body& body) {
    if (dtype == DType::f32) return body(static_cast<float*>(nullptr));
    if (dtype == DType::f64) return body(static_cast<double*>(nullptr));
    throw std::invalid_argument("similarity: must be float32 or float64");
}

void check_square(const View& matrix) {
    const bool square = matrix.dims() == 2 && matrix.shape[0] == matrix.shape[1];
    if (!square ||
        (matrix.count() > 1 && (matrix.strides[1] != 1 || matrix.strides[0] != matrix.shape[0])))
        throw std::invalid_argument("similarity: must be square and contiguous");
}

struct Problem {
    View matrix;
    bool overwrite;
    ZipSettings settings;

    ZipOutcome solve() const {
        return with_type(matrix.dtype, [&](auto* type) {
            auto* data = matrix.data<std::remove_pointer_t<decltype(type)>>();
            return zip(data, overwrite ? data : nullptr, settings);
        });
    }
};

Problem to_problem(const View& matrix, const std::vector<Index>& sizes,
                   const std::vector<Index>& budgets, Index width, double alpha, bool overwrite,
                   int threads, Index rescan_limit) {
    check_square(matrix);
    Index units = 0;
    for (Index d : sizes) units += d < 0 ? matrix.shape[0] + 1 : d;
    if (units != matrix.shape[0] || budgets.size() != sizes.size() || width < 1)
        throw std::invalid_argument("sizes, budgets or width do not fit the similarity");
    return {matrix, overwrite, {sizes, budgets, width, alpha, rescan_limit, threads}};
}

py::tuple to_python(const ZipOutcome& outcome) {
    return py::make_tuple(to_array(outcome.labels), to_array(outcome.heights), outcome.relaxed,
                          outcome.rescans, outcome.chained);
}

// One problem per thread; a single one gets all threads.
std::vector<py::tuple> zip_spaces(const std::vector<py::tuple>& matrices,
                                  const std::vector<std::vector<Index>>& sizes,
                                  const std::vector<std::vector<Index>>& budgets,
                                  const std::vector<Index>& widths, double alpha, bool overwrite,
                                  int threads, Index rescan_limit) {
    const std::size_t count = matrices.size();
    if (sizes.size() != count || budgets.size() != count || widths.size() != count)
        throw std::invalid_argument("sizes, budgets and widths: one per similarity");
    std::vector<Problem> problems;
    for (std::size_t k = 0; k < count; ++k)
        problems.push_back(to_problem(to_view(matrices[k]), sizes[k], budgets[k], widths[k], alpha,
                                      overwrite, count == 1 ? threads : 1, rescan_limit));
    std::vector<ZipOutcome> outcomes(count);
    {
        py::gil_scoped_release release;
        parallel_for(static_cast<Index>(count), threads, [&](Index k) {
            outcomes[static_cast<std::size_t>(k)] = problems[static_cast<std::size_t>(k)].solve();
        });
    }
    std::vector<py::tuple> results;
    for (const ZipOutcome& outcome : outcomes) results.push_back(to_python(outcome));
    return results;
}

template <class T>
std::vector<std::vector<Merge<T>>> rounds_of(const std::vector<View>& matrices,
                                             const std::vector<ZipSettings>& settings, bool cuda,
                                             std::uintptr_t stream) {
    std::vector<const T*> data;
    std::vector<Index> counts;
    for (const View& matrix : matrices) {
        data.push_back(matrix.data<const T>());
        counts.push_back(matrix.shape[0]);
    }
    const T alpha = static_cast<T>(settings.empty() ? 1.0 : settings[0].alpha);
    std::unique_ptr<RoundRows<T>> rows;
    if (!cuda) rows = host_rows(data, counts, alpha);
#ifdef HETMERGE_CUDA
    if (cuda) rows = cuda_rows(data, counts, alpha, reinterpret_cast<void*>(stream));
#else
    (void)stream;
    if (cuda) throw std::runtime_error("built without CUDA");
#endif
    return merge_in_rounds(*rows, settings);
}

// Labels and heights of each space; None where positive similarities did not suffice.
std::vector<py::object> zip_in_rounds(const std::vector<py::tuple>& given,
                                      const std::vector<std::vector<Index>>& sizes,
                                      const std::vector<std::vector<Index>>& budgets,
                                      const std::vector<Index>& widths, double alpha, bool cuda,
                                      std::uintptr_t stream) {
    const std::vector<View> matrices = to_views(given);
    std::vector<ZipSettings> settings;
    for (std::size_t k = 0; k < matrices.size(); ++k)
        settings.push_back(
            to_problem(matrices[k], sizes.at(k), budgets.at(k), widths.at(k), alpha, false, 1, -1)
                .settings);
    std::vector<py::object> results;
    if (matrices.empty()) return results;
    with_type(matrices[0].dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        std::vector<std::vector<Merge<T>>> steps;
        {
            py::gil_scoped_release release;
            steps = rounds_of<T>(matrices, settings, cuda, stream);
        }
        for (std::size_t k = 0; k < steps.size(); ++k) {
            Clusters clusters(sizes[k], budgets[k]);
            std::vector<double> heights;
            for (const Merge<T>& merge : steps[k]) {
                clusters.join(merge.keep, merge.gone);
                heights.push_back(static_cast<double>(merge.height));
            }
            if (clusters.live() == widths[k])
                results.push_back(py::make_tuple(to_array(clusters.labels()), to_array(heights)));
            else
                results.push_back(py::none());
        }
    });
    return results;
}

py::tuple check_view(const py::tuple& given, int threads) {
    const View matrix = to_view(given);
    check_square(matrix);
    py::gil_scoped_release release;
    const MatrixCheck check = with_type(matrix.dtype, [&](auto* type) {
        return check_symmetric(matrix.data<std::remove_pointer_t<decltype(type)>>(),
                               matrix.shape[0], threads);
    });
    py::gil_scoped_acquire acquire;
    return py::make_tuple(check.peak, check.asymmetry);
}

void mirror_view(const py::tuple& given, int threads) {
    const View matrix = to_view(given);
    check_square(matrix);
    py::gil_scoped_release release;
    with_type(matrix.dtype, [&](auto* type) {
        mirror_upper(matrix.data<std::remove_pointer_t<decltype(type)>>(), matrix.shape[0],
                     threads);
    });
}

}  // namespace

void register_zipping(py::module_& m) {
    m.def("zip", &zip_spaces, py::arg("similarities"), py::arg("sizes"), py::arg("budgets"),
          py::arg("widths"), py::arg("alpha"), py::arg("overwrite") = false, py::arg("threads") = 1,
          py::arg("rescan_limit") = -1);
    m.def("zip_in_rounds", &zip_in_rounds, py::arg("similarities"), py::arg("sizes"),
          py::arg("budgets"), py::arg("widths"), py::arg("alpha"), py::arg("cuda") = false,
          py::arg("stream") = 0);
    m.def("check_symmetric", &check_view, py::arg("matrix"), py::arg("threads") = 1);
    m.def("mirror_upper", &mirror_view, py::arg("matrix"), py::arg("threads") = 1);
}

}  // namespace hetmerge
