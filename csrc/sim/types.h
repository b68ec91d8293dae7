// Element types of the vector unit and the conversions between them, every rounding mode bit exact.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace AscendC {

enum class RoundMode {
    CAST_NONE,  // exact where the target holds every source value; else as the pair defines
    CAST_RINT,  // nearest, ties to even
    CAST_FLOOR,
    CAST_CEIL,
    CAST_ROUND,  // nearest, ties away from zero
    CAST_TRUNC,
    CAST_ODD,  // toward zero, then the last bit set if anything was lost
};

}  // namespace AscendC

namespace sim {

using AscendC::RoundMode;

template <class To, class From>
inline To BitCast(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// 1 if a magnitude whose last kept bit is `odd` and whose dropped bits are `rest` (half a unit
// being `tie`) is to be raised by one unit.
template <RoundMode M>
constexpr uint32_t RoundsUp(bool negative, uint32_t odd, uint32_t rest, uint32_t tie)
{
    switch (M) {
        case RoundMode::CAST_NONE:
        case RoundMode::CAST_RINT: return (rest > tie) | ((rest == tie) & odd);
        case RoundMode::CAST_FLOOR: return negative & (rest != 0);
        case RoundMode::CAST_CEIL: return !negative & (rest != 0);
        case RoundMode::CAST_ROUND: return rest >= tie;
        case RoundMode::CAST_TRUNC: return 0;
        case RoundMode::CAST_ODD: return (odd ^ 1) & (rest != 0);
    }
    return 0;
}

inline float Bf16BitsToFloat(uint16_t bits)
{
    return BitCast<float>(static_cast<uint32_t>(bits) << 16);
}

template <RoundMode M>
inline uint16_t FloatToBf16Bits(float value)
{
    uint32_t u = BitCast<uint32_t>(value);
    uint32_t kept = u >> 16;
    uint32_t rounded;
    if constexpr (M == RoundMode::CAST_RINT) {  // as RoundsUp does, in fewer instructions
        rounded = (u + 0x7fff + (kept & 1)) >> 16;
    } else {
        rounded = kept + RoundsUp<M>((u >> 31) != 0, kept & 1, u & 0xffff, 0x8000);
    }
    return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

inline float HalfBitsToFloat(uint16_t bits)
{
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    uint32_t magnitude = bits & 0x7fff;
    if (magnitude > 0x7c00) return BitCast<float>(sign | 0x7fc00000 | magnitude << 13);
    if (magnitude == 0x7c00) return BitCast<float>(sign | 0x7f800000);
    if (magnitude >= 0x0400) return BitCast<float>(sign | ((magnitude << 13) + 0x38000000));
    float tiny = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal halves are normal floats
    return sign != 0 ? -tiny : tiny;
}

template <RoundMode M>
inline uint16_t FloatToHalfBits(float value)
{
    uint32_t u = BitCast<uint32_t>(value);
    uint32_t sign = (u >> 16) & 0x8000;
    uint32_t a = u & 0x7fffffff;
    if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((a >> 13) & 0x3ff));
    if (a == 0x7f800000) return static_cast<uint16_t>(sign | 0x7c00);
    uint32_t kept, rest, tie = 0x1000;
    if (a >= 0x47800000) {  // 2^16 and above: beyond the largest half by more than half a unit
        kept = 0x7bff;
        rest = 0x1fff;
    } else if (a >= 0x38800000) {
        kept = (a - 0x38000000) >> 13;
        rest = a & 0x1fff;
    } else if (a >= 0x33000000) {  // 2^-25 and above: subnormal half, or rounds to the smallest one
        uint32_t shift = 126 - (a >> 23);
        uint32_t mantissa = (a & 0x7fffff) | 0x800000;
        kept = mantissa >> shift;
        rest = mantissa & ((1u << shift) - 1);
        tie = 1u << (shift - 1);
    } else {
        kept = 0;
        rest = a != 0;
    }
    return static_cast<uint16_t>(sign | (kept + RoundsUp<M>(sign != 0, kept & 1, rest, tie)));
}

template <RoundMode M>
inline int32_t FloatToInt32(float value)  // saturates; NaN gives 0
{
    uint32_t u = BitCast<uint32_t>(value);
    bool negative = (u >> 31) != 0;
    uint32_t exponent = (u >> 23) & 0xff;
    uint32_t mantissa = (u & 0x7fffff) | (exponent != 0 ? 0x800000 : 0);
    if (exponent >= 127 + 31) {
        if (exponent == 0xff && (u & 0x7fffff) != 0) return 0;
        return negative ? INT32_MIN : INT32_MAX;
    }
    uint32_t magnitude;
    if (exponent >= 150) {
        magnitude = mantissa << (exponent - 150);
    } else {
        uint32_t shift = exponent > 150 - 25 ? 150 - exponent : 25;
        uint32_t rest = mantissa & ((1u << shift) - 1);
        if (exponent < 150 - 24)
            rest = mantissa != 0;  // below a quarter: nonzero, and less than half a unit
        magnitude = (exponent < 150 - 24 ? 0 : mantissa >> shift);
        magnitude += RoundsUp<M>(negative, magnitude & 1, rest, 1u << (shift - 1));
    }
    return negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
}

template <RoundMode M>
inline float Int32ToFloat(int32_t value)
{
    bool negative = value < 0;
    uint32_t magnitude =
        negative ? 0u - static_cast<uint32_t>(value) : static_cast<uint32_t>(value);
    uint32_t shift =
        magnitude >= 1u << 24 ? 8 - static_cast<uint32_t>(__builtin_clz(magnitude)) : 0;
    uint32_t kept = magnitude >> shift;
    if (shift != 0)
        kept += RoundsUp<M>(negative, kept & 1, magnitude & ((1u << shift) - 1), 1u << (shift - 1));
    float result = static_cast<float>(kept) * static_cast<float>(1u << shift);
    return negative ? -result : result;
}

// Storage with explicit conversions. Arithmetic belongs to the vector unit, so neither type has
// operators.
struct half {
    uint16_t bits;
    half() = default;
    explicit half(float value) : bits(FloatToHalfBits<RoundMode::CAST_RINT>(value)) {}
    explicit operator float() const { return HalfBitsToFloat(bits); }
};

struct bfloat16_t {
    uint16_t bits;
    bfloat16_t() = default;
    explicit bfloat16_t(float value) : bits(FloatToBf16Bits<RoundMode::CAST_RINT>(value)) {}
    explicit operator float() const { return Bf16BitsToFloat(bits); }
};

static_assert(sizeof(half) == 2 && std::is_trivial_v<half>);
static_assert(sizeof(bfloat16_t) == 2 && std::is_trivial_v<bfloat16_t>);

template <class T, class... Ts>
constexpr bool kIsOneOf = (std::is_same_v<T, Ts> || ...);

// Array conversions: what Cast runs. float <-> 16 bits must keep up with memory; the rest need not.
template <RoundMode M>
inline void Convert(uint32_t n, float* dst, const bfloat16_t* src)
{
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; ++i) dst[i] = Bf16BitsToFloat(src[i].bits);
}

template <RoundMode M>
inline void Convert(uint32_t n, bfloat16_t* dst, const float* src)
{
#pragma GCC ivdep
    for (uint32_t i = 0; i < n; ++i) dst[i].bits = FloatToBf16Bits<M>(src[i]);
}

template <RoundMode M>
inline void Convert(uint32_t n, float* dst, const half* src)
{
    uint32_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(
            dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
    }
#endif
    for (; i < n; ++i) dst[i] = HalfBitsToFloat(src[i].bits);
}

template <RoundMode M>
inline void Convert(uint32_t n, half* dst, const float* src)
{
    uint32_t i = 0;
#if defined(__F16C__)
    if constexpr (M == RoundMode::CAST_RINT || M == RoundMode::CAST_NONE) {
        for (; i + 8 <= n; i += 8) {
            __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), packed);
        }
    }
#endif
    for (; i < n; ++i) dst[i].bits = FloatToHalfBits<M>(src[i]);
}

template <RoundMode M>
inline void Convert(uint32_t n, int32_t* dst, const float* src)
{
    for (uint32_t i = 0; i < n; ++i) dst[i] = FloatToInt32<M>(src[i]);
}

template <RoundMode M>
inline void Convert(uint32_t n, float* dst, const int32_t* src)
{
    for (uint32_t i = 0; i < n; ++i) dst[i] = Int32ToFloat<M>(src[i]);
}

template <RoundMode M>
inline void Convert(uint32_t n, int32_t* dst, const bfloat16_t* src)
{
    for (uint32_t i = 0; i < n; ++i) dst[i] = FloatToInt32<M>(Bf16BitsToFloat(src[i].bits));
}

}  // namespace sim

using sim::bfloat16_t;  // built-in types of the device compiler, known everywhere
using sim::half;
