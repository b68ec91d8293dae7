// Sums. Inside a repeat of 256 B: a binary tree over neighbours, in the element type. Between
// repeats: one after the other. Lanes that are masked off do not contribute; -0 stands in for them,
// as x + -0 is x for every x.
#pragma once

#include "pipe.h"
#include "vector.h"

namespace sim {

inline float AddRounded(float a, float b) { return a + b; }
inline half AddRounded(half a, half b)
{
    return half(static_cast<float>(a) + static_cast<float>(b));
}

template <class T>
constexpr uint32_t kRepeatLanes = kRepeatBytes / sizeof(T);
constexpr uint32_t kRepeatsAtOnce = 8;

// The sum of every `group` of n contiguous values, of kRepeatsAtOnce repeats at most: level by level
// over all groups, because long loops run in vectors. dst may be src.
template <uint32_t group, class T>
void TreeSums(T* dst, const T* src, uint32_t n)
{
    if constexpr (group == 1) {
        std::copy_n(src, n, dst);
    } else {
        alignas(64) T pairs[kRepeatsAtOnce * kRepeatLanes<T> / 2];
        for (uint32_t i = 0; i < n / 2; ++i) pairs[i] = AddRounded(src[2 * i], src[2 * i + 1]);
        TreeSums<group / 2>(dst, pairs, n / 2);
    }
}

template <class T>
T RepeatSum(const T* src)
{
    T sum;
    TreeSums<kRepeatLanes<T>>(&sum, src, kRepeatLanes<T>);
    return sum;
}

// The lanes of one repeat, side by side.
template <class T>
struct Repeat {
    alignas(64) T values[kRepeatLanes<T>];

    Repeat(const Lanes& lanes, const VectorOperand<T>& src, uint32_t repeat)
    {
        std::fill_n(values, kRepeatLanes<T>, T(-0.0f));
        uint32_t chunk = src.block_stride == 1 ? kRepeatLanes<T>
                                               : kBlockBytes / static_cast<uint32_t>(sizeof(T));
        Lanes one = lanes;
        one.repeats = 1;
        if (lanes.counted) one.total = lanes.Prefix(repeat);
        ForEachRun(one, 0, chunk, [&](uint32_t, uint32_t lane, uint32_t n) {
            std::copy_n(src.At(repeat, lane), n, values + lane);
        });
    }
};

// All of `count` contiguous elements: what the hardware accumulates in its sum register.
template <class T>
T SumOf(const T* src, uint32_t count)
{
    constexpr uint32_t kLanes = kRepeatLanes<T>;
    T sum = T(-0.0f);
    for (; count >= kLanes; count -= kLanes, src += kLanes)
        sum = AddRounded(sum, RepeatSum(src));
    if (count == 0) return sum;
    alignas(64) T tail[kLanes];
    std::fill_n(tail, kLanes, T(-0.0f));
    std::copy_n(src, count, tail);
    return AddRounded(sum, RepeatSum(tail));
}

// One past the last lane any repeat selects.
inline uint32_t LaneEnd(const Lanes& lanes)
{
    if (lanes.counted)
        return static_cast<uint32_t>(std::min<uint64_t>(lanes.total, lanes.per_repeat));
    return lanes.high != 0 ? 128 - static_cast<uint32_t>(__builtin_clzll(lanes.high))
                           : 64 - static_cast<uint32_t>(__builtin_clzll(lanes.low));
}

// Adds up every group of `group` lanes of a repeat; `stride` values lie between the results of two
// repeats.
template <uint32_t group, class T>
void GroupedSum(const char* api, const Lanes& lanes, const AscendC::LocalTensor<T>& dst,
                const VectorOperand<T>& src, uint32_t stride)
{
    if (lanes.repeats == 0) return;
    [[maybe_unused]] uint32_t results = (LaneEnd(lanes) + group - 1) / group;
    check::Vector(
        api, lanes, {src.Describe()},
        {dst.SimBytes("dst", true, results * sizeof(T), lanes.repeats, stride * sizeof(T))});
    CountVector(lanes);
    constexpr uint32_t kLanes = kRepeatLanes<T>, kResults = kLanes / group;
    const bool dense = src.repeat_stride == 8 && stride == kResults;
    const uint32_t whole = src.block_stride == 1 ? lanes.WholeRepeats() : 0;
    uint32_t repeat = 0;
    while (repeat < whole) {
        const uint32_t n = dense ? std::min(kRepeatsAtOnce, whole - repeat) : 1;
        TreeSums<group>(dst.SimData() + repeat * stride, src.At(repeat, 0), n * kLanes);
        repeat += n;
    }
    for (; repeat < lanes.repeats; ++repeat) {
        const Repeat<T> r(lanes, src, repeat);
        T sums[kResults];
        TreeSums<group>(sums, r.values, kLanes);
        for (uint32_t g = 0; g < kResults; ++g) {
            bool selected = false;  // a group without lanes leaves its result as it was
            for (uint32_t lane = g * group; lane < (g + 1) * group && !selected; ++lane) {
                selected = lanes.counted ? lane < lanes.Prefix(repeat) : lanes.Has(lane);
            }
            if (selected) dst.SimData()[repeat * stride + g] = sums[g];
        }
    }
}

template <bool isSetMask, uint32_t group, class T, class M>
void StridedSum(const char* api, const AscendC::LocalTensor<T>& dst,
                const AscendC::LocalTensor<T>& src, M mask, int32_t repeat, int32_t dst_stride,
                uint32_t dst_unit, int32_t src_blk, int32_t src_rep, uint32_t dst_align)
{
    static_assert(kIsOneOf<T, half, float>,
                  "sums take half and float on A2; Cast other types to float first");
    SIM_CHECK(dst_stride >= 0 && dst_stride <= 65535, api, "dstRepStride %d is outside 0..65535",
              dst_stride);
    CheckAligned(api, "dst", dst.SimData(), dst_align);
    Lanes lanes = LanesFrom<isSetMask>(api, mask, repeat, sizeof(T));
    GroupedSum<group>(api, lanes, dst,
                      In("src", src, BlockStride(api, "src", src_blk, 0, 65535),
                         RepeatStride(api, "src", src_rep)),
                      static_cast<uint32_t>(dst_stride) * dst_unit);
}

// Raises and takes down a flag from A to B: B waits for all of A.
template <HardEvent event>
void Synchronise()
{
    int32_t id = AscendC::GetTPipePtr()->FetchEventID(event);
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}

// The scalar unit's store of a sum, visible to the vector unit and to MTE3 afterwards.
template <class T>
void StoreByScalar(const char* api, const AscendC::LocalTensor<T>& dst, T sum)
{
    check::Touch(PIPE_S, api, {dst.SimBytes("dst", true, sizeof(T))});
    dst.SimData()[0] = sum;
    Synchronise<HardEvent::S_V>();
    Synchronise<HardEvent::S_MTE3>();
}

}  // namespace sim

