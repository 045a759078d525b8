// A similarity matrix under merging, one row brought up to date at a time.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "simd.h"

namespace hetmerge {

// One step of a zip: cluster `gone` joins cluster `keep`, or (keep < 0) the budget of model ~keep
// ran out and its within-model pairs are closed.
struct Event {
    std::int32_t keep, gone;
    bool is_close() const { return keep < 0; }
    std::int32_t model() const { return ~keep; }
    static Event close(std::int32_t model) { return {~model, 0}; }
};

// Writing a merged row back into its column touches one cache line and one page per row. Instead,
// every step is logged and a row replays the steps it has missed when it is next read, all inside
// that row. Rows are copied from the source at their first read; the source is never written.
template <class T>
class LazyRows {
  public:
    LazyRows(const T* source, const std::vector<Index>& offsets, T alpha)
        : source_(source),
          offsets_(offsets),
          count_(offsets.back()),
          alpha_(alpha),
          origin_(static_cast<std::size_t>(count_)),
          seen_(static_cast<std::size_t>(count_), kUnread),
          rows_(new T[static_cast<std::size_t>(count_ * count_)]) {
        for (std::size_t m = 0; m + 1 < offsets_.size(); ++m)
            std::fill(origin_.begin() + offsets_[m], origin_.begin() + offsets_[m + 1],
                      static_cast<std::int32_t>(m));
    }

    Index count() const { return count_; }
    std::int32_t origin(Index r) const { return origin_[static_cast<std::size_t>(r)]; }

    // Row r, current; -inf at itself, at merged-away clusters and at closed pairs.
    const T* read(Index r) { return current(r); }

    void merge(Index keep, Index gone) {
        T* row = current(keep);
        row_join(row, current(gone), alpha_, count_);
        log_.push_back({static_cast<std::int32_t>(keep), static_cast<std::int32_t>(gone)});
        seen_[static_cast<std::size_t>(keep)] = static_cast<Index>(log_.size());
    }

    void close(std::int32_t model) { log_.push_back(Event::close(model)); }

    // Forgets everything and replays the given steps on the source.
    void rebuild(const std::vector<Event>& steps) {
        log_.clear();
        std::fill(seen_.begin(), seen_.end(), kUnread);
        for (const Event& step : steps) {
            if (step.is_close())
                close(step.model());
            else
                merge(step.keep, step.gone);
        }
    }

  private:
    static constexpr Index kUnread = -1;
    static constexpr T kNone = -std::numeric_limits<T>::infinity();

    T* current(Index r) {
        T* row = rows_.get() + r * count_;
        Index& seen = seen_[static_cast<std::size_t>(r)];
        if (seen == kUnread) {
            std::copy_n(source_ + r * count_, count_, row);
            row[r] = kNone;
            seen = 0;
        }
        const Index steps = static_cast<Index>(log_.size());
        for (; seen < steps; ++seen) {
            const Event step = log_[static_cast<std::size_t>(seen)];
            if (!step.is_close()) {
                row_join(row + step.keep, row[step.gone]);
                row[step.gone] = kNone;
            } else if (origin(r) == step.model()) {
                std::fill(row + offsets_[static_cast<std::size_t>(step.model())],
                          row + offsets_[static_cast<std::size_t>(step.model()) + 1], kNone);
            }
        }
        return row;
    }

    // The arithmetic of hetmerge::row_join for one entry, inlined.
    void row_join(T* x, T y) const {
        constexpr T most = std::numeric_limits<T>::max();
        const T low = *x < y ? *x : y;
        const T v = alpha_ * low;
        *x = low == kNone ? kNone : std::max(-most, std::min(most, v));
    }
    static void row_join(T* x, const T* y, T alpha, Index n) { hetmerge::row_join(x, y, alpha, n); }

    const T* source_;
    std::vector<Index> offsets_;
    Index count_;
    T alpha_;
    std::vector<std::int32_t> origin_;
    std::vector<Index> seen_;  // how many steps of the log row r has replayed
    std::vector<Event> log_;
    std::unique_ptr<T[]> rows_;  // left uninitialised: a row that is never read costs no memory
};

}  // namespace hetmerge
