// Kernels for the host's processor: they compute the parts of a layer that are not matrix products.
// Each kernel fuses several operations: it reads a number once, computes in float32, and writes the
// result once. Rows are independent, so a row has the same bits alone and in any batch, with any
// number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "arithmetic.h"

namespace pyrerank::cpu
{

// Computes total = x + y and normed = total / sqrt(mean(total^2) + eps) * weight; x, y, total and
// normed are [rows, width]. If y is null, nothing is added and total is not written. total may be
// x. S is the type of x and total: T, or float, so that layers add up without rounding to T.
template <typename S, typename T>
void AddRmsNorm(const S* x, const T* y, const T* weight, S* total, T* normed, int64_t rows,
                int64_t width, float eps, int threads);

constexpr int64_t kMaxHeadDim = 256;  // the largest head_dim; it must be even

// Norms each head of x as AddRmsNorm does, then rotates its pairs (i, i + head_dim / 2), in place.
// If weight is null, heads are not normed. x is [rows, heads, head_dim], and its rows lie
// row_stride elements apart; cos and sin are [rows, head_dim], of type A.
template <typename T, typename A>
void NormRotate(T* x, int64_t row_stride, const T* weight, float eps, const A* cos, const A* sin,
                int64_t rows, int64_t heads, int64_t head_dim, int threads);

// Computes out = silu(gate) * up, which is [rows, width]. gate and up lie side by side in x, which
// is [rows, 2 * width].
template <typename T>
void SwiGlu(const T* x, T* out, int64_t rows, int64_t width, int threads);

// Computes GELU, in its tanh form, of x [rows, width].
template <typename T>
void Gelu(const T* x, T* out, int64_t rows, int64_t width, int threads);

template <typename T>
struct Packed
{
    const T* data;
    int64_t row_stride;  // elements between the starts of two rows
    int64_t heads;
};

// Computes softmax(query key^T / sqrt(head_dim)) value, for each sequence by itself.
//
// query       holds the rows of all sequences, one after the other; sequence b has lengths[b]
// kv_rows     says which rows of key and value the sequences attend to: kv_lengths[b] for sequence
//             b, one sequence after the other. If it is null, the rows lie in this order
// causal      means that the last query sees all keys, the query before it one key less, and so on
// out         is [rows of query, query.heads, head_dim]
template <typename T>
void Attention(Packed<T> query, Packed<T> key, Packed<T> value, const std::vector<int64_t>& lengths,
               const int32_t* kv_rows, const std::vector<int64_t>& kv_lengths, bool causal, T* out,
               int64_t head_dim, int threads);

}  // namespace pyrerank::cpu
