// What of a layer is no matrix product, fused, for the host's processor: float32 arithmetic between
// one read and one write of each number. Rows are independent: one has the same bits alone and in
// any batch, with any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"

namespace pyrerank::cpu
{

// total = x + y, and normed = total / sqrt(mean(total^2) + eps) * weight, of [rows, width] each.
// y null: no addition, and total is not written. total may be x.
// S is the type of sums: T, or float, in which nothing of a sum is rounded away between layers.
template <typename S, typename T>
void AddRmsNorm(const S* x, const T* y, const T* weight, S* total, T* normed, int64_t rows,
                int64_t width, float eps, int threads);

constexpr int64_t kMaxHeadDim = 256;  // of an even head_dim

// Rotates pairs (i, i + head_dim / 2) of x [rows, heads, head_dim] in place; rows lie row_stride
// apart. weight null: no norm of each head before that, as `AddRmsNorm`.
// cos, sin [rows, head_dim], of which A is the type.
template <typename T, typename A>
void NormRotate(T* x, int64_t row_stride, const T* weight, float eps, const A* cos, const A* sin,
                int64_t rows, int64_t heads, int64_t head_dim, int threads);

// out [rows, width] = silu(gate) * up, where gate and up lie side by side in x [rows, 2 width].
template <typename T>
void SwiGlu(const T* x, T* out, int64_t rows, int64_t width, int threads);

// GELU in its tanh form of x [rows, width].
template <typename T>
void Gelu(const T* x, T* out, int64_t rows, int64_t width, int threads);

template <typename T>
struct Packed
{
    const T* data;
    int64_t row_stride;  // elements
    int64_t heads;
};

// softmax(query key^T / sqrt(head_dim)) value, for each sequence by itself.
//
// query       rows of all sequences, lengths[b] of sequence b, one after the other
// kv_rows     rows of key and value, kv_lengths[b] of sequence b; null: sequence b's own
// causal      the last query sees all keys, the one before it one key less, ...
// out         [rows of query, query.heads, head_dim]
template <typename T>
void Attention(Packed<T> query, Packed<T> key, Packed<T> value, const std::vector<int64_t>& lengths,
               const int32_t* kv_rows, const std::vector<int64_t>& kv_lengths, bool causal, T* out,
               int64_t head_dim, int threads);

}  // namespace pyrerank::cpu
