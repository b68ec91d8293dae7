// score_head: for each b, with x = hidden[index[b], :] in float32 and g = norm_weight * w,
//     logit[b] = sum(x * g) / sqrt(mean(x^2) + eps) + bias        score[b] = sigmoid(logit[b])
// which is RMSNorm, the dot product with the classifier vector and the sigmoid; the normed row
// never exists.
//
// Layout: hidden [tokens, hidden] with any row stride, index int32 [B], norm_weight [hidden] in
// hidden's dtype or float32, w float32 [hidden], score and logit float32 [B].
// One core: forms g once, then a contiguous slice of the B rows. A row leaves eight partial sums
// of each kind; the short arithmetic behind them runs once for a group of up to 128 rows, and a
// group's results leave in one copy each.
// UB: a row is at most 32 KiB, so it is never cut. At hidden = 8192: two rows in flight 64 KiB
// (32 with 16 bits), g 32, scratch 64, running sums 8, group 10: 178 KiB of 183.75.
// Limit (estimated, never measured on an NPU): the launch itself; next, about six passes over a row
// in the vector unit against reading it once.
#include "kernel_operator.h"
#include "rows.h"
#include "tiling.h"

using namespace AscendC;

constexpr uint32_t kGroup = 128;  // rows whose results are computed together
constexpr uint32_t kFloatNan = 0x7fc00000;

template <typename T>
class ScoreHead
{
public:
    __aicore__ inline ScoreHead(TPipe* pipe, GM_ADDR hidden, GM_ADDR index, GM_ADDR score,
                                GM_ADDR logit, const ScoreHeadTiling& tiling)
        : tiling_(tiling), slice_(rows::OwnSlice(tiling.items_per_block, tiling.extra_items))
    {
        const uint64_t items = slice_.end - slice_.begin;
        const uint64_t extent = rows::Extent(tiling.tokens, tiling.row_stride, tiling.hidden);
        hidden_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(hidden), extent);
        index_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(index) + slice_.begin, items);
        score_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(score) + slice_.begin, items);
        logit_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logit) + slice_.begin, items);

        const uint32_t row_bytes = static_cast<uint32_t>(tiling.hidden * sizeof(float));
        pipe->InitBuffer(row_queue_, 2, static_cast<uint32_t>(tiling.hidden * sizeof(T)));
        pipe->InitBuffer(gain_buffer_, row_bytes);
        pipe->InitBuffer(scratch_buffer_, 2 * row_bytes);
        pipe->InitBuffer(sums_buffer_, static_cast<uint32_t>(2 * rows::kChunk * sizeof(float)));
        pipe->InitBuffer(partial_buffer_,
                         static_cast<uint32_t>(2 * kGroup * rows::kBlock * sizeof(float)));
        pipe->InitBuffer(group_buffer_, static_cast<uint32_t>(2 * kGroup * sizeof(float)));
        pipe->InitBuffer(result_queue_, 1, static_cast<uint32_t>(2 * kGroup * sizeof(float)));
        gain_ = gain_buffer_.template Get<float>();
        scratch_ = scratch_buffer_.template Get<float>();
        sums_ = sums_buffer_.template Get<float>();
        partial_ = partial_buffer_.template Get<float>();
    }

    __aicore__ inline void Process(GM_ADDR norm_weight, GM_ADDR w)
    {
        LoadGain(norm_weight, w);
        Duplicate(partial_, 0.0f, static_cast<int32_t>(2 * kGroup * rows::kBlock));
        PipeBarrier<PIPE_V>();
        const uint32_t items = slice_.end - slice_.begin;
        for (uint32_t first = 0; first < items; first += kGroup) {
            const uint32_t count = items - first < kGroup ? items - first : kGroup;
            for (uint32_t row = 0; row < count; ++row) SumRow(row, index_.GetValue(first + row));
            FinishGroup(first, count);
        }
    }

