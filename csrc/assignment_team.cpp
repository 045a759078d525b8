// The steps of the CUDA assignment on one CPU thread, so that they can be tested without a GPU.
#include "assignment_cuda.h"
#include "assignment_lanes.h"

namespace hetmerge {
namespace {

template <class T>
std::vector<int> assign(const View& score, bool maximise) {
    const int n = static_cast<int>(score.shape[0]), m = static_cast<int>(score.shape[1]);
    std::vector<double> memory(static_cast<std::size_t>(Matching::bytes(n, m)) / sizeof(double) +
                               1);
    const Matching matching = Matching::at(memory.data(), n, m);
    LaneTeam team;
    assign_small(team,
                 Costs<T>{score.data<const T>(), score.strides[0], maximise ? -1.0 : 1.0, n, m},
                 matching);
    return {matching.column_of, matching.column_of + n};
}

}  // namespace

std::vector<int> assign_by_team(const View& score, bool maximise) {
    return score.dtype == DType::f32 ? assign<float>(score, maximise)
                                     : assign<double>(score, maximise);
}

}  // namespace hetmerge
