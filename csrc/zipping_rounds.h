// Zip in rounds: all pairs of clusters that are each other's best merge at once. The way to zip
// many spaces on a GPU; the steps a device has to do are few and have a plain form on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "zipping.h"

namespace hetmerge {

// Similarities of several spaces under merging; rows of all spaces are numbered one after another.
template <class T>
class RoundRows {
  public:
    virtual ~RoundRows() = default;

    // Of every live row, the column (in its space) with the largest similarity above 0 to a live
    // row of the same space whose bits do not intersect its own, the smallest of equal ones; -1 if
    // none.
    virtual void best(const std::vector<char>& live, const std::vector<std::uint32_t>& bits,
                      std::vector<int>& column, std::vector<T>& value) = 0;

    // Row k joins row partner[k] of its space, for every partner[k] >= 0: similarities of the
    // merged are alpha times the lesser of the two. No row takes part in two pairs.
    virtual void join(const std::vector<int>& partner) = 0;

    // The similarities of one space as they were given.
    virtual void reset(std::size_t space) = 0;
};

// On the CPU: what the GPU computes, without its speed.
template <class T>
std::unique_ptr<RoundRows<T>> host_rows(const std::vector<const T*>& similarities,
                                        const std::vector<Index>& counts, T alpha);

// `stream` is a cudaStream_t; similarities lie on its device. Throws std::runtime_error.
template <class T>
std::unique_ptr<RoundRows<T>> cuda_rows(const std::vector<const T*>& similarities,
                                        const std::vector<Index>& counts, T alpha, void* stream);

// The first merges of every space in greedy order: all down to its width, or as many as have a
// positive height. Exact for 0 < alpha <= 1 and up to 32 models; for others, none.
template <class T>
std::vector<std::vector<Merge<T>>> merge_in_rounds(RoundRows<T>& rows,
                                                   const std::vector<ZipSettings>& spaces);

}  // namespace hetmerge
