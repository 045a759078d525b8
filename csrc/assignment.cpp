#include "assignment.h"

#include <algorithm>
#include <limits>

#include "assignment_rows.h"

namespace hetmerge {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();

std::size_t at(Index k) { return static_cast<std::size_t>(k); }

// Scores with at least as many columns as rows, and columns next to each other: as given, or copied
// (transposed where there are more rows than columns).
template <class T>
class Rows {
  public:
    Rows(const View& score, bool maximise) : sign_(maximise ? T(-1) : T(1)) {
        const bool turned = score.shape[0] > score.shape[1];
        rows_ = score.shape[turned ? 1 : 0];
        columns_ = score.shape[turned ? 0 : 1];
        const Index down = score.strides[turned ? 1 : 0], along = score.strides[turned ? 0 : 1];
        data_ = score.data<const T>();
        stride_ = down;
        if (along == 1 || columns_ <= 1) return;
        copy_.resize(at(rows_ * columns_));
        constexpr Index block = 32;  // of both sides, so that the lines of either stay in cache
        for (Index r0 = 0; r0 < rows_; r0 += block)
            for (Index c0 = 0; c0 < columns_; c0 += block)
                for (Index r = r0; r < std::min(rows_, r0 + block); ++r)
                    for (Index c = c0; c < std::min(columns_, c0 + block); ++c)
                        copy_[at(r * columns_ + c)] = data_[r * down + c * along];
        data_ = copy_.data();
        stride_ = columns_;
    }

    Index rows() const { return rows_; }
    Index columns() const { return columns_; }
    T sign() const { return sign_; }
    Index stride() const { return stride_; }
    const T* row(Index r) const { return data_ + r * stride_; }
    double cost(Index r, Index c) const { return static_cast<double>(sign_ * row(r)[c]); }

  private:
    T sign_;
    Index rows_ = 0, columns_ = 0, stride_ = 0;
    const T* data_ = nullptr;
    std::vector<T> copy_;
};

// Jonker and Volgenant (1987) with shortest augmenting paths over whole rows. Prices of columns
// start at 0 and only fall, and only those of paired columns, so the proof of optimality holds with
// more columns than rows too.
template <class T>
class Solver {
  public:
    explicit Solver(const Rows<T>& costs)
        : costs_(costs),
          n_(costs.rows()),
          m_(costs.columns()),
          price_(at(m_), 0.0),
          owner_(at(m_), -1),
          column_(at(n_), -1),
          distance_(at(m_)),
          open_(at(m_)),
          before_(at(m_)),
          block_(at((m_ + kBlock - 1) / kBlock)) {}

    // False if a score is not finite.
    bool run() {
        if (!row_minima()) return false;
        for (int round = 0; round < 2 && !free_.empty(); ++round) reduce_rows();
        for (Index row : free_) augment(row);
        return true;
    }

    const std::vector<Index>& column() const { return column_; }
    const std::vector<double>& price() const { return price_; }
    Index scans() const { return scans_; }

  private:
    // Pairs every row with its cheapest column where that is still free. If all are, it is optimal.
    bool row_minima() {
        bool finite = true;
        for (Index i = 0; i < n_; ++i) {
            const Least least = least_two(costs_.row(i), costs_.sign(), nullptr, m_);
            finite = finite && least.finite;
            if (!least.finite) return false;
            if (owner_[at(least.first)] < 0)
                pair(i, least.first);
            else
                free_.push_back(i);
        }
        return finite;
    }

    void pair(Index row, Index column) {
        owner_[at(column)] = row;
        column_[at(row)] = column;
    }

    // Augmenting row reduction: a free row takes its cheapest column and lowers that column's price
    // until its second choice is as good; the row that held the column looks for another.
    void reduce_rows() {
        std::vector<Index> queue;
        queue.swap(free_);
        Index budget = 4 * static_cast<Index>(queue.size()) + n_;  // price wars end here
        for (std::size_t k = 0; k < queue.size(); ++k) {
            for (Index i = queue[k]; i >= 0;) {
                const Least least = least_two(costs_.row(i), costs_.sign(), price_.data(), m_);
                ++scans_;
                Index j = least.first;
                const double lower = price_[at(j)] - (least.next - least.value);
                const bool fell = m_ > 1 && lower < price_[at(j)];
                if (fell)
                    price_[at(j)] = lower;
                else if (owner_[at(j)] >= 0 && least.second >= 0)
                    j = least.second;
                const Index rival = owner_[at(j)];
                if (rival >= 0 && (!fell || --budget < 0)) {
                    if (fell) {  // the price stays: this row takes the column, the rival waits
                        column_[at(rival)] = -1;
                        pair(i, j);
                        free_.push_back(rival);
                    } else {
                        free_.push_back(i);
                    }
                    break;
                }
                if (rival >= 0) column_[at(rival)] = -1;
                pair(i, j);
                i = rival;
            }
        }
    }

