// How one parent's tensor is walked: its axes, flattened into the two sides of a loop nest.
#pragma once

#include <utility>
#include <vector>

#include "project.h"

namespace hetmerge {

// Some axes of a parent, flattened. Entry k lies at k * stride, or at offset[k], and goes to entry
// k of the result's same axes, or to label[k].
template <class Sum>
struct Side {
    Index count = 1;
    bool identity = true;
    bool even = true;
    Index stride = 1;
    std::vector<Index> label;   // [count], empty if identity
    std::vector<Index> offset;  // [count], empty if even
    std::vector<Sum> factor;    // [count], empty unless the rows are among the axes

    Index at(Index k) const { return even ? k * stride : offset[static_cast<std::size_t>(k)]; }
};

// `axes` in the order of the loops; `row_factor`: [R].
template <class Sum>
Side<Sum> flatten(const Parent& parent, const View& out, const std::vector<std::size_t>& axes,
                  const std::vector<Sum>& row_factor) {
    const auto labels = [&](std::size_t axis) {
        return axis == 0 ? &parent.rows : axis == 1 ? &parent.cols : nullptr;
    };
    Side<Sum> side;
    for (std::size_t axis : axes) {
        const Index size = parent.weight.shape[axis], step = parent.weight.strides[axis];
        if (size != 1) {
            side.even = side.even && (side.count == 1 || side.stride == step * size);
            side.stride = step;
        }
        side.count *= size;
        side.identity = side.identity && size == out.shape[axis];
        if (const Labels* given = labels(axis))
            for (Index k = 0; side.identity && k < size; ++k)
                side.identity = (*given)[static_cast<std::size_t>(k)] == k;
    }
    const auto expand = [&](auto first, const auto& next) {
        std::vector<decltype(first)> table{first}, longer;
        for (std::size_t axis : axes) {
            longer.clear();
            longer.reserve(table.size() * static_cast<std::size_t>(parent.weight.shape[axis]));
            for (const auto& old : table)
                for (Index k = 0; k < parent.weight.shape[axis]; ++k)
                    longer.push_back(next(old, axis, k));
            std::swap(table, longer);
        }
        return table;
    };
    if (!side.identity)
        side.label = expand(Index{0}, [&](Index old, std::size_t axis, Index k) {
            const Labels* given = labels(axis);
            return old * out.shape[axis] + (given ? (*given)[static_cast<std::size_t>(k)] : k);
        });
    if (!side.even)
        side.offset = expand(Index{0}, [&](Index old, std::size_t axis, Index k) {
            return old + k * parent.weight.strides[axis];
        });
    for (std::size_t axis : axes)
        if (axis == 0)
            side.factor = expand(Sum{0}, [&](Sum old, std::size_t each, Index k) {
                return each == 0 ? row_factor[static_cast<std::size_t>(k)] : old;
            });
    return side;
}

// The entries that go to each place, ascending.
class Members {
  public:
    // Entry k goes to place k.
    explicit Members(Index count) : identity_(true), count_(count) {}
    Members(const std::vector<Index>& label, Index places);

    // Positions in the list of all members, ordered by place.
    Index begin(Index place) const { return identity_ ? place : start_[position(place)]; }
    Index end(Index place) const { return identity_ ? place + 1 : start_[position(place + 1)]; }
    Index count() const { return count_; }
    Index entry(Index k) const { return identity_ ? k : entry_[position(k)]; }

  private:
    static std::size_t position(Index k) { return static_cast<std::size_t>(k); }

    bool identity_;
    Index count_;
    std::vector<Index> start_, entry_;
};

inline Members::Members(const std::vector<Index>& label, Index places)
    : identity_(false),
      count_(static_cast<Index>(label.size())),
      start_(position(places) + 1),
      entry_(label.size()) {
    for (Index place : label) ++start_[position(place) + 1];
    for (std::size_t p = 1; p < start_.size(); ++p) start_[p] += start_[p - 1];
    std::vector<Index> next(start_.begin(), start_.end() - 1);
    for (Index k = 0; k < count_; ++k) {
        Index& free = next[position(label[position(k)])];
        entry_[position(free++)] = k;
    }
}

}  // namespace hetmerge
