// Linear sum assignment of one small problem by a team of workers: a CUDA block, or the SIMD lanes
// of one CPU thread. The same source runs on both.
//
// Method (Jonker and Volgenant 1987, Computing 38): column reduction, whose minima are optimal if
// no two share a row; augmenting row reduction; one shortest augmenting path per row that is left.
// The cost of a pair is scale * score, scale a power of two or minus one, so it is exact in double,
// and duals and path lengths are double whatever the score is. Row duals are implied:
// u[i] = cost(i, column_of[i]) - v[column_of[i]] is the smallest reduced cost of row i.
//
// A Team has: each(m, f), f(j) for all columns; lowest(d, m, owner, f), f(j) for all columns, then
// the smallest d[j]; lowest_two(...), with the runner-up's value; sync(), after which writes are
// visible to all; leader(), true for one member. Column j always belongs to the same member.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define HETMERGE_TEAM __device__ __forceinline__
#define HETMERGE_STEP
#elif defined(__GNUC__)
#define HETMERGE_TEAM inline __attribute__((always_inline))
#define HETMERGE_STEP __attribute__((always_inline))
#else
#define HETMERGE_TEAM inline
#define HETMERGE_STEP
#endif

namespace hetmerge {

constexpr double kFar = std::numeric_limits<double>::infinity();

template <class T>
struct Costs {
    const T* score;
    std::int64_t stride;
    double scale;
    int n, m;  // n <= m

    HETMERGE_TEAM double operator()(int i, int j) const {
        return scale * static_cast<double>(score[i * stride + j]);
    }
};

struct Lowest {
    double value;
    int column;     // of the equal ones, a column without an owner if there is one, then the first
    double second;  // lowest_two only: smallest value of the others
};

// Arrays of one problem; n or m elements as noted.
struct Matching {
    double* v;       // [m] duals of the columns
    double* d;       // [m] path lengths
    double* kept;    // [m] v of the columns that a search has settled
    double* length;  // [m] their path lengths
    int* settled;    // [m] their numbers
    int* via;        // [m] row before a column on its path
    int* owner;      // [m] row of a column, -1 if none
    int* column_of;  // [n] column of a row, -1 if none
    int* waiting;    // [n] rows without a column

