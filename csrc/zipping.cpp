#include "zipping.h"

#include <cmath>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>
#include <utility>

#include "lazy_rows.h"

namespace hetmerge {
namespace {

constexpr Index kRescansPerUnit = 32;

template <class T>
struct Merge {
    Index keep, gone;
    T height;
    // The greedy order: higher first, ties to the smaller (row, column).
    bool operator<(const Merge& other) const {
        if (height != other.height) return height > other.height;
        return std::make_pair(keep, gone) < std::make_pair(other.keep, other.gone);
    }
};

template <class T>
class Zipper {
  public:
    Zipper(const T* similarity, const std::vector<Index>& offsets, std::vector<Index> budgets,
           Index width, T alpha, Index rescan_limit)
        : rows_(similarity, offsets, alpha),
          offsets_(offsets),
          budgets_(std::move(budgets)),
          n_(offsets.back()),
          width_(width),
          live_(n_),
          alpha_(alpha),
          patience_(rescan_limit < 0 ? kRescansPerUnit * n_ : rescan_limit),
          limit_(patience_),
          parent_(size(n_), -1),
          value_(size(n_), kNone),
          column_(size(n_), -1),
          stale_(size(n_), 0) {}

    ZipOutcome run() {
        while (live_ > width_) {
            switch (greedy()) {
                case Pause::none:
                    break;
                case Pause::stuck:
                    if (outcome_.relaxed) throw std::logic_error("zip: no pair left to merge");
                    relax();
                    break;
                case Pause::slow:
                    outcome_.chained = true;
                    while (live_ > width_ && chain()) {
                    }
                    limit_ =
                        std::numeric_limits<Index>::max();  // what is left has no positive pair
                    break;
            }
        }
        label();
        return std::move(outcome_);
    }

  private:
    enum class Pause { none, stuck, slow };
    static constexpr T kNone = -std::numeric_limits<T>::infinity();
    static std::size_t size(Index k) { return static_cast<std::size_t>(k); }
    bool is_live(Index k) const { return parent_[size(k)] < 0; }

    // Records a merge already done in rows_; true if it exhausted a budget.
    bool commit(const Merge<T>& m) {
        steps_.push_back({static_cast<std::int32_t>(m.keep), static_cast<std::int32_t>(m.gone)});
        outcome_.heights.push_back(static_cast<double>(m.height));
        parent_[size(m.gone)] = m.keep;
        --live_;
        const std::int32_t model = rows_.origin(m.keep);
        if (outcome_.relaxed || model != rows_.origin(m.gone) || --budgets_[size(model)] > 0)
            return false;
        steps_.push_back(Event::close(model));
        return true;
    }

    // ---- row-best cache -------------------------------------------------------------------------
    // value_[k] bounds the best pair (k, l > k) of row k from above. A fresh row's bound is
    // attained, first at column_[k]. The largest bound of all is therefore the next merge once it
    // is fresh.

    void search(Index k) {
        const T* row = rows_.read(k);
        value_[size(k)] = row_max(row, k + 1, n_);
        column_[size(k)] =
            value_[size(k)] == kNone ? -1 : row_find(row, value_[size(k)], k + 1, n_);
        stale_[size(k)] = 0;
    }

    Pause greedy() {
        for (Index k = 0; k < n_; ++k) {
            value_[size(k)] = kNone;
            column_[size(k)] = -1;
            if (is_live(k)) search(k);
        }
        while (live_ > width_) {
            const T best = row_max(value_.data(), 0, n_);
            if (best == kNone) return Pause::stuck;
            const Index i = row_find(value_.data(), best, 0, n_);
            if (stale_[size(i)]) {
                if (outcome_.rescans >= limit_ && alpha_ <= T(1)) return Pause::slow;
                ++outcome_.rescans;
                search(i);
                continue;
            }
            const Index j = column_[size(i)];
            rows_.merge(i, j);
            const bool exhausted = commit({i, j, best});
            value_[size(j)] = kNone;
            column_[size(j)] = -1;
            update_bounds(i, j);
            if (exhausted) close(rows_.origin(i));
            search(i);
        }
        return Pause::none;
    }

