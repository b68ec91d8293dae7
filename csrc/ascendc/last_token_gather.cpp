// last_token_gather: out[b, :] = hidden[r, :] with r = ids[b], or r = ids[b + 1] - 1 of cu_seqlens.
//
// Layout: hidden [tokens, hidden] with any row stride, ids int32 [B] or [B + 1], out [B, hidden].
// Only the size of an element matters, so 2-byte and 4-byte integers stand for every dtype.
// One core: a contiguous slice of the B rows, each through UB without vector work; rows of NaN
// for ids out of range.
// UB: a row is at most 32 KiB (8192 x 4 bytes), so it is never cut; four in flight are to
// hide the latency of a copy, and a row of NaN makes five: 160 KiB of 183.75.
// Limit (estimated, never measured on an NPU): memory bandwidth, 2 * B * hidden elements; below
// some hundred rows the launch itself.
#include "kernel_operator.h"
#include "rows.h"
#include "tiling.h"

using namespace AscendC;

constexpr uint8_t kRowsInFlight = 4;

template <typename T>
class LastTokenGather
{
public:
    __aicore__ inline LastTokenGather(TPipe* pipe, GM_ADDR hidden, GM_ADDR ids, GM_ADDR out,
                                      const LastTokenGatherTiling& tiling)
        : tiling_(tiling), slice_(rows::OwnSlice(tiling.items_per_block, tiling.extra_items))
    {
        const uint64_t items = slice_.end - slice_.begin;
        const uint64_t extent = rows::Extent(tiling.tokens, tiling.row_stride, tiling.hidden);
        hidden_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(hidden), extent);
        ids_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(ids) + slice_.begin,
                             items + tiling.ids_are_cu_seqlens);
        out_.SetGlobalBuffer(
            reinterpret_cast<__gm__ T*>(out) + slice_.begin * static_cast<uint64_t>(tiling.hidden),
            items * tiling.hidden);
        pipe->InitBuffer(row_queue_, kRowsInFlight,
                         static_cast<uint32_t>(tiling.hidden * sizeof(T)));
        pipe->InitBuffer(nan_buffer_, static_cast<uint32_t>(tiling.hidden * sizeof(T)));
    }

    __aicore__ inline void Process()
    {
        const LocalTensor<T> nan = nan_buffer_.template Get<T>();
        Duplicate(nan, static_cast<T>(tiling_.nan_bits), static_cast<int32_t>(tiling_.hidden));
        const TEventID event = GetTPipePtr()->FetchEventID(HardEvent::V_MTE3);
        SetFlag<HardEvent::V_MTE3>(event);
        WaitFlag<HardEvent::V_MTE3>(event);

        int32_t begin = ids_.GetValue(0);
        for (uint32_t item = 0; item < slice_.end - slice_.begin; ++item) {
            const GlobalTensor<T> target = out_[static_cast<uint64_t>(item) * tiling_.hidden];
            int32_t token;
            if (tiling_.ids_are_cu_seqlens) {
                const int32_t end = ids_.GetValue(item + 1);
                token = begin >= 0 && begin < end ? end - 1 : -1;
                begin = end;
            } else {
                token = item == 0 ? begin : ids_.GetValue(item);
            }
            if (static_cast<uint32_t>(token) < tiling_.tokens) {
                CopyRow(target, static_cast<uint32_t>(token));
            } else {
                rows::CopyOut(target, nan, tiling_.hidden);
            }
        }
    }

private:
    __aicore__ inline void CopyRow(const GlobalTensor<T>& target, uint32_t token)
    {
        LocalTensor<T> row = row_queue_.template AllocTensor<T>();
        rows::CopyIn(row, hidden_[token * tiling_.row_stride], tiling_.hidden);
        row_queue_.EnQue(row);
        row = row_queue_.template DeQue<T>();
        rows::CopyOut(target, row, tiling_.hidden);
        row_queue_.FreeTensor(row);
    }

    LastTokenGatherTiling tiling_;
    rows::Slice slice_;
    GlobalTensor<T> hidden_;
    GlobalTensor<int32_t> ids_;
    GlobalTensor<T> out_;
    TQueBind<QuePosition::VECIN, QuePosition::VECOUT, 1> row_queue_;
    TBuf<TPosition::VECCALC> nan_buffer_;
};

extern "C" __global__ __aicore__ void last_token_gather_16bit(GM_ADDR hidden, GM_ADDR ids,
                                                              GM_ADDR out,
                                                              LastTokenGatherTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    TPipe pipe;
    LastTokenGather<int16_t>(&pipe, hidden, ids, out, tiling).Process();
}

extern "C" __global__ __aicore__ void last_token_gather_32bit(GM_ADDR hidden, GM_ADDR ids,
                                                              GM_ADDR out,
                                                              LastTokenGatherTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    TPipe pipe;
    LastTokenGather<int32_t>(&pipe, hidden, ids, out, tiling).Process();
}
