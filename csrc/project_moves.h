// Entries of a row sent to their places, by whichever way moves them fastest.
#pragma once

#include <vector>

#include "project_rows.h"

namespace hetmerge {

struct Run {
    Index from, to, count;
};

// sum[label[k]] += x[k], in the order of k for every place. Where labels rise by one for long, as
// runs. Elsewhere every place fetches its first entry, which reads and writes less than sending
// every entry, and the further ones are sent.
class Moves {
  public:
    Moves() = default;
    Moves(const std::vector<Index>& label, Index places);

    bool in_runs() const { return from_.empty() && pairs_.empty(); }
    const std::vector<Run>& runs() const { return runs_; }

    // Unless in runs. x ends with one more entry, 0: what places without an entry fetch.
    template <class Sum>
    void apply(Sum* sum, const Sum* x, Ahead ahead) const {
        gather_row(sum, x, from_.data(), static_cast<Index>(from_.size()), ahead);
        for (const Pair& pair : pairs_) sum[pair.to] += x[pair.from];
    }

  private:
    struct Pair {
        std::int32_t from, to;
    };

    std::vector<Run> runs_;
    std::vector<std::int32_t> from_;  // [places], or empty where too few of them have an entry
    std::vector<Pair> pairs_;
};

}  // namespace hetmerge
