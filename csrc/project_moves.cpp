#include "project_moves.h"

#include <limits>
#include <stdexcept>

namespace hetmerge {
namespace {

constexpr Index kLongRun = 16;

std::vector<Run> runs_of(const std::vector<Index>& label) {
    std::vector<Run> runs;
    Index k = 0;
    for (Index to : label) {
        if (!runs.empty() && to == runs.back().to + runs.back().count)
            ++runs.back().count;
        else
            runs.push_back({k, to, 1});
        ++k;
    }
    return runs;
}

}  // namespace

Moves::Moves(const std::vector<Index>& label, Index places) {
    const Index count = static_cast<Index>(label.size());
    runs_ = runs_of(label);
    if (count >= kLongRun * static_cast<Index>(runs_.size())) return;
    runs_.clear();
    if (std::max(count, places) >= std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("weights: rows of 2^31 - 1 entries or more");
    const std::int32_t none = static_cast<std::int32_t>(count);
    from_.assign(static_cast<std::size_t>(places), none);
    Index fetched = 0;
    for (std::int32_t k = 0; k < none; ++k) {
        const Index to = label[static_cast<std::size_t>(k)];
        std::int32_t& from = from_[static_cast<std::size_t>(to)];
        if (from == none) {
            from = k;
            ++fetched;
        } else {
            pairs_.push_back({k, static_cast<std::int32_t>(to)});
        }
    }
    if (2 * fetched >= places) return;
    from_.clear();
    pairs_.clear();
    for (std::int32_t k = 0; k < none; ++k)
        pairs_.push_back({k, static_cast<std::int32_t>(label[static_cast<std::size_t>(k)])});
}

}  // namespace hetmerge
