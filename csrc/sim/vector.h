// Elementwise vector instructions, in the count form (dst, src..., count) and the high-dimensional
// form (dst, src..., mask, repeatTime, strides).
#pragma once

#include "arithmetic.h"
#include "lanes.h"
#include "mask.h"

namespace AscendC {

// Strides are 8 or 16 bits on the device. They are kept as written, so that one out of range is
// refused where it is used instead of wrapping here.
struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(int dst_blk, int src0_blk, int src1_blk, int dst_rep, int src0_rep,
                       int src1_rep)
        : dstBlkStride(dst_blk),
          src0BlkStride(src0_blk),
          src1BlkStride(src1_blk),
          dstRepStride(dst_rep),
          src0RepStride(src0_rep),
          src1RepStride(src1_rep)
    {}
    int dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1;
    int dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(int dst_blk, int src_blk, int dst_rep, int src_rep)
        : dstBlkStride(dst_blk), srcBlkStride(src_blk), dstRepStride(dst_rep), srcRepStride(src_rep)
    {}
    int dstBlkStride = 1, srcBlkStride = 1, dstRepStride = 8, srcRepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(int dst_blk, int dst_rep) : dstBlkStride(dst_blk), dstRepStride(dst_rep) {}
    int dstBlkStride = 1, dstRepStride = 8;
};

}  // namespace AscendC

namespace sim {

inline uint32_t RepeatStride([[maybe_unused]] const char* api, [[maybe_unused]] const char* operand,
                             int stride)
{
    SIM_CHECK(stride >= 0 && stride <= 255, api,
              "repeat stride %d of %s is outside 0..255 and would wrap in 8 bits", stride, operand);
    return static_cast<uint32_t>(stride);
}

inline uint32_t BlockStride([[maybe_unused]] const char* api, [[maybe_unused]] const char* operand,
                            int stride, [[maybe_unused]] int lowest, [[maybe_unused]] int highest)
{
    SIM_CHECK(stride >= lowest && stride <= highest, api, "block stride %d of %s is outside %d..%d",
              stride, operand, lowest, highest);
    return static_cast<uint32_t>(stride);
}

// A widening instruction's strides follow the widths: 256 B of the wider type a repeat.
template <class T, class Widest>
constexpr uint32_t kDenseRepeat = 8 * sizeof(T) / sizeof(Widest);

}  // namespace sim

