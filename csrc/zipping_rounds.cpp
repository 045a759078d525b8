#include "zipping_rounds.h"

#include <functional>
#include <numeric>
#include <queue>

namespace hetmerge {
namespace {

std::size_t at(Index k) { return static_cast<std::size_t>(k); }

// One space. A phase merges without regard to budgets, which rounds cannot see in order. Its merges
// are then sorted into the greedy order and kept up to the first one that exhausts a budget; the
// next phase starts from there. Merges below the best (live - width) found cannot be reached.
template <class T>
class Space {
  public:
    Space(const ZipSettings& settings, Index first)
        : clusters_(settings.sizes, settings.budgets),
          width_(settings.width),
          first_(first),
          active_(settings.alpha > 0 && settings.alpha <= 1 && settings.sizes.size() <= 32 &&
                  clusters_.live() > width_) {}

    bool active() const { return active_; }
    Index first() const { return first_; }
    Index count() const { return clusters_.count(); }
    const std::vector<Merge<T>>& steps() const { return steps_; }

    void begin_phase(std::vector<char>& live, std::vector<std::uint32_t>& bits) {
        found_.clear();
        top_ = {};
        for (Index k = 0; k < count(); ++k) {
            live[at(first_ + k)] = active_ && clusters_.is_live(k);
            bits[at(first_ + k)] = clusters_.bits(0)[k];
        }
    }

    // Takes the pairs that are each other's best; false if there are none.
    bool collect(const std::vector<int>& column, const std::vector<T>& value,
                 std::vector<int>& partner, std::vector<char>& live,
                 std::vector<std::uint32_t>& bits) {
        std::vector<Merge<T>> round;
        const std::size_t wanted = at(clusters_.live() - width_);
        for (Index i = 0; i < count(); ++i) {
            const Index j = column[at(first_ + i)];
            if (j <= i || column[at(first_ + j)] != i) continue;
            const T height = value[at(first_ + i)];
            if (top_.size() == wanted && height < top_.top()) continue;
            round.push_back({i, j, height});
        }
        for (const Merge<T>& merge : round) {
            partner[at(first_ + merge.keep)] = static_cast<int>(merge.gone);
            live[at(first_ + merge.gone)] = 0;
            bits[at(first_ + merge.keep)] |= bits[at(first_ + merge.gone)];
            top_.push(merge.height);
            if (top_.size() > wanted) top_.pop();
        }
        if (round.empty()) return false;
        found_.push_back(std::move(round));
        return true;
    }

    // Commits what the greedy order would have done by the first exhausted budget.
    void end_phase() {
        std::vector<std::pair<Merge<T>, std::size_t>> sorted;
        for (std::size_t r = 0; r < found_.size(); ++r)
            for (const Merge<T>& merge : found_[r]) sorted.push_back({merge, r});
        std::sort(sorted.begin(), sorted.end(),
                  [](const auto& a, const auto& b) { return a.first < b.first; });
        std::vector<std::vector<Merge<T>>> kept(found_.size());
        bool exhausted = false;
        for (const auto& [merge, round] : sorted) {
            steps_.push_back(merge);
            kept[round].push_back(merge);
            exhausted = clusters_.join(merge.keep, merge.gone) >= 0;
            if (exhausted || clusters_.live() == width_) break;
        }
        history_.insert(history_.end(), kept.begin(), kept.end());
        active_ = exhausted && clusters_.live() > width_;
    }

    // The committed merges again, round by round: those of a round are of different clusters.
    void replay(RoundRows<T>& rows, std::vector<int>& partner) const {
        for (const auto& round : history_) {
            if (round.empty()) continue;
            for (const Merge<T>& merge : round)
                partner[at(first_ + merge.keep)] = static_cast<int>(merge.gone);
            rows.join(partner);
            for (const Merge<T>& merge : round) partner[at(first_ + merge.keep)] = -1;
        }
    }

  private:
    Clusters clusters_;
    Index width_, first_;
    bool active_;
    std::vector<Merge<T>> steps_;
    std::vector<std::vector<Merge<T>>> found_, history_;
    std::priority_queue<T, std::vector<T>, std::greater<T>> top_;
};

template <class T>
class HostRows : public RoundRows<T> {
  public:
    HostRows(const std::vector<const T*>& similarities, const std::vector<Index>& counts, T alpha)
        : source_(similarities), counts_(counts), alpha_(alpha), work_(similarities.size()) {
        for (std::size_t s = 0; s < counts.size(); ++s) HostRows::reset(s);
    }

