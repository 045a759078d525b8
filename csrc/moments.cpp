#include "moments.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <new>

#include "parallel.h"
#include "targets.h"

namespace hetmerge {
namespace {

// Samples summed in registers, in the precision of the packing, before they are added in float64.
// A float32 sum of 512 products is wrong by at most 512 * 2^-24 = 3e-5 of the sum of their absolute
// values (at random about 4e-7), and that does not grow with the number of samples.
constexpr Index kRun = 512;
constexpr Index kChunk = 4 * kRun;  // samples packed at a time
constexpr Index kColumns = 192;     // a block of the product, 128 x 192, stays in the second cache
constexpr Index kPackGroup = 8;     // panels packed by one thread at a time

struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, std::align_val_t(kLine)); }
};

// Samples of one chunk, run after run, and in each panel after panel.
class Packed {
  public:
    Packed(const Batch& batch, Packing packing, Index most)
        : batch_(batch), packing_(packing), lanes_(features_per_line(packing)) {
        panels_ = (batch.width() + lanes_ - 1) / lanes_;
        const Index runs = (most + kRun - 1) / kRun;
        bytes_.reset(static_cast<std::byte*>(::operator new(
            static_cast<std::size_t>(runs * panels_ * panel_bytes(std::min(kRun, most))),
            std::align_val_t(kLine))));
    }

    void fill(Index begin, Index end, const double* pivot, int threads) {
        begin_ = begin;
        end_ = end;
        const Index groups = (panels_ + kPackGroup - 1) / kPackGroup;
        parallel_for(groups * runs(), threads, [&](Index task) {
            const Index run = task / groups, group = task % groups;
            const Index last = std::min((group + 1) * kPackGroup, panels_);
            // Blocks of samples outside: the pages they lie in are used for all panels at once.
            for (Index k = 0; k < samples(run); k += kPackBlock)
                for (Index panel = group * kPackGroup; panel < last; ++panel)
                    batch_.pack(packing_, panel, first(run) + k,
                                first(run) + std::min(k + kPackBlock, samples(run)), pivot,
                                line(run, panel) + k / samples_per_line(packing_) * kLine);
        });
    }

    Index runs() const { return (end_ - begin_ + kRun - 1) / kRun; }
    Index depth(Index run) const {
        const Index per = samples_per_line(packing_);
        return (samples(run) + per - 1) / per;
    }
    Index panel_bytes(Index run_samples) const {
        const Index per = samples_per_line(packing_);
        return (run_samples + per - 1) / per * kLine;
    }
    Index panels() const { return panels_; }
    Index lanes() const { return lanes_; }
    Index width() const { return batch_.width(); }
    // The line of the first sample, from `feature` on.
    const std::byte* at(Index run, Index feature) const {
        return line(run, feature / lanes_) + feature % lanes_ * (kLine / lanes_);
    }
    Index stride(Index run) const { return depth(run) * kLine; }

  private:
    static constexpr Index kPackBlock = 64;

    Index first(Index run) const { return begin_ + run * kRun; }
    Index samples(Index run) const { return std::min(kRun, end_ - first(run)); }
    std::byte* line(Index run, Index panel) const {
        const Index before = run * panels_ * panel_bytes(kRun);
        return bytes_.get() + before + panel * panel_bytes(samples(run));
    }

    const Batch& batch_;
    Packing packing_;
    Index lanes_, panels_ = 0, begin_ = 0, end_ = 0;
    std::unique_ptr<std::byte, Free> bytes_;
};

// Rows [row, ...) and columns [column, ...) of a product: entry (i, j) at data + i * stride + j.
struct Block {
    double* data;
    Index stride, row, rows, column, columns;
    bool upper;  // entries below the diagonal are not needed
};

