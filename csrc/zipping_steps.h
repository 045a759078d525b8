// What every way of zipping shares: merges in greedy order, and which pairs are out of budget.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "simd.h"

namespace hetmerge {

// Cluster `gone` joins cluster `keep` < `gone`, both named by their smallest member.
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

// The clusters reached so far, what is left of the budgets, and one bit per cluster and model whose
// budget ran out: set for the model's clusters then, and inherited by what they merge into. A pair
// is closed when the bits of its two clusters intersect, so no similarity is lost by closing.
class Clusters {
  public:
    Clusters(const std::vector<Index>& sizes, std::vector<Index> budgets)
        : budgets_(std::move(budgets)), words_((static_cast<Index>(sizes.size()) + 31) / 32) {
        offsets_.push_back(0);
        for (std::size_t m = 0; m < sizes.size(); ++m) {
            offsets_.push_back(offsets_.back() + sizes[m]);
            origin_.insert(origin_.end(), at(sizes[m]), static_cast<Index>(m));
        }
        live_ = count();
        parent_.assign(at(count()), -1);
        bits_.assign(at(words_ * count()), 0);
    }

    Index count() const { return offsets_.back(); }
    Index live() const { return live_; }
    bool is_live(Index k) const { return parent_[at(k)] < 0; }
    bool relaxed() const { return relaxed_; }
    Index words() const { return words_; }
    Index begin(Index model) const { return offsets_[at(model)]; }
    Index end(Index model) const { return offsets_[at(model) + 1]; }
    // Bits of models 32 word .. 32 word + 31, one entry per cluster.
    const std::uint32_t* bits(Index word) const { return bits_.data() + word * count(); }

    // Joins two clusters. The model whose budget this exhausted, or -1.
    Index join(Index keep, Index gone) {
        parent_[at(gone)] = keep;
        --live_;
        for (Index w = 0; w < words_; ++w) bits_[at(w * count() + keep)] |= bits(w)[gone];
        const Index model = origin_[at(keep)];
        if (relaxed_ || model != origin_[at(gone)] || --budgets_[at(model)] > 0) return -1;
        for (Index k = begin(model); k < end(model); ++k)
            bits_[at(model / 32 * count() + k)] |= std::uint32_t{1} << (model % 32);
        return model;
    }

    // Budgets no longer count, and every closed pair is open again.
    void relax() {
        relaxed_ = true;
        std::fill(bits_.begin(), bits_.end(), 0);
    }

    bool has_closed(Index r) const {
        for (Index w = 0; w < words_; ++w)
            if (bits(w)[r] != 0) return true;
        return false;
    }

    // Row r with -inf at closed pairs, from column `first` on: `row` itself where none is closed.
    template <class T>
    const T* open(Index r, const T* row, Index first, std::vector<T>& scratch) const {
        if (!has_closed(r)) return row;
        scratch.resize(at(count()));
        std::copy(row + first, row + count(), scratch.begin() + first);
        for (Index w = 0; w < words_; ++w)
            row_close(scratch.data(), bits(w), bits(w)[r], first, count());
        return scratch.data();
    }

    // Number of each unit's cluster, clusters in order of their smallest member.
    std::vector<Index> labels() const {
        std::vector<Index> labels(at(count()));
        Index next = 0;
        for (Index k = 0; k < count(); ++k)  // parents come before their children
            labels[at(k)] = is_live(k) ? next++ : labels[at(parent_[at(k)])];
        return labels;
    }

  private:
    static std::size_t at(Index k) { return static_cast<std::size_t>(k); }

    std::vector<Index> offsets_, budgets_, origin_;
    Index words_, live_ = 0;
    bool relaxed_ = false;
    std::vector<Index> parent_;  // the cluster a merged-away one joined, -1 for live ones
    std::vector<std::uint32_t> bits_;
};

}  // namespace hetmerge