    static constexpr std::int64_t bytes(std::int64_t n, std::int64_t m) {
        return m * (4 * sizeof(double) + 3 * sizeof(int)) + 2 * n * sizeof(int);
    }
    HETMERGE_TEAM static Matching at(void* memory, int n, int m) {
        Matching a;
        a.v = static_cast<double*>(memory);
        a.d = a.v + m;
        a.kept = a.d + m;
        a.length = a.kept + m;
        a.settled = reinterpret_cast<int*>(a.length + m);
        a.via = a.settled + m;
        a.owner = a.via + m;
        a.column_of = a.owner + m;
        a.waiting = a.column_of + n;
        return a;
    }
};

struct Stages {
    bool certified;     // the first minima were no two in one row or column
    int augmentations;  // shortest augmenting paths
};

// Column minima as duals, each given to its row unless that has one. Only for square problems:
// otherwise a column that stays free must keep the dual 0. Returns how many rows wait.
template <class Team, class T>
HETMERGE_TEAM int reduce_columns(Team& team, const Costs<T>& cost, const Matching& a) {
    const bool square = cost.n == cost.m;
    team.each(cost.m, [&](int j) HETMERGE_STEP {
        a.v[j] = square ? cost(0, j) : 0.0;
        a.via[j] = 0;
        a.owner[j] = -1;
    });
    for (int i = 1; square && i < cost.n; ++i)
        team.each(cost.m, [&](int j) HETMERGE_STEP {
            const double value = cost(i, j);
            const bool lower = value < a.v[j];
            a.v[j] = lower ? value : a.v[j];
            a.via[j] = lower ? i : a.via[j];
        });
    team.each(cost.n, [&](int i) HETMERGE_STEP { a.column_of[i] = -1; });
    team.sync();
    if (team.leader()) {
        for (int j = 0; square && j < cost.m; ++j)
            if (a.column_of[a.via[j]] < 0) {
                a.column_of[a.via[j]] = j;
                a.owner[j] = a.via[j];
            }
    }
    team.sync();
    int count = 0;  // every member counts; the leader writes
    for (int i = 0; i < cost.n; ++i)
        if (a.column_of[i] < 0) {
            if (team.leader()) a.waiting[count] = i;
            ++count;
        }
    team.sync();
    return count;
}

// Gives row i the column it likes best at the price at which it likes another one as much.
// Returns the row that had the column, or -1.
template <class Team>
HETMERGE_TEAM int take(Team& team, const Matching& a, int i, const Lowest& best) {
    const int previous = a.owner[best.column];
    team.sync();
    if (team.leader()) {
        if (best.second > best.value) a.v[best.column] -= best.second - best.value;
        a.owner[best.column] = i;
        a.column_of[i] = best.column;
        if (previous >= 0) a.column_of[previous] = -1;
    }
    team.sync();
    return previous;
}

// Augmenting row reduction. A row that loses its column bids again at once if the price rose,
// else in the next pass. Returns how many rows wait; `undisturbed` stays true if no row lost.
template <class Team, class T>
HETMERGE_TEAM int reduce_rows(Team& team, const Costs<T>& cost, const Matching& a, int count,
                              bool& undisturbed) {
    std::int64_t bids = 8 * static_cast<std::int64_t>(cost.n);  // prices may rise by rounding only
    for (int pass = 0; pass < 2 && count > 0; ++pass) {
        int next = 0, left = 0, row = -1;
        while (row >= 0 || next < count) {
            const int i = row >= 0 ? row : a.waiting[next++];
            const Lowest best = team.lowest_two(
                a.d, cost.m, a.owner, [&](int j) HETMERGE_STEP { a.d[j] = cost(i, j) - a.v[j]; });
            row = take(team, a, i, best);
            undisturbed = undisturbed && row < 0;
            if (row >= 0 && (best.second <= best.value || --bids < 0)) {
                if (team.leader()) a.waiting[left] = row;
                ++left;
                row = -1;
            }
        }
        count = left;
        team.sync();
    }
    return count;
}

// Hands every row on the path to `end` the column after it.
HETMERGE_TEAM void exchange(const Matching& a, int end, int start) {
    for (int j = end, i = -1; i != start;) {
        i = a.via[j];
        a.owner[j] = i;
        const int before = a.column_of[i];
        a.column_of[i] = j;
        j = before;
    }
}

// Shortest path of reduced costs from a waiting row to a free column, and the exchange along it.
template <class Team, class T>
HETMERGE_TEAM void augment(Team& team, const Costs<T>& cost, const Matching& a, int start) {
    Lowest end = team.lowest(a.d, cost.m, a.owner, [&](int j) HETMERGE_STEP {
        a.d[j] = cost(start, j) - a.v[j];
        a.via[j] = start;
    });
    int count = 0;
    for (int i = a.owner[end.column]; i >= 0; i = a.owner[end.column], ++count) {
        const double shift = cost(i, end.column) - a.v[end.column] - end.value;
        team.sync();
        if (team.leader()) {
            a.settled[count] = end.column;
            a.kept[count] = a.v[end.column];
            a.length[count] = end.value;
            a.v[end.column] = -kFar;  // at that price no path to it gets shorter
            a.d[end.column] = kFar;
        }
        team.sync();
        end = team.lowest(a.d, cost.m, a.owner, [&](int j) HETMERGE_STEP {
            const double length = cost(i, j) - a.v[j] - shift;
            const bool shorter = length < a.d[j];
            a.d[j] = shorter ? length : a.d[j];
            a.via[j] = shorter ? i : a.via[j];
        });
    }
    team.sync();
    team.each(count, [&](int k) HETMERGE_STEP {
        a.v[a.settled[k]] = a.kept[k] + (a.length[k] - end.value);
    });
    if (team.leader()) exchange(a, end.column, start);
    team.sync();
}

template <class Team, class T>
HETMERGE_TEAM Stages assign_small(Team& team, const Costs<T>& cost, const Matching& a) {
    int count = reduce_columns(team, cost, a);
    if (count == 0) return {true, 0};
    bool undisturbed = cost.n < cost.m;
    count = reduce_rows(team, cost, a, count, undisturbed);
    for (int k = 0; k < count; ++k) augment(team, cost, a, a.waiting[k]);
    return {undisturbed, count};
}

}  // namespace hetmerge