void add_tile(const Tile& tile, const Packed& left, const Packed& right, Index run, Index i,
              Index j, Index rows, Index columns, double* out, Index stride) {
    const Index panels = (columns + right.lanes() - 1) / right.lanes();
    const std::byte *a = left.at(run, i), *b = right.at(run, j);
    if (rows == tile.rows && columns == panels * right.lanes()) {
        tile.run(a, b, panels, right.stride(run), right.depth(run), out, stride);
        return;
    }
    double edge[kMostRows * kMostColumns] = {};
    tile.run(a, b, panels, right.stride(run), right.depth(run), edge, kMostColumns);
    for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; ++c) out[r * stride + c] += edge[r * kMostColumns + c];
}

void add_block(const Tile& tile, const Packed& left, const Packed& right, const Block& block) {
    const Index wide = tile.panels * right.lanes();
    for (Index run = 0; run < right.runs(); ++run)
        for (Index c = 0; c < block.columns; c += wide)
            for (Index r = 0; r < block.rows; r += tile.rows) {
                const Index i = block.row + r, j = block.column + c;
                if (block.upper && j + wide <= i) break;
                add_tile(tile, left, right, run, i, j, std::min(tile.rows, block.rows - r),
                         std::min(wide, block.columns - c), block.data + r * block.stride + c,
                         block.stride);
            }
}

std::vector<Block> upper_blocks(Index width, double* product) {
    std::vector<Block> blocks;
    for (Index row = 0; row < width; row += kPanel) {
        const Index rows = std::min(kPanel, width - row), stride = width - row;
        for (Index c = 0; c < stride; c += kColumns)
            blocks.push_back({product + c, stride, row, rows, row + c,
                              std::min(kColumns, stride - c), c < rows});
        product += rows * stride;
    }
    return blocks;
}

std::vector<Block> all_blocks(Index height, Index width, double* product) {
    std::vector<Block> blocks;
    for (Index row = 0; row < height; row += kPanel)
        for (Index c = 0; c < width; c += kColumns)
            blocks.push_back({product + row * width + c, width, row, std::min(kPanel, height - row),
                              c, std::min(kColumns, width - c), false});
    return blocks;
}

Packing joint(Packing a, Packing b) {
    if (a == b) return a;
    return a == Packing::f64 || b == Packing::f64 ? Packing::f64 : Packing::f32;
}

// `values` are lines of 8 features; taint becomes NaN where a value is NaN or infinite.
HETMERGE_CLONES void add_sums(const double* values, Index lines, double* total, double* squares,
                              double* taint) {
    double sum[8] = {}, square[8] = {}, bad[8] = {};
    for (Index k = 0; k < lines; ++k)
        for (Index l = 0; l < 8; ++l) {
            const double x = values[k * 8 + l];
            sum[l] += x;
            square[l] += x * x;
            bad[l] += 0.0 * x;
        }
    for (Index l = 0; l < 8; ++l) {
        total[l] += sum[l];
        squares[l] += square[l];
        taint[l] += bad[l];
    }
}

// Threads beyond this much work cost more to start than they save.
int useful(int threads, double operations) {
    return static_cast<int>(std::min<double>(threads, 1 + operations / 4e6));
}

}  // namespace

Sums sums(const Batch& batch, const double* pivot, int threads) {
    const Index width = batch.width(), samples = batch.samples();
    const auto size = static_cast<std::size_t>(width);
    const Index lanes = features_per_line(Packing::f64), block = 64;
    const Index group = 16 * lanes;
    Sums found{-1, std::vector<double>(size), std::vector<double>(size), std::vector<double>(size)};
    std::vector<char> bad(size, 0);
    if (samples == 0) return found;
    threads = useful(threads, 4.0 * static_cast<double>(samples * width));
    parallel_for((width + group - 1) / group, threads, [&](Index task) {
        alignas(64) double values[64 * 8], total[16 * 8] = {}, squares[16 * 8] = {},
                                                      taint[16 * 8] = {};
        const Index begin = task * group, end = std::min(begin + group, width);
        for (Index f = begin; f < end; f += lanes) {
            batch.pack(Packing::f64, f / lanes, 0, 1, nullptr,
                       reinterpret_cast<std::byte*>(values));
            for (Index l = 0; l < std::min(lanes, end - f); ++l)
                found.shift[static_cast<std::size_t>(f + l)] = pivot ? pivot[f + l] : values[l];
        }
        for (Index k = 0; k < samples; k += block)
            for (Index f = begin; f < end; f += lanes) {
                const Index count = std::min(block, samples - k);
                batch.pack(Packing::f64, f / lanes, k, k + count, found.shift.data(),
                           reinterpret_cast<std::byte*>(values));
                add_sums(values, count, total + (f - begin), squares + (f - begin),
                         taint + (f - begin));
            }
        for (Index f = begin; f < end; ++f) {
            found.total[static_cast<std::size_t>(f)] = total[f - begin];
            found.squares[static_cast<std::size_t>(f)] = squares[f - begin];
            bad[static_cast<std::size_t>(f)] = !(taint[f - begin] == 0.0);
        }
    });
    for (std::size_t m = batch.sources().size(); m-- > 0;)
        for (Index f = batch.start(static_cast<Index>(m));
             f < batch.start(static_cast<Index>(m + 1)); ++f)
            if (bad[static_cast<std::size_t>(f)]) found.unfit = static_cast<Index>(m);
    return found;
}

