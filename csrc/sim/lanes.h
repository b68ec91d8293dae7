// Which lanes a vector instruction processes, and how to walk them: shared by all vector
// instructions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tensor.h"

namespace sim::check {

struct Lanes {
    uint32_t per_repeat = 0;  // elements in a full repeat
    uint32_t repeats = 0;
    bool contiguous = false;  // the count form: no strides at all
    bool counted = false;     // lanes are the first `total` elements over all repeats, else by bits
    uint64_t total = 0;
    uint64_t low = 0, high = 0;  // mask bits of every repeat
    uint32_t prefix = 0;         // the number of bits if they are the first ones, else 0

    // The number of lanes if they are the first ones of this repeat, else 0.
    uint32_t Prefix(uint32_t repeat) const
    {
        if (!counted) return prefix;
        return static_cast<uint32_t>(
            std::min<uint64_t>(per_repeat, total - uint64_t{repeat} * per_repeat));
    }

    // How many repeats, the first ones, have all their lanes.
    uint32_t WholeRepeats() const
    {
        if (counted) return static_cast<uint32_t>(total / per_repeat);
        return prefix == per_repeat ? repeats : 0;
    }

    bool Has(uint32_t lane) const
    {
        return ((lane < 64 ? low >> lane : high >> (lane - 64)) & 1) != 0;
    }
};

}  // namespace sim::check

namespace sim {

using check::Lanes;

// Calls f(repeat, first lane, lanes) for every run of selected lanes from repeat `begin` on; no run
// crosses a multiple of `chunk`.
template <class F>
void ForEachRun(const Lanes& lanes, uint32_t begin, uint32_t chunk, F f)
{
    for (uint32_t repeat = begin; repeat < lanes.repeats; ++repeat) {
        uint32_t prefix = lanes.Prefix(repeat);
        for (uint32_t start = 0; start < prefix; start += chunk)
            f(repeat, start, std::min(chunk, prefix - start));
        if (prefix > 0) continue;
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (!lanes.Has(lane)) continue;
            uint32_t first = lane, stop = first / chunk * chunk + chunk;
            while (lane + 1 < stop && lanes.Has(lane + 1)) ++lane;
            f(repeat, first, lane + 1 - first);
        }
    }
}

// Byte offset of a lane, given strides in 32 B.
constexpr uint32_t LaneOffset(uint32_t element, uint32_t block_stride, uint32_t repeat_stride,
                              uint32_t repeat, uint32_t lane)
{
    uint32_t per_block = kBlockBytes / element;
    return (repeat * repeat_stride + lane / per_block * block_stride) * kBlockBytes +
           lane % per_block * element;
}

template <class T>
void CheckAligned([[maybe_unused]] const char* api, [[maybe_unused]] const char* operand,
                  [[maybe_unused]] const T* address, [[maybe_unused]] uint32_t align)
{
    SIM_CHECK(reinterpret_cast<uintptr_t>(address) % align == 0, api,
              "%s starts %llu bytes past a multiple of %u", operand,
              static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(address) % align), align);
}

inline Lanes CounterModeLanes(uint32_t per_repeat, uint64_t total)
{
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = static_cast<uint32_t>((total + per_repeat - 1) / per_repeat);
    lanes.counted = true;
    lanes.total = total;
    return lanes;
}

// The count form sets counter mode, runs, and restores normal mode with a full mask: a mask set
// before is lost.
inline Lanes CountLanes([[maybe_unused]] const char* api, int64_t count, uint32_t widest)
{
    SIM_CHECK(count >= 0, api, "count %lld is negative", static_cast<long long>(count));
    ThisCore().mask = Mask{};
    Lanes lanes =
        CounterModeLanes(kRepeatBytes / widest, count > 0 ? static_cast<uint64_t>(count) : 0);
    lanes.contiguous = true;
    return lanes;
}

constexpr uint64_t PrefixBits(uint64_t lanes)
{
    return lanes >= 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1;
}

inline uint32_t CountOnes(uint64_t bits)
{
    return static_cast<uint32_t>(__builtin_popcountll(bits));
}

inline Lanes BitLanes(uint32_t per_repeat, uint64_t repeats, uint64_t low, uint64_t high)
{
    if (per_repeat <= 64) {
        high = 0;
        if (per_repeat < 64) low &= PrefixBits(per_repeat);
    }
    uint32_t first = CountOnes(low);
    if (first == 64) first += CountOnes(high);
    uint64_t first_high = first > 64 ? PrefixBits(first - 64) : 0;
    Lanes lanes;
    lanes.per_repeat = per_repeat;
    lanes.repeats = low == 0 && high == 0 ? 0 : static_cast<uint32_t>(repeats);
    lanes.low = low;
    lanes.high = high;
    if (low == PrefixBits(first) && high == first_high) lanes.prefix = first;
    return lanes;
}

inline void CheckRepeat([[maybe_unused]] const char* api, [[maybe_unused]] int64_t repeat)
{
    SIM_CHECK(repeat >= 0 && repeat <= 255, api,
              "repeatTime %lld is outside 0..255 and would wrap in 8 bits",
              static_cast<long long>(repeat));
}

