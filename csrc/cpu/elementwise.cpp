#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace pyrerank::cpu
{
namespace
{

constexpr int64_t kLanes = 16;  // sums of one row, added up at its end in a fixed order

template <typename Square>
float Sum(int64_t count, Square square)
{
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += square(i + lane);
    for (; i < count; ++i) lanes[i % kLanes] += square(i);
    for (int64_t half = kLanes / 2; half; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

template <typename T>
float InverseNorm(const T* x, int64_t width, float eps)
{
    const float squares = Sum(width, [x](int64_t i) { return ToFloat(x[i]) * ToFloat(x[i]); });
    return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

template <typename T, typename A>
void Rotate(T* __restrict x, float* __restrict values, const T* __restrict weight, float eps,
            const A* __restrict cos, const A* __restrict sin, int64_t half)
{
    if (weight == nullptr) {
        for (int64_t i = 0; i < 2 * half; ++i) values[i] = ToFloat(x[i]);
    } else {
        const float scale = InverseNorm(x, 2 * half, eps);
        for (int64_t i = 0; i < 2 * half; ++i) values[i] = ToFloat(x[i]) * scale * ToFloat(weight[i]);
    }
    const float* other = values + half;
    for (int64_t i = 0; i < half; ++i)
        Store(x + i, values[i] * ToFloat(cos[i]) - other[i] * ToFloat(sin[i]));
    for (int64_t i = 0; i < half; ++i)
        Store(x + half + i, other[i] * ToFloat(cos[half + i]) + values[i] * ToFloat(sin[half + i]));
}

// x / (1 + e^-z) in float32, for any x: beyond 2^-126 a quotient of it would no longer be near 0.
inline float Gated(float x, float z)
{
    const float power = -z * kLog2E;
    const float gated = x / (1.0f + Exp2(std::min(power, 126.0f)));
    return power > 126.0f ? 0.0f : gated;
}

}  // namespace

template <typename S, typename T>
void AddRmsNorm(const S* x, const T* y, const T* weight, S* total, T* normed, int64_t rows,
                int64_t width, float eps, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const S* from = x + row * width;
        if (y != nullptr) {
            const T* other = y + row * width;
            S* sum = total + row * width;
            for (int64_t i = 0; i < width; ++i) Store(sum + i, ToFloat(from[i]) + ToFloat(other[i]));
            from = sum;
        }
        const float scale = InverseNorm(from, width, eps);
        T* to = normed + row * width;
        for (int64_t i = 0; i < width; ++i)
            Store(to + i, ToFloat(from[i]) * scale * ToFloat(weight[i]));
    }
}

template <typename T, typename A>
void NormRotate(T* x, int64_t row_stride, const T* weight, float eps, const A* cos, const A* sin,
                int64_t rows, int64_t heads, int64_t head_dim, int threads)
{
    const int64_t half = head_dim / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        float values[kMaxHeadDim];  // a copy, which cannot overlap with what is written
        const A* c = cos + row * head_dim;
        const A* s = sin + row * head_dim;
        for (int64_t head = 0; head < heads; ++head) {
            T* to = x + row * row_stride + head * head_dim;
            Rotate(to, values, weight, eps, c, s, half);
        }
    }
}

template <typename T>
void SwiGlu(const T* x, T* out, int64_t rows, int64_t width, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* gate = x + 2 * row * width;
        const T* up = gate + width;
        T* to = out + row * width;
        for (int64_t i = 0; i < width; ++i) {
            const float g = ToFloat(gate[i]);
            Store(to + i, Gated(g, g) * ToFloat(up[i]));
        }
    }
}

template <typename T>
void Gelu(const T* x, T* out, int64_t rows, int64_t width, int threads)
{
    constexpr float kTwice = 1.59576912f;  // 2 sqrt(2 / pi): tanh(z) = 2 / (1 + e^-2z) - 1
    constexpr float kCubic = 0.044715f;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = row * width; i < (row + 1) * width; ++i) {
            const float value = ToFloat(x[i]);
            Store(out + i, Gated(value, kTwice * (value + kCubic * value * value * value)));
        }
}

template void AddRmsNorm(const float*, const float*, const float*, float*, float*, int64_t,
                         int64_t, float, int);
template void AddRmsNorm(const Bfloat16*, const Bfloat16*, const Bfloat16*, Bfloat16*, Bfloat16*,
                         int64_t, int64_t, float, int);
template void AddRmsNorm(const float*, const Bfloat16*, const Bfloat16*, float*, Bfloat16*, int64_t,
                         int64_t, float, int);
template void NormRotate(float*, int64_t, const float*, float, const float*, const float*, int64_t,
                         int64_t, int64_t, int);
template void NormRotate(Bfloat16*, int64_t, const Bfloat16*, float, const Bfloat16*,
                         const Bfloat16*, int64_t, int64_t, int64_t, int);
template void NormRotate(Bfloat16*, int64_t, const Bfloat16*, float, const float*, const float*,
                         int64_t, int64_t, int64_t, int);
template void SwiGlu(const float*, float*, int64_t, int64_t, int);
template void SwiGlu(const Bfloat16*, Bfloat16*, int64_t, int64_t, int);
template void Gelu(const float*, float*, int64_t, int64_t, int);
template void Gelu(const Bfloat16*, Bfloat16*, int64_t, int64_t, int);

}  // namespace pyrerank::cpu