    void update_bounds(Index i, Index j) {
        const T* merged = rows_.read(i);
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

    void close(std::int32_t model) {
        rows_.close(model);
        const Index begin = offsets_[size(model)], end = offsets_[size(model) + 1];
        for (Index k = begin; k < end; ++k)
            if (column_[size(k)] >= begin && column_[size(k)] < end) stale_[size(k)] = 1;
    }

    // No open pair is left: every budget is dropped and closed pairs get their similarity back.
    void relax() {
        outcome_.relaxed = true;
        limit_ = outcome_.rescans + patience_;
        steps_.erase(std::remove_if(steps_.begin(), steps_.end(),
                                    [](const Event& step) { return step.is_close(); }),
                     steps_.end());
        rows_.rebuild(steps_);
    }

    // ---- nearest-neighbour chains ---------------------------------------------------------------
    // For positive values and alpha <= 1 a merge never raises a similarity, so two clusters that
    // are each other's nearest will be merged by the greedy order too. Chains cannot see budgets:
    // their merges are sorted into the greedy order and kept up to the first exhaustion. True if a
    // budget ran out, so that another round can find more.
    bool chain() {
        std::vector<Merge<T>> found = chain_merges();
        std::sort(found.begin(), found.end());
        bool exhausted = false;
        for (const Merge<T>& m : found) {
            exhausted = commit(m);
            if (exhausted || live_ == width_) break;
        }
        rows_.rebuild(steps_);
        return exhausted;
    }

    std::vector<Merge<T>> chain_merges() {
        std::vector<Merge<T>> found;
        std::vector<char> out(size(n_), 0);  // merged away, or with no neighbour worth a merge
        for (Index k = 0; k < n_; ++k) out[size(k)] = !is_live(k);
        // Merges lower than the best (live - width) found so far can never be reached.
        std::priority_queue<T, std::vector<T>, std::greater<T>> top;
        const std::size_t wanted = size(live_ - width_);
        std::vector<Index> path;
        for (Index start = 0;;) {
            if (path.empty()) {
                while (start < n_ && out[size(start)]) ++start;
                if (start == n_) return found;
                path.push_back(start);
            }
            const Index x = path.back();
            const T* row = rows_.read(x);
            const T v = row_max(row, 0, n_);
            if (v <= T(0) || (top.size() == wanted && v < top.top())) {
                // Similarity rises along the path, so nothing on it has a better neighbour.
                for (Index k : path) out[size(k)] = 1;
                path.clear();
                continue;
            }
            const Index y = row_find(row, v, 0, n_);
            if (path.size() < 2 || path[path.size() - 2] != y) {
                path.push_back(y);
                continue;
            }
            path.resize(path.size() - 2);
            const Index i = std::min(x, y), j = std::max(x, y);
            rows_.merge(i, j);
            found.push_back({i, j, v});
            out[size(j)] = 1;
            start = std::min(start, i);
            top.push(v);
            if (top.size() > wanted) top.pop();
        }
    }

    void label() {
        outcome_.labels.assign(size(n_), 0);
        Index next = 0;
        for (Index k = 0; k < n_; ++k)  // parents come before their children
            outcome_.labels[size(k)] =
                is_live(k) ? next++ : outcome_.labels[size(parent_[size(k)])];
    }

    LazyRows<T> rows_;
    std::vector<Index> offsets_, budgets_;
    Index n_, width_, live_;
    T alpha_;
    Index patience_, limit_;
    std::vector<Index> parent_;  // the cluster a merged-away one joined, -1 for live ones
    std::vector<Event> steps_;   // committed so far
    ZipOutcome outcome_;
    std::vector<T> value_;
    std::vector<Index> column_;
    std::vector<char> stale_;
};

}  // namespace

template <class T>
ZipOutcome zip(const T* similarity, const std::vector<Index>& sizes, std::vector<Index> budgets,
               Index width, T alpha, Index rescan_limit) {
    std::vector<Index> offsets{0};
    for (Index d : sizes) offsets.push_back(offsets.back() + d);
    return Zipper<T>(similarity, offsets, std::move(budgets), width, alpha, rescan_limit).run();
}

template <class T>
MatrixCheck check_symmetric(const T* matrix, Index n) {
    constexpr Index block = 64;  // a tile and its mirror image fit the first-level cache
    double peak = 0, asymmetry = 0;
    for (Index r = 0; r < n; ++r) {
        const T row = row_peak(matrix + r * n, n);
        if (!(row <= std::numeric_limits<T>::max()))
            return {std::numeric_limits<double>::quiet_NaN(), 0};
        peak = std::max(peak, static_cast<double>(row));
    }
    for (Index r0 = 0; r0 < n; r0 += block)
        for (Index c0 = r0; c0 < n; c0 += block)
            for (Index r = r0; r < std::min(n, r0 + block); ++r)
                for (Index c = c0; c < std::min(n, c0 + block); ++c)
                    if (matrix[r * n + c] != matrix[c * n + r])
                        asymmetry =
                            std::max(asymmetry, std::abs(static_cast<double>(matrix[r * n + c]) -
                                                         static_cast<double>(matrix[c * n + r])));
    return {peak, asymmetry};
}

template ZipOutcome zip(const float*, const std::vector<Index>&, std::vector<Index>, Index, float,
                        Index);
template ZipOutcome zip(const double*, const std::vector<Index>&, std::vector<Index>, Index, double,
                        Index);
template MatrixCheck check_symmetric(const float*, Index);
template MatrixCheck check_symmetric(const double*, Index);

}  // namespace hetmerge