private:
    __aicore__ inline void LoadGain(GM_ADDR norm_weight, GM_ADDR w)
    {
        const uint32_t hidden = tiling_.hidden;
        rows::LoadWeight<float>(gain_, w, true, gain_, hidden);
        rows::LoadWeight<T>(scratch_, norm_weight, tiling_.norm_is_float != 0, scratch_[hidden],
                            hidden);
        Mul(gain_, gain_, scratch_, static_cast<int32_t>(hidden));
        PipeBarrier<PIPE_V>();
    }

    // Eight partial sums of x * g in block `row` of partial_, eight of x^2 in block kGroup + row.
    __aicore__ inline void SumRow(uint32_t row, int32_t token)
    {
        const LocalTensor<float> dot_sums = partial_[row * rows::kBlock];
        if (static_cast<uint32_t>(token) >= tiling_.tokens) {
            Duplicate(dot_sums.template ReinterpretCast<int32_t>(), static_cast<int32_t>(kFloatNan),
                      1);
            PipeBarrier<PIPE_V>();
            return;
        }
        const uint32_t hidden = tiling_.hidden;
        LocalTensor<T> raw = row_queue_.template AllocTensor<T>();
        rows::CopyIn(raw, hidden_[static_cast<uint32_t>(token) * tiling_.row_stride], hidden);
        row_queue_.EnQue(raw);
        raw = row_queue_.template DeQue<T>();
        LocalTensor<float> x;
        if constexpr (sizeof(T) == sizeof(float)) {
            x = raw;
        } else {
            x = scratch_;
            Cast(x, raw, RoundMode::CAST_NONE, hidden);
            PipeBarrier<PIPE_V>();
        }
        for (uint32_t begin = 0; begin < hidden; begin += rows::kChunk) {
            const uint32_t left = hidden - begin;
            const uint32_t count = left < rows::kChunk ? left : rows::kChunk;
            rows::AddProducts(sums_, x[begin], gain_[begin], begin == 0, count);
            rows::AddProducts(sums_[rows::kChunk], x[begin], x[begin], begin == 0, count);
            PipeBarrier<PIPE_V>();
        }
        row_queue_.FreeTensor(raw);
        rows::PartialSums(dot_sums, kGroup * rows::kBlock, sums_, 2, hidden);
    }

    __aicore__ inline void FinishGroup(uint32_t first, uint32_t row_count)
    {
        const int32_t count = static_cast<int32_t>(row_count);
        const int32_t repeats =
            (count + static_cast<int32_t>(rows::kBlock) - 1) / static_cast<int32_t>(rows::kBlock);
        const LocalTensor<float> rms = group_buffer_.template Get<float>();
        const LocalTensor<float> one_plus_exp = rms[kGroup];
        LocalTensor<float> result = result_queue_.template AllocTensor<float>();
        const LocalTensor<float> logit = result;
        const LocalTensor<float> score = result[kGroup];
        BlockReduceSum(logit, partial_, repeats, rows::kLanes, 1, 1, rows::kBlock);
        BlockReduceSum(rms, partial_[kGroup * rows::kBlock], repeats, rows::kLanes, 1, 1,
                       rows::kBlock);
        PipeBarrier<PIPE_V>();
        Muls(rms, rms, tiling_.mean_scale, count);
        PipeBarrier<PIPE_V>();
        Adds(rms, rms, tiling_.eps, count);
        PipeBarrier<PIPE_V>();
        Sqrt(rms, rms, count);
        PipeBarrier<PIPE_V>();
        Div(logit, logit, rms, count);
        PipeBarrier<PIPE_V>();
        Adds(logit, logit, tiling_.bias, count);
        PipeBarrier<PIPE_V>();
        // sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): no exponential overflows, and a NaN stays
        // one whatever Mins makes of it.
        Mins(score, logit, 0.0f, count);
        Abs(one_plus_exp, logit, count);
        PipeBarrier<PIPE_V>();
        Exp(score, score, count);
        Muls(one_plus_exp, one_plus_exp, -1.0f, count);
        PipeBarrier<PIPE_V>();
        Exp(one_plus_exp, one_plus_exp, count);
        PipeBarrier<PIPE_V>();
        Adds(one_plus_exp, one_plus_exp, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Div(score, score, one_plus_exp, count);
        result_queue_.EnQue(result);
        result = result_queue_.template DeQue<float>();
        rows::CopyOut(logit_[first], result, row_count);
        rows::CopyOut(score_[first], result[kGroup], row_count);
        result_queue_.FreeTensor(result);
    }

    ScoreHeadTiling tiling_;
    rows::Slice slice_;
    GlobalTensor<T> hidden_;
    GlobalTensor<int32_t> index_;
    GlobalTensor<float> score_;
    GlobalTensor<float> logit_;
    TQue<QuePosition::VECIN, 1> row_queue_;
    TQue<QuePosition::VECOUT, 1> result_queue_;
    TBuf<TPosition::VECCALC> gain_buffer_;
    TBuf<TPosition::VECCALC> scratch_buffer_;  // norm_weight at first, then the row in float
    TBuf<TPosition::VECCALC> sums_buffer_;     // of x * g, then of x * x
    TBuf<TPosition::VECCALC> partial_buffer_;
    TBuf<TPosition::VECCALC> group_buffer_;
    LocalTensor<float> gain_;
    LocalTensor<float> scratch_;
    LocalTensor<float> sums_;
    LocalTensor<float> partial_;
};

template <typename T>
__aicore__ inline void RunScoreHead(GM_ADDR hidden, GM_ADDR index, GM_ADDR norm_weight, GM_ADDR w,
                                    GM_ADDR score, GM_ADDR logit, const ScoreHeadTiling& tiling)
{
    TPipe pipe;
    ScoreHead<T>(&pipe, hidden, index, score, logit, tiling).Process(norm_weight, w);
}

extern "C" __global__ __aicore__ void score_head_bfloat16(GM_ADDR hidden, GM_ADDR index,
                                                          GM_ADDR norm_weight, GM_ADDR w,
                                                          GM_ADDR score, GM_ADDR logit,
                                                          ScoreHeadTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunScoreHead<bfloat16_t>(hidden, index, norm_weight, w, score, logit, tiling);
}

extern "C" __global__ __aicore__ void score_head_float16(GM_ADDR hidden, GM_ADDR index,
                                                         GM_ADDR norm_weight, GM_ADDR w,
                                                         GM_ADDR score, GM_ADDR logit,
                                                         ScoreHeadTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunScoreHead<half>(hidden, index, norm_weight, w, score, logit, tiling);
}

extern "C" __global__ __aicore__ void score_head_float32(GM_ADDR hidden, GM_ADDR index,
                                                         GM_ADDR norm_weight, GM_ADDR w,
                                                         GM_ADDR score, GM_ADDR logit,
                                                         ScoreHeadTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunScoreHead<float>(hidden, index, norm_weight, w, score, logit, tiling);
}
