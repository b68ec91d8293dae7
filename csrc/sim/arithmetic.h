// What the elementwise instructions compute, over arrays of lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "types.h"

namespace sim {

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSub = [](auto a, auto b) { return a - b; };
constexpr auto kMul = [](auto a, auto b) { return a * b; };
constexpr auto kDiv = [](auto a, auto b) { return a / b; };
constexpr auto kMax = [](auto a, auto b) { return a > b ? a : b; };  // a NaN in a gives b
constexpr auto kMin = [](auto a, auto b) { return a < b ? a : b; };

// Exp and Ln are rounded from double: the bits do not depend on the C library or the vector width.
constexpr auto kExp = [](float a) { return static_cast<float>(std::exp(static_cast<double>(a))); };
constexpr auto kLn = [](float a) { return static_cast<float>(std::log(static_cast<double>(a))); };
constexpr auto kSqrt = [](float a) { return std::sqrt(a); };
constexpr auto kAbs = [](float a) { return std::fabs(a); };

// Reciprocal and Rsqrt are approximations on the device: off by the documented order, up or down
// with the last bit of the argument, so that no two errors cancel out.
template <class T>
float Approximate(float exact, float argument)
{
    constexpr float kError = std::is_same_v<T, half> ? 1e-3f : 1e-4f;
    return exact * ((BitCast<uint32_t>(argument) & 1) != 0 ? 1.0f + kError : 1.0f - kError);
}
template <class T>
constexpr auto kReciprocal = [](float a) { return Approximate<T>(1.0f / a, a); };
template <class T>
constexpr auto kRsqrt = [](float a) { return Approximate<T>(1.0f / std::sqrt(a), a); };

// half goes through float, which rounds the same; integers through 64 bits, and wrap.
template <class Op, class T>
T Apply(Op op, T a, T b)
{
    if constexpr (std::is_same_v<T, half>) {
        return half(op(static_cast<float>(a), static_cast<float>(b)));
    } else if constexpr (std::is_integral_v<T>) {
        return static_cast<T>(op(static_cast<int64_t>(a), static_cast<int64_t>(b)));
    } else {
        return op(a, b);
    }
}

template <class Op, class T>
T Apply(Op op, T a)
{
    if constexpr (std::is_same_v<T, half>) {
        return half(op(static_cast<float>(a)));
    } else {
        return op(a);
    }
}

// dst is a source or apart from it, so no lane depends on another.
template <class Op>
auto BinaryKernel(Op op)
{
    return [op](uint32_t n, auto* d, const auto* a, const auto* b) {
#pragma GCC ivdep
        for (uint32_t i = 0; i < n; ++i) d[i] = Apply(op, a[i], b[i]);
    };
}

template <class T, class Op>
auto ScalarKernel(Op op, T scalar)
{
    return [op, scalar](uint32_t n, T* d, const T* a) {
#pragma GCC ivdep
        for (uint32_t i = 0; i < n; ++i) d[i] = Apply(op, a[i], scalar);
    };
}

template <class Op>
auto UnaryKernel(Op op)
{
    return [op](uint32_t n, auto* d, const auto* a) {
#pragma GCC ivdep
        for (uint32_t i = 0; i < n; ++i) d[i] = Apply(op, a[i]);
    };
}

// d += a * b, product and sum rounded separately.
struct MulAddKernel {
    template <class D, class S>
    void operator()(uint32_t n, D* d, const S* a, const S* b) const
    {
        if (a == b) return Run(n, d, a, a);  // squares: a load less, and loads are what it waits for
        Run(n, d, a, b);
    }
    template <class D, class S>
    static void Run(uint32_t n, D* d, const S* a, const S* b)
    {
#pragma GCC ivdep
        for (uint32_t i = 0; i < n; ++i) d[i] = Sum(d[i], a[i], b[i]);
    }
    template <class D, class S>
    static D Sum(D d, S a, S b)
    {
        float product = static_cast<float>(a) * static_cast<float>(b);
        if constexpr (std::is_same_v<D, half>) product = static_cast<float>(half(product));
        return D(static_cast<float>(d) + product);
    }
};

template <class S>
struct AxpyKernel {
    S scalar;
    template <class D>
    void operator()(uint32_t n, D* d, const S* a) const
    {
#pragma GCC ivdep
        for (uint32_t i = 0; i < n; ++i) d[i] = MulAddKernel::Sum(d[i], a[i], scalar);
    }
};

template <class D, class S>
constexpr bool kMulAddPair = (std::is_same_v<D, S> && kIsOneOf<D, half, float>) ||
                             (std::is_same_v<D, float> && std::is_same_v<S, half>);

}  // namespace sim
