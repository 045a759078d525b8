// Nearest-neighbour chains: O(n^2) whatever the similarities, but blind to budgets.
#pragma once

#include <functional>
#include <queue>
#include <vector>

#include "lazy_rows.h"
#include "zipping_steps.h"

namespace hetmerge {

// Merges of the greedy order above zero, unsorted, at least the best `wanted` of them. matrix:
// [count, count], symmetric, -inf at closed pairs, overwritten. Needs alpha <= 1: then merging
// never raises a positive similarity, so two clusters that are each other's nearest stay that, and
// the greedy order merges them too.
template <class T>
std::vector<Merge<T>> chain_merges(T* matrix, Index count, T alpha, std::size_t wanted) {
    LazyRows<T> rows(matrix, matrix, count, alpha);
    std::vector<Merge<T>> found;
    // Merged away, or with no neighbour worth a merge.
    std::vector<char> out(static_cast<std::size_t>(count), 0);
    // Merges lower than the best `wanted` found so far can never be reached.
    std::priority_queue<T, std::vector<T>, std::greater<T>> top;
    std::vector<Index> path;
    for (Index start = 0;;) {
        if (path.empty()) {
            while (start < count && out[static_cast<std::size_t>(start)]) ++start;
            if (start == count) return found;
            path.push_back(start);
        }
        const Index x = path.back();
        const T* row = rows.read(x);
        const T v = row_max(row, 0, count);
        if (v <= T(0) || (top.size() == wanted && v < top.top())) {
            // Similarity rises along the path, so nothing on it has a better neighbour.
            for (Index k : path) out[static_cast<std::size_t>(k)] = 1;
            path.clear();
            continue;
        }
        const Index y = row_find(row, v, 0, count);
        if (path.size() < 2 || path[path.size() - 2] != y) {
            path.push_back(y);
            continue;
        }
        path.resize(path.size() - 2);
        const Index i = std::min(x, y), j = std::max(x, y);
        rows.merge(i, j);
        found.push_back({i, j, v});
        out[static_cast<std::size_t>(j)] = 1;
        start = std::min(start, i);
        top.push(v);
        if (top.size() > wanted) top.pop();
    }
}

}  // namespace hetmerge
