// What the kernels share: the slice of work a block owns, copies, and sums and scaling of rows.
//
// Every sum is taken in an order that depends on the row's length alone, so a result has the same
// bits in any batch and on any number of cores.
#pragma once

#include "kernel_operator.h"
#include "tiling.h"

namespace rows
{

using namespace AscendC;

constexpr uint32_t kLanes = 64;              // floats in one repeat of a vector instruction
constexpr uint32_t kBlock = 8;               // floats in one 32-byte block of UB
constexpr uint32_t kFold = kLanes * kBlock;  // the sums of 8 repeats fill one block
constexpr uint32_t kChunk = 2 * kFold;       // lanes of a running sum of products

struct Slice {
    uint32_t begin;
    uint32_t end;
};

__aicore__ inline Slice OwnSlice(uint32_t items_per_block, uint32_t extra_items)
{
    const uint32_t block = static_cast<uint32_t>(GetBlockIdx());
    const uint32_t extra_before = block < extra_items ? block : extra_items;
    const uint32_t begin = block * items_per_block + extra_before;
    return {begin, begin + items_per_block + (block < extra_items ? 1 : 0)};
}

// Elements from the first of `tokens` rows to the end of the last.
__aicore__ inline uint64_t Extent(uint32_t tokens, uint64_t row_stride, uint32_t hidden)
{
    return tokens == 0 ? 0 : (tokens - 1) * row_stride + hidden;
}

template <typename T>
__aicore__ inline void CopyIn(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count)
{
    const DataCopyExtParams params(1, static_cast<uint32_t>(count * sizeof(T)), 0, 0, 0);
    DataCopyPad(dst, src, params, DataCopyPadExtParams<T>());
}

template <typename T>
__aicore__ inline void CopyOut(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                               uint32_t count)
{
    const DataCopyExtParams params(1, static_cast<uint32_t>(count * sizeof(T)), 0, 0, 0);
    DataCopyPad(dst, src, params);
}

// Lets the vector unit see what was copied into scratch buffers, which no queue watches.
__aicore__ inline void AwaitCopyIn()
{
    const TEventID event = GetTPipePtr()->FetchEventID(HardEvent::MTE2_V);
    SetFlag<HardEvent::MTE2_V>(event);
    WaitFlag<HardEvent::MTE2_V>(event);
}

// dst[0..count) = a weight of type T or, if is_float, float. `staging` holds count elements of T.
template <typename T>
__aicore__ inline void LoadWeight(const LocalTensor<float>& dst, GM_ADDR weight, bool is_float,
                                  const LocalTensor<float>& staging, uint32_t count)
{
    if (is_float || sizeof(T) == sizeof(float)) {
        GlobalTensor<float> source;
        source.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight), count);
        CopyIn(dst, source, count);
        AwaitCopyIn();
        return;
    }
    if constexpr (sizeof(T) != sizeof(float)) {
        GlobalTensor<T> source;
        source.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(weight), count);
        const LocalTensor<T> raw = staging.ReinterpretCast<T>();
        CopyIn(raw, source, count);
        AwaitCopyIn();
        Cast(dst, raw, RoundMode::CAST_NONE, count);
        PipeBarrier<PIPE_V>();
    }
}

// acc[i] = or += a[i] * b[i] for i < count: one chunk of a sum of products.
__aicore__ inline void AddProducts(const LocalTensor<float>& acc, const LocalTensor<float>& a,
                                   const LocalTensor<float>& b, bool starts, uint32_t count)
{
    if (starts) {
        Mul(acc, a, b, static_cast<int32_t>(count));
    } else {
        MulAddDst(acc, a, b, static_cast<int32_t>(count));
    }
}

// For each of `count` sums of products over n elements, kChunk apart: eight partial sums in
// dst[row * dst_pitch ..]. acc is used up. Below kFold elements only the first (n + 63) / 64 of the
// eight are written: the caller keeps the others at zero.
//
// Halves are added onto each other until eight repeats are left, which by the vendor's published
// timings beats one long reduction.
__aicore__ inline void PartialSums(const LocalTensor<float>& dst, uint32_t dst_pitch,
                                   const LocalTensor<float>& acc, uint32_t count, uint32_t n)
{
    if (n > kChunk) n = kChunk;
    if (n > kFold) {
        for (uint32_t row = 0; row < count; ++row) {
            const LocalTensor<float> sums = acc[row * kChunk];
            Add(sums, sums, sums[kFold], static_cast<int32_t>(n - kFold));
        }
        PipeBarrier<PIPE_V>();
        n = kFold;
    }
    const int32_t repeats = static_cast<int32_t>(n / kLanes);
    const int32_t tail = static_cast<int32_t>(n % kLanes);
    for (uint32_t row = 0; row < count; ++row) {
        const LocalTensor<float> sums = acc[row * kChunk];
        const LocalTensor<float> partial = dst[row * dst_pitch];
        if (repeats > 0) WholeReduceSum(partial, sums, kLanes, repeats, 1, 1, kBlock);
        if (tail > 0) {
            WholeReduceSum(partial[repeats], sums[repeats * kLanes], tail, 1, 1, 1, kBlock);
        }
    }
    PipeBarrier<PIPE_V>();
}

// dst[i] = x[i] * factor for i < n; `factor` is a repeat that holds it in every lane.
__aicore__ inline void Scale(const LocalTensor<float>& dst, const LocalTensor<float>& x,
                             const LocalTensor<float>& factor, uint32_t n)
{
    const BinaryRepeatParams params(1, 1, 1, kBlock, kBlock, 0);
    const uint32_t repeats = n / kLanes;
    const uint64_t whole = kLanes;
    const uint64_t tail = n % kLanes;
    if (repeats > 0) Mul(dst, x, factor, whole, static_cast<uint8_t>(repeats), params);
    if (tail > 0) Mul(dst[repeats * kLanes], x[repeats * kLanes], factor, tail, 1, params);
}

}  // namespace rows
