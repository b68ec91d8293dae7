// The matrix product inside attention: a few rows by a panel of columns, with all sums in registers.
//
// The second operand is packed for it: kDepth neighbouring rows side by side, as one instruction
// takes them. bfloat16 is multiplied in pairs where the processor does so (AVX512-BF16), and is
// converted to float32 elsewhere. A sum is formed in the order of the rows of the second operand,
// wherever it lies in the product.
#pragma once

#include <algorithm>

#include "arithmetic.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace pyrerank::cpu
{

#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;  // 24 sums, 4 columns and an element of a row: 29 of 32
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr int kLanes = 4, kVectors = 2;
#endif
constexpr int kTileRows = 6;
constexpr int kPanel = kLanes * kVectors;

typedef float Sums __attribute__((vector_size(kLanes * sizeof(float))));

template <typename Vector, typename T>
Vector Load(const T* from)
{
    Vector value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

// How elements of type First, in rows, meet packed ones of type Second.
template <typename First>
struct Product;

template <>
struct Product<float>
{
    using Second = float;
    using Columns = Sums;
    static constexpr int kDepth = 1;

    static Second Pack(const float* from) { return from[0]; }
    static Second Pack(const Bfloat16* from) { return ToFloat(from[0]); }
    static Sums Add(Sums sums, const float* row, Columns columns) { return sums + *row * columns; }
};

#ifdef __AVX512BF16__
template <>
struct Product<Bfloat16>
{
    using Second = uint32_t;
    using Columns = __m512bh;
    static constexpr int kDepth = 2;

    static Second Pack(const Bfloat16* from) { return Load<uint32_t>(from); }
    static Sums Add(Sums sums, const Bfloat16* row, Columns columns)
    {
        const auto pair = (__m512bh)_mm512_set1_epi32(Load<int32_t>(row));
        return (Sums)_mm512_dpbf16_ps((__m512)sums, pair, columns);
    }
};
using Bfloat16Operand = Bfloat16;
#else
using Bfloat16Operand = float;
#endif

// C [Rows, kLanes Vectors] = A B, or C + A B with `add`; A [Rows, kDepth steps], B [steps, ldb].
template <typename First, int Rows, int Vectors>
void Tile(const First* a, int64_t lda, const typename Product<First>::Second* b, int64_t ldb,
          int64_t steps, float* c, int64_t ldc, bool add)
{
    using P = Product<First>;
    Sums sums[Rows][Vectors] = {};
    if (add)
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Vectors; ++j) sums[i][j] = Load<Sums>(c + i * ldc + j * kLanes);
    for (int64_t step = 0; step < steps; ++step) {
        typename P::Columns columns[Vectors];
        for (int j = 0; j < Vectors; ++j)
            columns[j] = Load<typename P::Columns>(b + step * ldb + j * kLanes);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Vectors; ++j)
                sums[i][j] = P::Add(sums[i][j], a + i * lda + P::kDepth * step, columns[j]);
    }
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Vectors; ++j)
            std::memcpy(c + i * ldc + j * kLanes, &sums[i][j], sizeof(Sums));
}

template <typename First, int Rows, int Vectors = kVectors>
void Narrow(int64_t vectors, const First* a, int64_t lda, const typename Product<First>::Second* b,
            int64_t ldb, int64_t steps, float* c, int64_t ldc, bool add)
{
    if (vectors >= Vectors) return Tile<First, Rows, Vectors>(a, lda, b, ldb, steps, c, ldc, add);
    if constexpr (Vectors > 1)
        Narrow<First, Rows, Vectors - 1>(vectors, a, lda, b, ldb, steps, c, ldc, add);
}

template <typename First, int Rows = kTileRows>
void Short(int64_t rows, int64_t vectors, const First* a, int64_t lda,
           const typename Product<First>::Second* b, int64_t ldb, int64_t steps, float* c,
           int64_t ldc, bool add)
{
    if (rows >= Rows) return Narrow<First, Rows>(vectors, a, lda, b, ldb, steps, c, ldc, add);
    if constexpr (Rows > 1)
        Short<First, Rows - 1>(rows, vectors, a, lda, b, ldb, steps, c, ldc, add);
}

// The same for any number of rows and vectors; panels of kPanel columns lie panel_stride apart.
template <typename First>
void Multiply(const First* a, int64_t lda, int64_t rows, const typename Product<First>::Second* b,
              int64_t ldb, int64_t panel_stride, int64_t vectors, int64_t steps, float* c,
              int64_t ldc, bool add)
{
    for (int64_t v = 0; v < vectors; v += kVectors, b += panel_stride)
        for (int64_t i = 0; i < rows; i += kTileRows)
            Short<First>(rows - i, vectors - v, a + i * lda, lda, b, ldb, steps,
                         c + i * ldc + v * kLanes, ldc, add);
}

}  // namespace pyrerank::cpu
