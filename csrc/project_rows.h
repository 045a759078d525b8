// Arithmetic on one row: conversion, scaled addition, and moving entries by a table.
#pragma once

#include "view.h"

namespace hetmerge {

// sum[k] += factor * x[k * stride], or x[offset[k]] where offset is not null, for k in [0, n).
// x: of type `dtype` (f32, f64, f16 or bf16; f64 needs double sums).
void add_row(float* sum, DType dtype, const void* x, Index stride, const Index* offset,
             float factor, Index n);
void add_row(double* sum, DType dtype, const void* x, Index stride, const Index* offset,
             double factor, Index n);

// x[k] *= factor[k]
void scale_row(float* x, const float* factor, Index n);
void scale_row(double* x, const double* factor, Index n);

// Memory that is read next: fetched while a row is computed from what the caches hold.
struct Ahead {
    const char* begin = nullptr;
    Index bytes = 0;
};

// sum[k] += x[from[k]]
void gather_row(float* sum, const float* x, const std::int32_t* from, Index n, Ahead ahead);
void gather_row(double* sum, const double* x, const std::int32_t* from, Index n, Ahead ahead);

// out[k] = x[k], rounded to nearest even. `streamed`: past the caches, for results larger than
// they are; the caller ends its work with `stream_end`.
void store_row(const float* x, DType dtype, void* out, Index n, bool streamed);
void store_row(const double* x, DType dtype, void* out, Index n, bool streamed);
void stream_end();

}  // namespace hetmerge
