// Numbers of the CPU kernels: bfloat16 to float32 and back, threads, and an exponential that
// compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyrerank::cpu
{

using Bfloat16 = uint16_t;  // its bits

inline float ToFloat(float x) { return x; }

inline float ToFloat(Bfloat16 x)
{
    const uint32_t bits = uint32_t{x} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline void Store(float* to, float x) { *to = x; }

// Rounds to nearest even; a NaN stays one.
inline void Store(Bfloat16* to, float x)
{
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *to = static_cast<Bfloat16>(x == x ? rounded : 0x7fc0);
}

// 2^x, for x <= 127, 0 below -126: relative error under 2e-7. x = n + r, |r| <= 1/2; the polynomial
// is Taylor's of 2^r to r^7.
inline float Exp2(float x)
{
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float clamped = x < -126.0f ? -126.0f : x;
    const float n = (clamped + kRound) - kRound;
    const float r = clamped - n;
    float y = 1.52527338e-5f;
    y = y * r + 1.54035304e-4f;
    y = y * r + 1.33335581e-3f;
    y = y * r + 9.61812911e-3f;
    y = y * r + 5.55041087e-2f;
    y = y * r + 2.40226507e-1f;
    y = y * r + 6.93147181e-1f;
    y = y * r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &y, sizeof(bits));
    bits += static_cast<uint32_t>(static_cast<int32_t>(n)) << 23;
    std::memcpy(&y, &bits, sizeof(y));
    return x < -126.0f ? 0.0f : y;
}

constexpr float kLog2E = 1.44269504f;

}  // namespace pyrerank::cpu