// The mask registers as the kernel set them (isSetMask = false).
inline Lanes RegisterLanes([[maybe_unused]] const char* api, int64_t repeat, uint32_t per_repeat)
{
    const Mask& mask = ThisCore().mask;
    SIM_CHECK(mask.chosen, api,
              "isSetMask = false, but no mask is set: SetVectorMask was not called, or a later "
              "instruction replaced it");
    if (mask.counter) return CounterModeLanes(per_repeat, mask.low);
    return BitLanes(per_repeat, static_cast<uint8_t>(repeat), mask.low, mask.high);
}

inline void RequireNormalMode([[maybe_unused]] const char* api)
{
    SIM_CHECK(
        !ThisCore().mask.counter, api,
        "mask mode is counter: call SetMaskNorm(), or pass isSetMask = false and MASK_PLACEHOLDER");
}

// The high-dimensional form with a number of lanes.
template <bool isSetMask>
Lanes RepeatLanes(const char* api, uint64_t mask, int64_t repeat, uint32_t widest)
{
    uint32_t per_repeat = kRepeatBytes / widest;
    CheckRepeat(api, repeat);
    if constexpr (!isSetMask) return RegisterLanes(api, repeat, per_repeat);
    RequireNormalMode(api);
    SIM_CHECK(mask <= per_repeat, api, "mask %llu is above the %u lanes of a repeat",
              static_cast<unsigned long long>(mask), per_repeat);
    uint64_t low = PrefixBits(mask), high = mask > 64 ? PrefixBits(mask - 64) : 0;
    ThisCore().mask = {low, high, false, false};
    return BitLanes(per_repeat, static_cast<uint8_t>(repeat), low, high);
}

// The high-dimensional form with one bit a lane, {low, high}.
template <bool isSetMask>
Lanes RepeatLanes(const char* api, const uint64_t* mask, int64_t repeat, uint32_t widest)
{
    uint32_t per_repeat = kRepeatBytes / widest;
    CheckRepeat(api, repeat);
    if constexpr (!isSetMask) return RegisterLanes(api, repeat, per_repeat);
    RequireNormalMode(api);
    SIM_CHECK(per_repeat > 64 || mask[1] == 0, api,
              "mask[1] must be 0 for a type with %u lanes in a repeat", per_repeat);
    ThisCore().mask = {mask[0], mask[1], false, false};
    return BitLanes(per_repeat, static_cast<uint8_t>(repeat), mask[0], mask[1]);
}

inline void CountVector(const Lanes& lanes)
{
    Counters& counters = ThisCore().counters;
    counters.vector_instructions += 1;
    counters.vector_repeats += lanes.repeats;
}

// An operand of an elementwise instruction: a tensor, strides between its blocks and repeats, and
// its use.
template <class T>
struct VectorOperand {
    const char* name;
    const AscendC::LocalTensor<T>& tensor;
    bool reads;
    bool writes;
    uint32_t block_stride;
    uint32_t repeat_stride;

    check::Operand Describe() const
    {
        return tensor.SimOperand(name, reads, writes, block_stride, repeat_stride, kBlockBytes);
    }
    T* At(uint32_t repeat, uint32_t lane) const
    {
        uint32_t offset = LaneOffset(sizeof(T), block_stride, repeat_stride, repeat, lane);
        return reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(tensor.SimData()) + offset);
    }
};

template <class T>
VectorOperand<T> In(const char* name, const AscendC::LocalTensor<T>& t, uint32_t block = 1,
                    uint32_t repeat = 8)
{
    return {name, t, true, false, block, repeat};
}
template <class T>
VectorOperand<T> Out(const char* name, const AscendC::LocalTensor<T>& t, uint32_t block = 1,
                     uint32_t repeat = 8)
{
    return {name, t, false, true, block, repeat};
}
template <class T>
VectorOperand<T> InOut(const char* name, const AscendC::LocalTensor<T>& t, uint32_t block = 1,
                       uint32_t repeat = 8)
{
    return {name, t, true, true, block, repeat};
}

// Runs an instruction that computes each lane from the same lane of its sources. kernel(n, dst,
// src...) does n of them.
template <class Kernel, class D, class... S>
void Elementwise(const char* api, const Lanes& lanes, Kernel kernel, const VectorOperand<D>& dst,
                 const VectorOperand<S>&... src)
{
    if (lanes.repeats == 0) return;
    check::Vector(api, lanes, {dst.Describe(), src.Describe()...});
    CountVector(lanes);
    if (lanes.contiguous) {
        kernel(static_cast<uint32_t>(lanes.total), dst.tensor.SimData(), src.tensor.SimData()...);
        return;
    }
    bool dense = dst.block_stride == 1 && ((src.block_stride == 1) && ...);
    constexpr uint32_t kWidest = std::max({sizeof(D), sizeof(S)...});
    constexpr uint32_t kBlockLanes = kBlockBytes / kWidest, kRepeatLanes = kRepeatBytes / kWidest;
    const uint32_t whole = dense ? lanes.WholeRepeats() : 0;
    for (uint32_t repeat = 0; repeat < whole; ++repeat)  // constants let the compiler unroll
        kernel(kRepeatLanes, dst.At(repeat, 0), src.At(repeat, 0)...);
    ForEachRun(lanes, whole, dense ? kRepeatLanes : kBlockLanes,
               [&](uint32_t repeat, uint32_t lane, uint32_t n) {
                   if (n == kBlockLanes) {
                       kernel(kBlockLanes, dst.At(repeat, lane), src.At(repeat, lane)...);
                   } else {
                       kernel(n, dst.At(repeat, lane), src.At(repeat, lane)...);
                   }
               });
}

}  // namespace sim