namespace AscendC {

// The element types of each instruction on A2. bfloat16_t has no arithmetic: Cast to float first.
#define SIM_TYPES_ARITHMETIC(api)                        \
    static_assert(                                       \
        sim::kIsOneOf<T, half, float, int16_t, int32_t>, \
        api " takes half, float, int16_t and int32_t on A2; Cast other types to float first")
#define SIM_TYPES_FLOATING(api)                  \
    static_assert(sim::kIsOneOf<T, half, float>, \
                  api " takes half and float on A2; Cast other types to float first")
#define SIM_TYPES_MULADD(api)               \
    static_assert((sim::kMulAddPair<T, U>), \
                  api " takes half, float, and half sources with a float destination on A2")
#define SIM_SCALAR_TYPE(api, element, scalar)      \
    static_assert(std::is_same_v<element, scalar>, \
                  api ": the scalar must have exactly the tensor's element type")

#define SIM_BINARY(api, op, SIM_TYPES)                                                           \
    template <class T>                                                                           \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,  \
             int32_t count)                                                                      \
    {                                                                                            \
        SIM_TYPES(#api);                                                                         \
        sim::Elementwise(#api, sim::CountLanes(#api, count, sizeof(T)), sim::BinaryKernel(op),   \
                         sim::Out("dst", dst), sim::In("src0", src0), sim::In("src1", src1));    \
    }                                                                                            \
    template <class T, bool isSetMask = true, class M>                                           \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,  \
             M mask, int64_t repeatTime, const BinaryRepeatParams& p)                            \
    {                                                                                            \
        SIM_TYPES(#api);                                                                         \
        sim::StridedBinary<isSetMask>(#api, sim::BinaryKernel(op), false, dst, src0, src1, mask, \
                                      repeatTime, p);                                            \
    }

#define SIM_SCALAR(api, op, SIM_TYPES)                                                             \
    template <class T, bool isSetMask = true, class S>                                             \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src, const S& scalar, int32_t count) \
    {                                                                                              \
        SIM_TYPES(#api);                                                                           \
        SIM_SCALAR_TYPE(#api, T, S);                                                               \
        sim::Elementwise(#api, sim::CountLanes(#api, count, sizeof(T)),                            \
                         sim::ScalarKernel<T>(op, scalar), sim::Out("dst", dst),                   \
                         sim::In("src", src));                                                     \
    }                                                                                              \
    template <class T, bool isSetMask = true, class S, class M>                                    \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src, const S& scalar, M mask,        \
             int64_t repeatTime, const UnaryRepeatParams& p)                                       \
    {                                                                                              \
        SIM_TYPES(#api);                                                                           \
        SIM_SCALAR_TYPE(#api, T, S);                                                               \
        sim::StridedUnary<isSetMask>(#api, sim::ScalarKernel<T>(op, scalar), false, dst, src,      \
                                     mask, repeatTime, p);                                         \
    }

#define SIM_UNARY(api, op)                                                                     \
    template <class T>                                                                         \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t count)              \
    {                                                                                          \
        SIM_TYPES_FLOATING(#api);                                                              \
        sim::Elementwise(#api, sim::CountLanes(#api, count, sizeof(T)), sim::UnaryKernel(op),  \
                         sim::Out("dst", dst), sim::In("src", src));                           \
    }                                                                                          \
    template <class T, bool isSetMask = true, class M>                                         \
    void api(const LocalTensor<T>& dst, const LocalTensor<T>& src, M mask, int64_t repeatTime, \
             const UnaryRepeatParams& p)                                                       \
    {                                                                                          \
        SIM_TYPES_FLOATING(#api);                                                              \
        sim::StridedUnary<isSetMask>(#api, sim::UnaryKernel(op), false, dst, src, mask,        \
                                     repeatTime, p);                                           \
    }

}  // namespace AscendC

namespace sim {

// A number of lanes or an array of bits. On the device these are overloads; here one template
// parameter picks.
template <bool isSetMask, class M>
Lanes LanesFrom(const char* api, M mask, int64_t repeat, uint32_t widest)
{
    if constexpr (std::is_pointer_v<M>) {
        static_assert(std::is_same_v<std::remove_cv_t<std::remove_pointer_t<M>>, uint64_t>,
                      "a bit mask is an array of two uint64_t");
        return RepeatLanes<isSetMask>(api, static_cast<const uint64_t*>(mask), repeat, widest);
    } else {
        static_assert(std::is_integral_v<M>,
                      "a mask is a number of lanes or an array of two uint64_t");
        return RepeatLanes<isSetMask>(api, static_cast<uint64_t>(mask), repeat, widest);
    }
}

template <bool isSetMask, class Kernel, class D, class S, class M>
void StridedBinary(const char* api, Kernel kernel, bool accumulates,
                   const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<S>& src0,
                   const AscendC::LocalTensor<S>& src1, M mask, int64_t repeat,
                   const AscendC::BinaryRepeatParams& p)
{
    Lanes lanes = LanesFrom<isSetMask>(api, mask, repeat, std::max(sizeof(D), sizeof(S)));
    VectorOperand<D> out{"dst",
                         dst,
                         accumulates,
                         true,
                         BlockStride(api, "dst", p.dstBlkStride, 1, 255),
                         RepeatStride(api, "dst", p.dstRepStride)};
    Elementwise(api, lanes, kernel, out,
                In("src0", src0, BlockStride(api, "src0", p.src0BlkStride, 0, 255),
                   RepeatStride(api, "src0", p.src0RepStride)),
                In("src1", src1, BlockStride(api, "src1", p.src1BlkStride, 0, 255),
                   RepeatStride(api, "src1", p.src1RepStride)));
}

template <bool isSetMask, class Kernel, class D, class S, class M>
void StridedUnary(const char* api, Kernel kernel, bool accumulates,
                  const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<S>& src, M mask,
                  int64_t repeat, const AscendC::UnaryRepeatParams& p)
{
    Lanes lanes = LanesFrom<isSetMask>(api, mask, repeat, std::max(sizeof(D), sizeof(S)));
    VectorOperand<D> out{"dst",
                         dst,
                         accumulates,
                         true,
                         BlockStride(api, "dst", p.dstBlkStride, 1, 65535),
                         RepeatStride(api, "dst", p.dstRepStride)};
    Elementwise(api, lanes, kernel, out,
                In("src", src, BlockStride(api, "src", p.srcBlkStride, 0, 65535),
                   RepeatStride(api, "src", p.srcRepStride)));
}

}  // namespace sim

namespace AscendC {

SIM_BINARY(Add, sim::kAdd, SIM_TYPES_ARITHMETIC)
SIM_BINARY(Sub, sim::kSub, SIM_TYPES_ARITHMETIC)
SIM_BINARY(Mul, sim::kMul, SIM_TYPES_ARITHMETIC)
SIM_BINARY(Max, sim::kMax, SIM_TYPES_ARITHMETIC)
SIM_BINARY(Min, sim::kMin, SIM_TYPES_ARITHMETIC)
SIM_BINARY(Div, sim::kDiv, SIM_TYPES_FLOATING)
SIM_SCALAR(Adds, sim::kAdd, SIM_TYPES_ARITHMETIC)
SIM_SCALAR(Muls, sim::kMul, SIM_TYPES_ARITHMETIC)
SIM_SCALAR(Maxs, sim::kMax, SIM_TYPES_ARITHMETIC)
SIM_SCALAR(Mins, sim::kMin, SIM_TYPES_ARITHMETIC)
SIM_UNARY(Exp, sim::kExp)
SIM_UNARY(Ln, sim::kLn)
SIM_UNARY(Sqrt, sim::kSqrt)
SIM_UNARY(Abs, sim::kAbs)
SIM_UNARY(Reciprocal, sim::kReciprocal<T>)
SIM_UNARY(Rsqrt, sim::kRsqrt<T>)

// dst += src0 * src1
template <class T, class U>
void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1,
               int32_t count)
{
    SIM_TYPES_MULADD("MulAddDst");
    sim::Elementwise("MulAddDst", sim::CountLanes("MulAddDst", count, sizeof(T)),
                     sim::MulAddKernel{}, sim::InOut("dst", dst), sim::In("src0", src0),
                     sim::In("src1", src1));
}

template <class T, class U, bool isSetMask = true, class M>
void MulAddDst(const LocalTensor<T>& dst, const LocalTensor<U>& src0, const LocalTensor<U>& src1,
               M mask, int64_t repeatTime, const BinaryRepeatParams& p)
{
    SIM_TYPES_MULADD("MulAddDst");
    sim::StridedBinary<isSetMask>("MulAddDst", sim::MulAddKernel{}, true, dst, src0, src1, mask,
                                  repeatTime, p);
}

// dst += src * scalar
template <class T, class U, class S>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const S& scalar, int32_t count)
{
    SIM_TYPES_MULADD("Axpy");
    SIM_SCALAR_TYPE("Axpy", U, S);
    sim::Elementwise("Axpy", sim::CountLanes("Axpy", count, sizeof(T)), sim::AxpyKernel<U>{scalar},
                     sim::InOut("dst", dst), sim::In("src", src, 1, sim::kDenseRepeat<U, T>));
}

template <class T, class U, bool isSetMask = true, class S, class M>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const S& scalar, M mask,
          int64_t repeatTime, const UnaryRepeatParams& p)
{
    SIM_TYPES_MULADD("Axpy");
    SIM_SCALAR_TYPE("Axpy", U, S);
    sim::StridedUnary<isSetMask>("Axpy", sim::AxpyKernel<U>{scalar}, true, dst, src, mask,
                                 repeatTime, p);
}

#define SIM_TYPES_DUPLICATE                                                                        \
    static_assert(sim::kIsOneOf<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>, \
                  "Duplicate takes types of 2 or 4 bytes on A2")

template <class T, class S>
void Duplicate(const LocalTensor<T>& dst, const S& scalar, int32_t count)
{
    SIM_TYPES_DUPLICATE;
    SIM_SCALAR_TYPE("Duplicate", T, S);
    sim::Elementwise(
        "Duplicate", sim::CountLanes("Duplicate", count, sizeof(T)),
        [scalar](uint32_t n, T* d) { std::fill_n(d, n, scalar); }, sim::Out("dst", dst));
}

template <class T, bool isSetMask = true, class S, class M>
void Duplicate(const LocalTensor<T>& dst, const S& scalar, M mask, int64_t repeatTime,
               int dstBlockStride, int dstRepeatStride)
{
    SIM_TYPES_DUPLICATE;
    SIM_SCALAR_TYPE("Duplicate", T, S);
    sim::Elementwise(
        "Duplicate", sim::LanesFrom<isSetMask>("Duplicate", mask, repeatTime, sizeof(T)),
        [scalar](uint32_t n, T* d) { std::fill_n(d, n, scalar); },
        sim::Out("dst", dst, sim::BlockStride("Duplicate", "dst", dstBlockStride, 1, 65535),
                 sim::RepeatStride("Duplicate", "dst", dstRepeatStride)));
}

// Spreads each of 8 elements a repeat over one 32-byte block. Works on bits, without regard to
// mask.
template <class T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, int64_t repeatTime,
          const BrcbRepeatParams& p)
{
    static_assert(sizeof(T) == 2 || sizeof(T) == 4, "Brcb takes types of 2 or 4 bytes on A2");
    constexpr uint32_t kLanes = sim::kBlockBytes / sizeof(T);
    sim::CheckRepeat("Brcb", repeatTime);
    uint32_t block = sim::BlockStride("Brcb", "dst", p.dstBlkStride, 1, 65535);
    uint32_t repeat_stride = sim::RepeatStride("Brcb", "dst", p.dstRepStride);
    uint32_t repeats = static_cast<uint8_t>(repeatTime);
    ResetMask();
    if (repeats == 0) return;
    sim::CountVector(sim::BitLanes(8 * kLanes, repeats, ~uint64_t{0}, ~uint64_t{0}));
    sim::CheckAligned("Brcb", "dst", dst.SimData(), 32);
    sim::CheckAligned("Brcb", "src", src.SimData(), 32);
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
        sim::check::Touch(
            PIPE_V, "Brcb",
            {src.SimBytes("src", false, 8 * sizeof(T), 1, 0, repeat * 8 * sizeof(T)),
             dst.SimBytes("dst", true, 32, 8, block * 32, repeat * repeat_stride * 32)});
        for (uint32_t i = 0; i < 8; ++i) {
            T* d = dst.SimData() + (repeat * repeat_stride + i * block) * kLanes;
            std::fill_n(d, kLanes, src.SimData()[repeat * 8 + i]);
        }
    }
}

#undef SIM_BINARY
#undef SIM_SCALAR
#undef SIM_UNARY

}  // namespace AscendC