namespace AscendC {

template <class T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src,
               [[maybe_unused]] const LocalTensor<T>& tmp, int32_t count)
{
    static_assert(sim::kIsOneOf<T, half, float>,
                  "ReduceSum takes half and float on A2; Cast other types to float first");
    SIM_CHECK(count >= 1, "ReduceSum", "count %d: at least 1", count);
    [[maybe_unused]] uint32_t partial =
        (static_cast<uint32_t>(count) + sim::kRepeatLanes<T> - 1) / sim::kRepeatLanes<T>;
    SIM_CHECK(tmp.GetSize() * sizeof(T) >= sim::RoundUp32(partial * sizeof(T)), "ReduceSum",
              "tmp of %zu bytes is too small: %u partial sums need %u", tmp.GetSize() * sizeof(T),
              partial, sim::RoundUp32(partial * sizeof(T)));
    sim::CheckAligned("ReduceSum", "dst", dst.SimData(), sizeof(T));
    sim::Lanes lanes = sim::CountLanes("ReduceSum", count, sizeof(T));
    if (lanes.repeats == 0) return;
    sim::check::Vector("ReduceSum", lanes, {sim::In("src", src).Describe()});
    sim::CountVector(lanes);
    sim::Synchronise<HardEvent::V_S>();
    sim::StoreByScalar("ReduceSum", dst, sim::SumOf(src.SimData(), static_cast<uint32_t>(count)));
}