    void best(const std::vector<char>& live, const std::vector<std::uint32_t>& bits,
              std::vector<int>& column, std::vector<T>& value) override {
        Index first = 0;
        for (std::size_t s = 0; s < counts_.size(); first += counts_[s++])
            for (Index i = 0; i < counts_[s]; ++i) {
                column[at(first + i)] = -1;
                value[at(first + i)] = T(0);
                for (Index j = 0; live[at(first + i)] && j < counts_[s]; ++j) {
                    const T v = work_[s][at(i * counts_[s] + j)];
                    if (j == i || !live[at(first + j)] || !(v > value[at(first + i)])) continue;
                    if (bits[at(first + i)] & bits[at(first + j)]) continue;
                    value[at(first + i)] = v;
                    column[at(first + i)] = static_cast<int>(j);
                }
            }
    }

    void join(const std::vector<int>& partner) override {
        Index first = 0;
        for (std::size_t s = 0; s < counts_.size(); first += counts_[s++]) {
            const Index n = counts_[s];
            T* work = work_[s].data();
            for (Index k = 0; k < n; ++k)  // columns
                for (Index i = 0; i < n; ++i)
                    if (const int j = partner[at(first + i)]; j >= 0)
                        work[k * n + i] = alpha_ * std::min(work[k * n + i], work[k * n + j]);
            for (Index i = 0; i < n; ++i)  // rows
                if (const int j = partner[at(first + i)]; j >= 0)
                    for (Index k = 0; k < n; ++k)
                        work[i * n + k] = alpha_ * std::min(work[i * n + k], work[j * n + k]);
        }
    }

    void reset(std::size_t space) override {
        const Index n = counts_[space];
        work_[space].assign(source_[space], source_[space] + n * n);
    }

  private:
    std::vector<const T*> source_;
    std::vector<Index> counts_;
    T alpha_;
    std::vector<std::vector<T>> work_;
};

}  // namespace

template <class T>
std::unique_ptr<RoundRows<T>> host_rows(const std::vector<const T*>& similarities,
                                        const std::vector<Index>& counts, T alpha) {
    return std::make_unique<HostRows<T>>(similarities, counts, alpha);
}

template <class T>
std::vector<std::vector<Merge<T>>> merge_in_rounds(RoundRows<T>& rows,
                                                   const std::vector<ZipSettings>& settings) {
    std::vector<Space<T>> spaces;
    Index total = 0;
    for (const ZipSettings& one : settings) {
        spaces.emplace_back(one, total);
        total += spaces.back().count();
    }
    std::vector<char> live(at(total), 0);
    std::vector<std::uint32_t> bits(at(total), 0);
    std::vector<int> column(at(total), -1), partner(at(total), -1);
    std::vector<T> value(at(total), T(0));
    bool active = false;
    for (Space<T>& space : spaces) {
        space.begin_phase(live, bits);
        active = active || space.active();
    }
    while (active) {
        rows.best(live, bits, column, value);
        active = false;
        std::vector<std::size_t> ended;
        for (std::size_t s = 0; s < spaces.size(); ++s) {
            if (!spaces[s].active()) continue;
            if (!spaces[s].collect(column, value, partner, live, bits)) ended.push_back(s);
        }
        rows.join(partner);
        std::fill(partner.begin(), partner.end(), -1);
        for (std::size_t s : ended) {
            spaces[s].end_phase();
            spaces[s].begin_phase(live, bits);
            if (!spaces[s].active()) continue;
            rows.reset(s);
            spaces[s].replay(rows, partner);
        }
        for (const Space<T>& space : spaces) active = active || space.active();
    }
    std::vector<std::vector<Merge<T>>> steps;
    for (const Space<T>& space : spaces) steps.push_back(space.steps());
    return steps;
}

template std::unique_ptr<RoundRows<float>> host_rows(const std::vector<const float*>&,
                                                     const std::vector<Index>&, float);
template std::unique_ptr<RoundRows<double>> host_rows(const std::vector<const double*>&,
                                                      const std::vector<Index>&, double);
template std::vector<std::vector<Merge<float>>> merge_in_rounds(RoundRows<float>&,
                                                                const std::vector<ZipSettings>&);
template std::vector<std::vector<Merge<double>>> merge_in_rounds(RoundRows<double>&,
                                                                 const std::vector<ZipSettings>&);

}  // namespace hetmerge
