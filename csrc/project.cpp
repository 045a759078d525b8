#include "project.h"

#include <algorithm>

#include "parallel.h"
#include "project_moves.h"
#include "project_sides.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hetmerge {
namespace {

constexpr Index kInnerEnough = 512;    // entries that pay for what every row costs
constexpr Index kInnerMost = 1 << 16;  // entries that fit the second-level cache
constexpr Index kTile = 1 << 13;       // entries at a time where rows can be cut
constexpr Index kBlock = 1 << 18;  // entries of the result that a thread takes at a time, at most
constexpr Index kParallel = 1 << 17;  // entries that pay for a thread
constexpr Index kStreamed = 1 << 23;  // bytes of a result that no cache keeps for its reader
constexpr std::uintptr_t kHugePage = 1 << 21;

std::size_t size(Index k) { return static_cast<std::size_t>(k); }

Index item_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// A fresh result is mapped page by page as it is written, which large pages make cheaper.
void prefer_huge_pages(std::uintptr_t address, Index bytes) {
#if defined(__linux__)
    const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const std::uintptr_t end = (address + size(bytes)) / kHugePage * kHugePage;
    if (end > begin)  // a hint: nothing changes where it is refused
        (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)address, (void)bytes;
#endif
}

// How many leading axes, in the order of the loops, are looped over one entry at a time.
std::size_t outer_axes(const std::vector<Parent>& parents, const View& out,
                       const std::vector<std::size_t>& order) {
    std::size_t outer = order.size();
    for (Index inner = 1; outer > 0 && inner < kInnerEnough; --outer) {
        Index longest = out.shape[order[outer - 1]];
        for (const Parent& parent : parents)
            if (parent.present) longest = std::max(longest, parent.weight.shape[order[outer - 1]]);
        if (inner > 1 && inner * longest > kInnerMost) break;
        inner *= longest;
    }
    return outer;
}

// Per parent [R]: its share over the sum of the shares of all members of the row's cluster.
template <class Sum>
std::vector<std::vector<Sum>> row_factors(const std::vector<Parent>& parents, Index rows) {
    std::vector<double> mass(size(rows));
    for (const Parent& parent : parents)
        for (std::int32_t label : parent.rows) mass[size(label)] += parent.share;
    std::vector<std::vector<Sum>> factors;
    for (const Parent& parent : parents) {
        std::vector<Sum>& factor = factors.emplace_back();
        if (parent.present && parent.share > 0)
            for (std::int32_t label : parent.rows)
                factor.push_back(static_cast<Sum>(parent.share / mass[size(label)]));
    }
    return factors;
}

template <class Sum>
class Source {
  public:
    Source(const Parent& parent, const View& out, const std::vector<std::size_t>& outer,
           const std::vector<std::size_t>& inner, const std::vector<Sum>& factor)
        : data_(parent.weight.data<char>()),
          dtype_(parent.weight.dtype),
          outer_(flatten(parent, out, outer, factor)),
          inner_(flatten(parent, out, inner, factor)),
          members_(outer_.identity ? Members(outer_.count)
                                   : Members(outer_.label, entries(out, outer))) {
        if (!inner_.identity) moves_ = Moves(inner_.label, entries(out, inner));
    }

    // Whether a row may be computed piece by piece.
    bool divisible() const { return inner_.identity; }

    // Adds this parent's part in row r of the result, entries [begin, end), to `sum`.
    void add(Sum* sum, Index r, Index begin, Index end, std::vector<Sum>& scratch) const {
        const Index first = members_.begin(r), last = members_.end(r);
        if (first == last) return;
        const Run piece{begin, 0, end - begin};
        const Run* runs = inner_.identity ? &piece : moves_.runs().data();
        const std::size_t count = inner_.identity ? 1 : moves_.runs().size();
        if (moves_.in_runs() && inner_.factor.empty()) {
            for (Index k = first; k < last; ++k)
                for (std::size_t i = 0; i < count; ++i)
                    add_member(sum + runs[i].to, k, runs[i].from, runs[i].count);
            return;
        }
        const Index from = inner_.identity ? begin : 0;
        const Index length = inner_.identity ? end - begin : inner_.count;
        scratch.assign(size(length) + 1, Sum(0));
        for (Index k = first; k < last; ++k) add_member(scratch.data(), k, from, length);
        if (!inner_.factor.empty()) scale_row(scratch.data(), inner_.factor.data() + from, length);
        if (!moves_.in_runs()) return moves_.apply(sum, scratch.data(), ahead(last));
        for (std::size_t i = 0; i < count; ++i)
            for (Index k = 0; k < runs[i].count; ++k)
                sum[runs[i].to + k] += scratch[size(runs[i].from - from + k)];
    }

