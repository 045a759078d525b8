// Samples of all parents' features, found inside their tensors by offsets and packed for products.
#pragma once

#include <memory>
#include <vector>

#include "moments_tile.h"

namespace hetmerge {

// One parent's matrix [n, d]: entry (s, f) lies at samples[s] + features[f] elements.
struct Source {
    const std::byte* data = nullptr;
    DType dtype = DType::f32;
    std::shared_ptr<const std::vector<Index>> samples;
    std::vector<Index> features;
};

// The matrix X [n, width] of the sources side by side.
class Batch {
  public:
    explicit Batch(std::vector<Source> sources);

    // Features along dimension `dim` of each tensor, at the positions that `mask` (bool, shaped as
    // the other dimensions, or nullptr) names, row-major.
    static Batch columns(const std::vector<View>& tensors, Index dim, const View* mask);

    // One source alone.
    Batch part(Index source) const {
        return Batch({sources_.at(static_cast<std::size_t>(source))});
    }

    Index samples() const { return samples_; }
    Index width() const { return starts_.back(); }
    const std::vector<Source>& sources() const { return sources_; }
    Index start(Index source) const { return starts_[static_cast<std::size_t>(source)]; }

    // The narrowest arithmetic that loses nothing: f64 if any source is; bf16 if all are, the
    // processor multiplies it and the pivot is one too; else f32.
    Packing packing(const double* pivot, Level most) const;

    // Lines of `samples_per_line` samples [begin, end) of one panel, minus `pivot` (or nullptr);
    // features beyond the last one and samples beyond `end` are zeros.
    void pack(Packing packing, Index panel, Index begin, Index end, const double* pivot,
              std::byte* out) const;

  private:
    template <class Real>
    void read(Index first, Index lanes, Index begin, Index end, const double* pivot,
              Real* out) const;

    std::vector<Source> sources_;
    std::vector<Index> starts_;
    Index samples_ = 0;
};

}  // namespace hetmerge
