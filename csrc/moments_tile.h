// Products of packed panels: the innermost loops of the second moments.
#pragma once

#include <cstddef>

#include "view.h"

namespace hetmerge {

// How samples are packed. A panel is a column of 64-byte lines: 16 features of one sample in f32,
// 8 in f64, 16 features of two samples in bf16 (their pairs side by side).
enum class Packing { f32, f64, bf16 };

constexpr Index kLine = 64;

constexpr Index features_per_line(Packing packing) { return packing == Packing::f64 ? 8 : 16; }
constexpr Index samples_per_line(Packing packing) { return packing == Packing::bf16 ? 2 : 1; }

// A block of the product on this processor: `rows` features of the left panels, up to `panels`
// panels of the right ones.
struct Tile {
    Index rows, panels;
    // out[r * stride + c] += sum over `depth` lines of left[r] * right[c], summed in registers.
    // `left` is the line of the first row, `right` that of the first panel, the others follow
    // `panel_bytes` apart.
    void (*run)(const std::byte* left, const std::byte* right, Index panels, Index panel_bytes,
                Index depth, double* out, Index stride);
};

constexpr Index kMostRows = 8, kMostColumns = 48;  // of any tile

// Instruction sets; what the processor has not is passed over for the next lower one.
enum class Level { portable, avx2, avx512 };

Tile tile_for(Packing packing, Level most);

// VDPBF16PS is there: products of bfloat16 are as exact as in float32 and take half the time.
bool has_bf16(Level most);

}  // namespace hetmerge