  private:
    static Index entries(const View& out, const std::vector<std::size_t>& axes) {
        Index total = 1;
        for (std::size_t axis : axes) total *= out.shape[axis];
        return total;
    }

    // The member's row, where it can be fetched as a whole.
    Ahead ahead(Index k) const {
        if (k == members_.count() || !inner_.even || inner_.stride != 1) return {};
        return {data_ + outer_.at(members_.entry(k)) * item_size(dtype_),
                inner_.count * item_size(dtype_)};
    }

    void add_member(Sum* sum, Index k, Index from, Index count) const {
        const Index entry = members_.entry(k);
        const Index at = outer_.at(entry) + (inner_.even ? from * inner_.stride : 0);
        const Sum factor = outer_.factor.empty() ? Sum(1) : outer_.factor[size(entry)];
        add_row(sum, dtype_, data_ + at * item_size(dtype_), inner_.stride,
                inner_.even ? nullptr : inner_.offset.data() + from, factor, count);
    }

    const char* data_;
    DType dtype_;
    Side<Sum> outer_, inner_;
    Members members_;
    Moves moves_;
};

template <class Sum>
void project_in(const std::vector<Parent>& parents, const View& out, int threads) {
    std::vector<std::size_t> order(out.shape.size());
    for (std::size_t axis = 0; axis < order.size(); ++axis) order[axis] = axis;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return out.strides[a] > out.strides[b]; });
    const auto cut = order.begin() + static_cast<Index>(outer_axes(parents, out, order));
    const std::vector<std::size_t> outer(order.begin(), cut), inner(cut, order.end());
    Index rows = 1, length = 1, work = out.count();
    for (std::size_t axis : outer) rows *= out.shape[axis];
    for (std::size_t axis : inner) length *= out.shape[axis];

    const auto factors = row_factors<Sum>(parents, out.shape[0]);
    std::vector<Source<Sum>> sources;
    Index piece = std::min(length, kTile);
    for (std::size_t m = 0; m < parents.size(); ++m) {
        if (factors[m].empty() || parents[m].weight.count() == 0) continue;
        sources.emplace_back(parents[m], out, outer, inner, factors[m]);
        if (!sources.back().divisible()) piece = length;
        work += parents[m].weight.count();
    }

    const bool streamed = out.count() * item_size(out.dtype) >= kStreamed;
    if (streamed) prefer_huge_pages(out.address, out.count() * item_size(out.dtype));
    const Index pieces = (length + piece - 1) / piece;
    const Index block = std::max<Index>(1, std::min(kBlock / piece, rows / (8 * threads)));
    const Index blocks = (rows + block - 1) / block;
    const auto body = [&](Index unit) {
        const Index begin = unit % pieces * piece, end = std::min(length, begin + piece);
        const Index first = unit / pieces * block, last = std::min(rows, first + block);
        std::vector<Sum> sum, scratch;
        for (Index r = first; r < last; ++r) {
            sum.assign(size(end - begin), Sum(0));
            for (const Source<Sum>& source : sources)
                source.add(sum.data(), r, begin, end, scratch);
            store_row(sum.data(), out.dtype,
                      out.data<char>() + (r * length + begin) * item_size(out.dtype), end - begin,
                      streamed);
        }
        if (streamed) stream_end();
    };
    parallel_for(blocks * pieces, work < kParallel ? 1 : threads, body);
}

}  // namespace

void project(const std::vector<Parent>& parents, const View& out, int threads) {
    if (out.count() == 0) return;
    bool wide = false;
    for (const Parent& parent : parents)
        wide = wide || (parent.present && parent.weight.dtype == DType::f64);
    if (wide)
        project_in<double>(parents, out, threads);
    else
        project_in<float>(parents, out, threads);
}

}  // namespace hetmerge
