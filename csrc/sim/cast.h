// Cast between element types: the pairs and rounding modes of A2.
#pragma once

#include "vector.h"

namespace sim {

constexpr uint32_t Modes() { return 0; }
template <class... M>
constexpr uint32_t Modes(RoundMode first, M... rest)
{
    return 1u << static_cast<uint32_t>(first) | Modes(rest...);
}

constexpr uint32_t kExactOnly = Modes(RoundMode::CAST_NONE);
constexpr uint32_t kRounding =
    Modes(RoundMode::CAST_RINT, RoundMode::CAST_FLOOR, RoundMode::CAST_CEIL, RoundMode::CAST_ROUND,
          RoundMode::CAST_TRUNC);

// The rounding modes of a pair as a set of bits; 0: the pair does not exist.
template <class D, class S>
constexpr uint32_t kCastModes = 0;
template <>
constexpr uint32_t kCastModes<float, bfloat16_t> = kExactOnly;
template <>
constexpr uint32_t kCastModes<float, half> = kExactOnly;
template <>
constexpr uint32_t kCastModes<bfloat16_t, float> = kRounding;
template <>
constexpr uint32_t kCastModes<half, float> =
    kRounding | Modes(RoundMode::CAST_ODD, RoundMode::CAST_NONE);
template <>
constexpr uint32_t kCastModes<int32_t, float> = kRounding;
template <>
constexpr uint32_t kCastModes<float, int32_t> = kRounding | kExactOnly;
template <>
constexpr uint32_t kCastModes<int32_t, bfloat16_t> = kRounding;

struct CastKernel {
    RoundMode mode;

    template <class D, class S>
    void operator()(uint32_t n, D* d, const S* s) const
    {
        if constexpr (kCastModes<D, S> == kExactOnly) {
            Convert<RoundMode::CAST_NONE>(n, d, s);
        } else {
            switch (mode) {
                case RoundMode::CAST_NONE:
                case RoundMode::CAST_RINT: Convert<RoundMode::CAST_RINT>(n, d, s); break;
                case RoundMode::CAST_FLOOR: Convert<RoundMode::CAST_FLOOR>(n, d, s); break;
                case RoundMode::CAST_CEIL: Convert<RoundMode::CAST_CEIL>(n, d, s); break;
                case RoundMode::CAST_ROUND: Convert<RoundMode::CAST_ROUND>(n, d, s); break;
                case RoundMode::CAST_TRUNC: Convert<RoundMode::CAST_TRUNC>(n, d, s); break;
                case RoundMode::CAST_ODD: Convert<RoundMode::CAST_ODD>(n, d, s); break;
            }
        }
    }
};

template <class D, class S>
CastKernel CheckedCast([[maybe_unused]] RoundMode mode)
{
    static_assert(kCastModes<D, S> != 0,
                  "Cast: A2 has no instruction for this pair of types; go through float");
    SIM_CHECK((kCastModes<D, S> >> static_cast<uint32_t>(mode) & 1) != 0, "Cast",
              "round mode %u is not one this pair of types accepts", static_cast<uint32_t>(mode));
    return {mode};
}

}  // namespace sim

namespace AscendC {

template <class D, class S>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode& roundMode,
          uint32_t count)
{
    constexpr uint32_t kWidest = sizeof(D) > sizeof(S) ? sizeof(D) : sizeof(S);
    sim::Elementwise("Cast", sim::CountLanes("Cast", count, kWidest),
                     sim::CheckedCast<D, S>(roundMode), sim::Out("dst", dst), sim::In("src", src));
}

template <class D, class S, bool isSetMask = true, class M>
void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode& roundMode, M mask,
          int64_t repeatTime, const UnaryRepeatParams& p)
{
    sim::StridedUnary<isSetMask>("Cast", sim::CheckedCast<D, S>(roundMode), false, dst, src, mask,
                                 repeatTime, p);
}

}  // namespace AscendC