    // Shortest augmenting path from a free row (Dijkstra on reduced costs).
    void augment(Index start) {
        std::fill(distance_.begin(), distance_.end(), kFar);
        std::copy(price_.begin(), price_.end(), open_.begin());
        visited_.clear();
        double length = 0.0;
        Index row = start, end = -1;
        while (end < 0) {
            const double offset = row == start ? 0.0 : slack(row, length);
            relax(costs_.row(row), costs_.sign(), open_.data(), offset, row, distance_.data(),
                  before_.data(), block_.data(), m_);
            ++scans_;
            const Index next = nearest();
            length = distance_[at(next)];
            if (owner_[at(next)] < 0) {
                end = next;
                break;
            }
            visited_.push_back({next, length});
            open_[at(next)] = -kFar;  // its distance cannot fall any more
            distance_[at(next)] = kFar;
            row = owner_[at(next)];
        }
        for (const Visit& visit : visited_) price_[at(visit.column)] += visit.length - length;
        for (Index j = end; j >= 0;) {
            const Index i = before_[at(j)];
            const Index freed = column_[at(i)];
            pair(i, j);
            j = i == start ? -1 : freed;
        }
    }

    // What is added to the reduced costs of `row` to give path lengths.
    double slack(Index row, double length) const {
        const Index held = column_[at(row)];
        return length - (costs_.cost(row, held) - price_[at(held)]);
    }

    // The nearest column that was not visited, a free one first; ties to the smallest.
    Index nearest() const {
        const double least = *std::min_element(block_.begin(), block_.end());
        Index found = -1;
        for (std::size_t b = 0; b < block_.size(); ++b) {
            if (block_[b] != least) continue;
            const Index begin = static_cast<Index>(b) * kBlock;
            for (Index j = begin; j < std::min(m_, begin + kBlock); ++j) {
                if (distance_[at(j)] != least) continue;
                if (owner_[at(j)] < 0) return j;
                if (found < 0) found = j;
            }
        }
        return found;
    }

    struct Visit {
        Index column;
        double length;
    };

    const Rows<T>& costs_;
    Index n_, m_;
    std::vector<double> price_;
    std::vector<Index> owner_, column_, free_;
    std::vector<double> distance_, open_;
    std::vector<Index> before_;
    std::vector<double> block_;
    std::vector<Visit> visited_;
    Index scans_ = 0;
};

template <class T>
Pairing paired(const View& score, bool maximise) {
    const Rows<T> rows(score, maximise);
    Pairing found;
    Solver<T> solver(rows);
    found.finite = solver.run();
    if (!found.finite) return found;
    found.scans = solver.scans();
    found.column_price = solver.price();
    found.row_price.resize(at(rows.rows()));
    for (Index i = 0; i < rows.rows(); ++i) {
        const Index j = solver.column()[at(i)];
        found.row_price[at(i)] = rows.cost(i, j) - found.column_price[at(j)];
    }
    if (score.shape[0] <= score.shape[1]) {
        found.column = solver.column();
        return found;
    }
    found.column.assign(at(score.shape[0]), -1);
    for (Index i = 0; i < rows.rows(); ++i) found.column[at(solver.column()[at(i)])] = i;
    std::swap(found.row_price, found.column_price);
    return found;
}

template <class T>
double violation(const View& score, bool maximise, const Pairing& found) {
    double worst = 0.0;
    for (Index i = 0; i < score.shape[0]; ++i)
        for (Index j = 0; j < score.shape[1]; ++j) {
            const double value = static_cast<double>(
                score.data<const T>()[i * score.strides[0] + j * score.strides[1]]);
            const double reduced =
                (maximise ? -value : value) - found.row_price[at(i)] - found.column_price[at(j)];
            worst = std::max(worst, -reduced);
        }
    return worst;
}

}  // namespace

Pairing pair(const View& score, bool maximise) {
    if (score.shape[0] == 0 || score.shape[1] == 0) {
        Pairing found;
        found.column.assign(at(score.shape[0]), -1);
        found.row_price.assign(at(score.shape[0]), 0.0);
        found.column_price.assign(at(score.shape[1]), 0.0);
        return found;
    }
    return score.dtype == DType::f32 ? paired<float>(score, maximise)
                                     : paired<double>(score, maximise);
}

double infeasibility(const View& score, bool maximise, const Pairing& found) {
    return score.dtype == DType::f32 ? violation<float>(score, maximise, found)
                                     : violation<double>(score, maximise, found);
}

}  // namespace hetmerge
