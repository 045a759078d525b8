// A similarity matrix under merging, one row brought up to date at a time.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace hetmerge {

// Writing a merged row back into its column touches one cache line and one page per row. Instead,
// every merge is logged and a row replays the merges it has missed when it is next read, all inside
// that row. Different rows may be read from different threads as long as nothing merges.
template <class T>
class LazyRows {
  public:
    // matrix: [count, count], overwritten. Rows come from `source` at their first read; a source
    // equal to `matrix` means that they are there already.
    LazyRows(const T* source, T* matrix, Index count, T alpha)
        : source_(source),
          matrix_(matrix),
          count_(count),
          alpha_(alpha),
          seen_(static_cast<std::size_t>(count), kUnread) {}

    // Row r, current; -inf at itself and at merged-away clusters.
    const T* read(Index r) { return current(r); }

    void merge(Index keep, Index gone) {
        T* row = current(keep);
        row_join(row, current(gone), alpha_, count_);
        log_.push_back({keep, gone});
        seen_[static_cast<std::size_t>(keep)] = static_cast<Index>(log_.size());
    }

  private:
    static constexpr Index kUnread = -1;
    static constexpr T kNone = -std::numeric_limits<T>::infinity();
    struct Step {
        Index keep, gone;
    };

    T* current(Index r) {
        T* row = matrix_ + r * count_;
        Index& seen = seen_[static_cast<std::size_t>(r)];
        if (seen == kUnread) {
            if (source_ != matrix_) std::copy_n(source_ + r * count_, count_, row);
            row[r] = kNone;
            seen = 0;
        }
        const Index steps = static_cast<Index>(log_.size());
        for (; seen < steps; ++seen) {
            const Step step = log_[static_cast<std::size_t>(seen)];
            row[step.keep] = joined(row[step.keep], row[step.gone]);
            row[step.gone] = kNone;
        }
        return row;
    }

    // The arithmetic of row_join for one entry.
    T joined(T x, T y) const {
        constexpr T most = std::numeric_limits<T>::max();
        const T low = x < y ? x : y;
        const T v = alpha_ * low;
        return low == kNone ? kNone : std::max(-most, std::min(most, v));
    }

    const T* source_;
    T* matrix_;
    Index count_;
    T alpha_;
    std::vector<Index> seen_;  // how many merges of the log row r has replayed
    std::vector<Step> log_;
};

}  // namespace hetmerge
