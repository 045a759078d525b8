#include "zipping.h"

#include <limits>
#include <stdexcept>
#include <utility>

#include "lazy_rows.h"
#include "parallel.h"
#include "workspace.h"
#include "zipping_chains.h"

namespace hetmerge {
namespace {

constexpr Index kRescansPerUnit = 32;
constexpr Index kRowsPerPiece = 64;

template <class T>
class Zipper {
  public:
    Zipper(const T* similarity, T* workspace, const ZipSettings& settings)
        : clusters_(settings.sizes, settings.budgets),
          n_(clusters_.count()),
          width_(settings.width),
          alpha_(static_cast<T>(settings.alpha)),
          threads_(settings.threads),
          own_(workspace == nullptr ? make_workspace<T>(n_ * n_) : Workspace<T>()),
          rows_(similarity, workspace == nullptr ? own_.get() : workspace, n_, alpha_),
          patience_(settings.rescan_limit < 0 ? kRescansPerUnit * n_ : settings.rescan_limit),
          limit_(patience_),
          value_(size(n_), kNone),
          column_(size(n_), -1),
          stale_(size(n_), 0) {}

    ZipOutcome run() {
        while (clusters_.live() > width_) {
            switch (greedy()) {
                case Pause::none:
                    break;
                case Pause::stuck:
                    if (clusters_.relaxed()) throw std::logic_error("zip: no pair left to merge");
                    clusters_.relax();
                    limit_ = outcome_.rescans + patience_;
                    break;
                case Pause::slow:
                    outcome_.chained = true;
                    while (clusters_.live() > width_ && chain()) {
                    }
                    // What is left has no positive pair, for which chains would do nothing.
                    limit_ = std::numeric_limits<Index>::max();
                    break;
            }
        }
        outcome_.labels = clusters_.labels();
        outcome_.relaxed = clusters_.relaxed();
        return std::move(outcome_);
    }

  private:
    enum class Pause { none, stuck, slow };
    static constexpr T kNone = -std::numeric_limits<T>::infinity();
    static std::size_t size(Index k) { return static_cast<std::size_t>(k); }

    // The model whose budget this merge exhausted, or -1.
    Index commit(const Merge<T>& m) {
        outcome_.heights.push_back(static_cast<double>(m.height));
        return clusters_.join(m.keep, m.gone);
    }

    // ---- row-best cache -------------------------------------------------------------------------
    // value_[k] bounds the best pair (k, l > k) of row k from above. A fresh row's bound is
    // attained, first at column_[k]. The largest bound of all is therefore the next merge once it
    // is fresh.

    void search(Index k, std::vector<T>& scratch) {
        const T* row = clusters_.open(k, rows_.read(k), k + 1, scratch);
        value_[size(k)] = row_max(row, k + 1, n_);
        column_[size(k)] =
            value_[size(k)] == kNone ? -1 : row_find(row, value_[size(k)], k + 1, n_);
        stale_[size(k)] = 0;
    }

    void search_all() {
        const Index pieces = (n_ + kRowsPerPiece - 1) / kRowsPerPiece;
        parallel_for(pieces, threads_, [&](Index piece) {
            std::vector<T> scratch;
            const Index end = std::min(n_, (piece + 1) * kRowsPerPiece);
            for (Index k = piece * kRowsPerPiece; k < end; ++k) {
                value_[size(k)] = kNone;
                column_[size(k)] = -1;
                if (clusters_.is_live(k)) search(k, scratch);
            }
        });
    }

    Pause greedy() {
        search_all();
        while (clusters_.live() > width_) {
            const T best = row_max(value_.data(), 0, n_);
            if (best == kNone) return Pause::stuck;
            const Index i = row_find(value_.data(), best, 0, n_);
            if (stale_[size(i)]) {
                if (outcome_.rescans >= limit_ && alpha_ <= T(1)) return Pause::slow;
                ++outcome_.rescans;
                search(i, scratch_);
                continue;
            }
            const Index j = column_[size(i)];
            rows_.merge(i, j);
            const Index closed = commit({i, j, best});
            value_[size(j)] = kNone;
            column_[size(j)] = -1;
            update_bounds(i, j);
            if (closed >= 0) close(closed);
            search(i, scratch_);
        }
        return Pause::none;
    }

    void update_bounds(Index i, Index j) {
        const T* merged = clusters_.open(i, rows_.read(i), 0, scratch_);
        for (Index k = 0; k < i; ++k) {
            const T v = merged[k];
            T& bound = value_[size(k)];
            Index& best = column_[size(k)];
            if (v > bound || (v == bound && i <= best)) {  // a dead or closed row has best = -1
                bound = v;
                best = stale_[size(k)] ? best : i;
            } else if (best == i || best == j) {
                stale_[size(k)] = 1;
            }
        }
        for (Index k = i + 1; k < j; ++k)
            if (column_[size(k)] == j) stale_[size(k)] = 1;
    }

    void close(Index model) {
        const Index begin = clusters_.begin(model), end = clusters_.end(model);
        for (Index k = begin; k < end; ++k)
            if (column_[size(k)] >= begin && column_[size(k)] < end) stale_[size(k)] = 1;
    }

    // ---- nearest-neighbour chains ---------------------------------------------------------------
    // Chains work on a copy of what is left; their merges are sorted into the greedy order and kept
    // up to the first exhaustion. True if a budget ran out, so that another round can find more.
    bool chain() {
        std::vector<Index> live;
        for (Index k = 0; k < n_; ++k)
            if (clusters_.is_live(k)) live.push_back(k);
        const Index count = clusters_.live();
        const Workspace<T> matrix = make_workspace<T>(count * count);
        for (Index a = 0; a < count; ++a) {
            const Index r = live[size(a)];
            const T* row = clusters_.open(r, rows_.read(r), 0, scratch_);
            for (Index b = 0; b < count; ++b) matrix[size(a * count + b)] = row[live[size(b)]];
        }
        std::vector<Merge<T>> found =
            chain_merges(matrix.get(), count, alpha_, size(count - width_));
        std::sort(found.begin(), found.end());
        for (const Merge<T>& m : found) {
            const Merge<T> step{live[size(m.keep)], live[size(m.gone)], m.height};
            rows_.merge(step.keep, step.gone);
            if (commit(step) >= 0) return true;
            if (clusters_.live() == width_) break;
        }
        return false;
    }

    Clusters clusters_;
    Index n_, width_;
    T alpha_;
    int threads_;
    Workspace<T> own_;
    LazyRows<T> rows_;
    Index patience_, limit_;
    ZipOutcome outcome_;
    std::vector<T> value_;
    std::vector<Index> column_;
    std::vector<char> stale_;
    std::vector<T> scratch_;
};

}  // namespace

template <class T>
ZipOutcome zip(const T* similarity, T* workspace, const ZipSettings& settings) {
    return Zipper<T>(similarity, workspace, settings).run();
}

template ZipOutcome zip(const float*, float*, const ZipSettings&);
template ZipOutcome zip(const double*, double*, const ZipSettings&);

}  // namespace hetmerge