bool has_pivot(const SumsState& state, Index width) {
    return width == 0 || !std::isnan(state.pivot[0]);
}

bool add_if_near(const Sums& found, Index samples, const SumsState& state, double far) {
    const std::size_t width = found.total.size();
    if (!has_pivot(state, static_cast<Index>(width))) return false;
    const auto count = static_cast<double>(*state.count + samples);
    for (std::size_t f = 0; f < width && count > 0; ++f) {
        const double mean = (state.total[f] + found.total[f]) / count;
        const double variance = (state.squares[f] + found.squares[f]) / count - mean * mean;
        if (mean * mean > far * far * std::max(variance, 0.0)) return false;
    }
    for (std::size_t f = 0; f < width; ++f) {
        state.total[f] += found.total[f];
        state.squares[f] += found.squares[f];
    }
    *state.count += samples;
    return true;
}

Index panels_size(Index width) {
    Index size = 0;
    for (Index row = 0; row < width; row += kPanel)
        size += std::min(kPanel, width - row) * (width - row);
    return size;
}

void add_gram(const Batch& batch, const double* pivot, double* product, int threads, Level most) {
    const Packing packing = batch.packing(pivot, most);
    const Tile tile = tile_for(packing, most);
    const Index samples = batch.samples(), width = batch.width();
    const double work =
        static_cast<double>(samples) * static_cast<double>(width) * static_cast<double>(width);
    threads = useful(threads, work);
    Packed packed(batch, packing, std::min(kChunk, samples));
    const std::vector<Block> blocks = upper_blocks(width, product);
    for (Index begin = 0; begin < samples; begin += kChunk) {
        packed.fill(begin, std::min(begin + kChunk, samples), pivot, threads);
        parallel_for(static_cast<Index>(blocks.size()), threads, [&](Index k) {
            add_block(tile, packed, packed, blocks[static_cast<std::size_t>(k)]);
        });
    }
}

void add_cross(const Batch& left, const Batch& right, const double* left_pivot,
               const double* right_pivot, double* product, int threads, Level most) {
    const Packing packing = joint(left.packing(left_pivot, most), right.packing(right_pivot, most));
    const Tile tile = tile_for(packing, most);
    const Index samples = left.samples();
    const double work = 2.0 * static_cast<double>(samples) * static_cast<double>(left.width()) *
                        static_cast<double>(right.width());
    threads = useful(threads, work);
    Packed a(left, packing, std::min(kChunk, samples)),
        b(right, packing, std::min(kChunk, samples));
    const std::vector<Block> blocks = all_blocks(left.width(), right.width(), product);
    for (Index begin = 0; begin < samples; begin += kChunk) {
        const Index end = std::min(begin + kChunk, samples);
        a.fill(begin, end, left_pivot, threads);
        b.fill(begin, end, right_pivot, threads);
        parallel_for(static_cast<Index>(blocks.size()), threads,
                     [&](Index k) { add_block(tile, a, b, blocks[static_cast<std::size_t>(k)]); });
    }
}

}  // namespace hetmerge