// With repeats and a mask: one sum a repeat into tmp, those summed within tmp, and the rest into
// dst. When one value is left after two rounds the scalar unit copies it; else a vector instruction
// writes dst.
template <class T, class M>
void ReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<T>& tmp,
               M mask, int32_t repeatTime, int32_t srcRepStride)
{
    constexpr int32_t kLanes = sim::kRepeatLanes<T>;
    SIM_CHECK(repeatTime >= 0, "ReduceSum", "repeatTime %d is negative", repeatTime);
    SIM_CHECK(
        tmp.GetSize() * sizeof(T) >= sim::RoundUp32(static_cast<uint32_t>(repeatTime) * sizeof(T)),
        "ReduceSum", "tmp of %zu bytes is too small: %d partial sums need %u",
        tmp.GetSize() * sizeof(T), repeatTime,
        sim::RoundUp32(static_cast<uint32_t>(repeatTime) * sizeof(T)));
    SIM_CHECK(tmp.SimData() + repeatTime <= src.SimData() ||
                  src.SimData() + src.GetSize() <= tmp.SimData(),
              "ReduceSum", "tmp overlaps src");
    for (int32_t done = 0; done < repeatTime; done += 255) {
        int32_t now = std::min(repeatTime - done, 255);
        uint32_t offset = static_cast<uint32_t>(done * srcRepStride) * sim::kBlockBytes / sizeof(T);
        sim::StridedSum<true, kLanes>("ReduceSum", tmp[static_cast<uint32_t>(done)], src[offset],
                                      mask, now, 1, 1, 1, srcRepStride, sizeof(T));
    }
    if (repeatTime == 0) return;
    PipeBarrier<PIPE_V>();
    int32_t left = (repeatTime + kLanes - 1) / kLanes;
    sim::Lanes all = sim::CounterModeLanes(kLanes, static_cast<uint64_t>(repeatTime));
    sim::GroupedSum<kLanes>("ReduceSum", all, tmp, sim::In("tmp", tmp), 1);
    sim::ThisCore().mask = sim::Mask{};
    PipeBarrier<PIPE_V>();
    if (left == 1) {
        sim::Synchronise<HardEvent::V_S>();
        sim::check::Touch(PIPE_S, "ReduceSum", {tmp.SimBytes("tmp", false, sizeof(T))});
        sim::StoreByScalar("ReduceSum", dst, tmp.SimData()[0]);
    } else {
        sim::StridedSum<true, kLanes>("ReduceSum", dst, tmp, left, 1, 1, 1, 1, 8, sizeof(T));
    }
}

// One sum a repeat. Mask first, then repeat; dstRepStride in elements.
template <class T, bool isSetMask = true, class M>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, M mask,
                    int32_t repeatTime, int32_t dstRepStride, int32_t srcBlkStride,
                    int32_t srcRepStride)
{
    sim::StridedSum<isSetMask, sim::kRepeatLanes<T>>("WholeReduceSum", dst, src, mask, repeatTime,
                                                     dstRepStride, 1, srcBlkStride, srcRepStride,
                                                     sizeof(T));
}

// One sum a 32-byte block. Repeat first, then mask; dstRepStride in units of 8 values.
template <class T, bool isSetMask = true, class M>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t repeatTime,
                    M mask, int32_t dstRepStride, int32_t srcBlkStride, int32_t srcRepStride)
{
    sim::StridedSum<isSetMask, sim::kBlockBytes / sizeof(T)>(
        "BlockReduceSum", dst, src, mask, repeatTime, dstRepStride, 8, srcBlkStride, srcRepStride,
        8 * sizeof(T));
}

// Neighbours added. Repeat first, then mask; dstRepStride in units of 128 B.
template <class T, bool isSetMask = true, class M>
void PairReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t repeatTime, M mask,
                   int32_t dstRepStride, int32_t srcBlkStride, int32_t srcRepStride)
{
    sim::StridedSum<isSetMask, 2>("PairReduceSum", dst, src, mask, repeatTime, dstRepStride,
                                  128 / sizeof(T), srcBlkStride, srcRepStride, 32);
}

// One sum a repeat. Repeat first, then mask; dstRepStride in elements, dstBlkStride without effect.
template <class T, bool isSetMask = true, class M>
void RepeatReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, int32_t repeatTime,
                     M mask, int32_t, int32_t srcBlkStride, int32_t dstRepStride,
                     int32_t srcRepStride)
{
    sim::StridedSum<isSetMask, sim::kRepeatLanes<T>>("RepeatReduceSum", dst, src, mask, repeatTime,
                                                     dstRepStride, 1, srcBlkStride, srcRepStride,
                                                     sizeof(T));
}

}  // namespace AscendC
