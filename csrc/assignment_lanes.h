// The team of one CPU thread: loops that the compiler turns into SIMD code.
#pragma once

#include "assignment_core.h"

namespace hetmerge {

struct LaneTeam {
    static constexpr int kLanes = 32;  // hide the latency of min

    HETMERGE_TEAM bool leader() const { return true; }
    HETMERGE_TEAM void sync() const {}

    template <class Step>
    HETMERGE_TEAM void each(int m, const Step& step) const {
        for (int j = 0; j < m; ++j) step(j);
    }

    template <class Step>
    HETMERGE_TEAM Lowest lowest(const double* d, int m, const int* owner, const Step& step) const {
        double lane[kLanes];
        for (int l = 0; l < kLanes; ++l) lane[l] = kFar;
        int j = 0;
        for (; j + kLanes <= m; j += kLanes)
            for (int l = 0; l < kLanes; ++l) {
                step(j + l);
                lane[l] = d[j + l] < lane[l] ? d[j + l] : lane[l];
            }
        for (; j < m; ++j) {
            step(j);
            lane[0] = d[j] < lane[0] ? d[j] : lane[0];
        }
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int l = 0; l < half; ++l)
                lane[l] = lane[l + half] < lane[l] ? lane[l + half] : lane[l];
        return {lane[0], find(d, m, owner, lane[0]), kFar};
    }

    template <class Step>
    HETMERGE_TEAM Lowest lowest_two(const double* d, int m, const int* owner,
                                    const Step& step) const {
        double first[kLanes], second[kLanes];
        for (int l = 0; l < kLanes; ++l) first[l] = second[l] = kFar;
        int j = 0;
        for (; j + kLanes <= m; j += kLanes)
            for (int l = 0; l < kLanes; ++l) {
                step(j + l);
                place(d[j + l], first[l], second[l]);
            }
        for (; j < m; ++j) {
            step(j);
            place(d[j], first[0], second[0]);
        }
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int l = 0; l < half; ++l) {
                place(first[l + half], first[l], second[l]);
                second[l] = second[l + half] < second[l] ? second[l + half] : second[l];
            }
        return {first[0], find(d, m, owner, first[0]), second[0]};
    }

  private:
    HETMERGE_TEAM static void place(double value, double& first, double& second) {
        const double more = value > first ? value : first;
        first = value < first ? value : first;
        second = more < second ? more : second;
    }

    HETMERGE_TEAM static int find(const double* d, int m, const int* owner, double value) {
        int found = -1, j = 0;
        for (; j < m; ++j) {
            if (j + kLanes <= m) {
                int hit = 0;
                for (int l = 0; l < kLanes; ++l) hit |= d[j + l] == value ? 1 : 0;
                if (hit == 0) {
                    j += kLanes - 1;
                    continue;
                }
            }
            if (d[j] == value) {
                if (owner[j] < 0) return j;
                found = found < 0 ? j : found;
            }
        }
        return found;
    }
};

}  // namespace hetmerge
