// fused_pool: for each sequence b, with x_t its rows of hidden in float32,
//     n_t = x_t / sqrt(mean(x_t^2) + eps) * norm_weight      only with a norm_weight
//     p   = n_t of the last or the first token, or the mean of n_t over all tokens
//     y   = p[:dim]                                          Matryoshka truncation
//     out[b] = y / max(|y|, 1e-12)                           only with normalize
//
// Layout: hidden [tokens, hidden] with any row stride, cu_seqlens int32 [B + 1], norm_weight
// [hidden] in hidden's dtype or float32, out [B, dim] in hidden's dtype.
// One core: a contiguous slice of the B sequences, one whole sequence after the other. Tokens
// come in tiles of up to eight and are added to the pooled row one by one: the order of the sum
// is that of the sequence. norm_weight, of which only [:dim] is read, multiplies the pooled row
// once, not every token. Nothing waits for the scalar unit: a row's factor is spread over a repeat
// by Brcb.
// UB: a tile holds at most 8192 elements. At hidden = 8192 with 16 bits: two tiles in flight 32
// KiB, tile in float 32, pooled row 32, norm_weight 32, result 16, sums and factors 7: 151 KiB of
// 183.75. With float32 the tile needs no second form and the pooled row is the result: 64 + 32 +
// 32 + 7. Narrow rows have more tokens in a tile and so more sums, but less of everything else.
// Limit (estimated, never measured on an NPU): last and cls the launch; mean the vector unit (about
// six passes over a token) and memory bandwidth alike.
#include "kernel_operator.h"
#include "rows.h"
#include "tiling.h"

using namespace AscendC;

constexpr float kSmallestLength = 1e-12f;
constexpr uint32_t kMaxTileTokens =
    rows::kBlock;  // so that one block holds a tile's sums of squares

template <typename T, typename Bits>  // Bits: the integer of T's size, to write a NaN by its bits
class FusedPool
{
    static constexpr bool kIsFloat = sizeof(T) == sizeof(float);

public:
    __aicore__ inline FusedPool(TPipe* pipe, GM_ADDR hidden, GM_ADDR cu_seqlens, GM_ADDR out,
                                const FusedPoolTiling& tiling)
        : tiling_(tiling), slice_(rows::OwnSlice(tiling.items_per_block, tiling.extra_items))
    {
        const uint64_t items = slice_.end - slice_.begin;
        const uint64_t extent = rows::Extent(tiling.tokens, tiling.row_stride, tiling.hidden);
        hidden_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(hidden), extent);
        cu_seqlens_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(cu_seqlens) + slice_.begin,
                                    items + 1);
        out_.SetGlobalBuffer(
            reinterpret_cast<__gm__ T*>(out) + slice_.begin * static_cast<uint64_t>(tiling.dim),
            items * tiling.dim);

        const uint32_t tile = tiling.tokens_per_tile * tiling.width;
        pipe->InitBuffer(tile_queue_, 2, static_cast<uint32_t>(tile * sizeof(T)));
        pipe->InitBuffer(out_queue_, 1, static_cast<uint32_t>(tiling.width * sizeof(T)));
        if constexpr (!kIsFloat) {
            pipe->InitBuffer(float_tile_, static_cast<uint32_t>(tile * sizeof(float)));
            pipe->InitBuffer(pooled_row_, static_cast<uint32_t>(tiling.width * sizeof(float)));
        }
        pipe->InitBuffer(squares_buffer_, static_cast<uint32_t>(tiling.tokens_per_tile *
                                                                rows::kChunk * sizeof(float)));
        if (tiling.has_norm)
            pipe->InitBuffer(gain_buffer_, static_cast<uint32_t>(tiling.dim * sizeof(float)));
        pipe->InitBuffer(small_buffer_,
                         static_cast<uint32_t>(kSmallBlocks * rows::kBlock * sizeof(float)));
        squares_ = squares_buffer_.template Get<float>();
        const LocalTensor<float> small = small_buffer_.template Get<float>();
        scales_ = small;
        blocks_ = scales_[kMaxTileTokens * rows::kLanes];
        token_sums_ = blocks_[kMaxTileTokens * rows::kBlock];
        pooled_sums_ = token_sums_[kMaxTileTokens * rows::kBlock];
        factor_ = pooled_sums_[rows::kBlock];
        ones_ = factor_[rows::kBlock];
        divisor_ = ones_[rows::kBlock];
        share_ = divisor_[rows::kBlock];
    }

    __aicore__ inline void Process(GM_ADDR norm_weight)
    {
        Duplicate(token_sums_, 0.0f,
                  static_cast<int32_t>((kMaxTileTokens + 1) * rows::kBlock));  // and pooled_sums_
        Duplicate(factor_, 1.0f, static_cast<int32_t>(2 * rows::kBlock));      // and ones_
        if (tiling_.has_norm) {
            gain_ = gain_buffer_.template Get<float>();
            LocalTensor<float> staging = gain_;  // float weights need none
            if constexpr (!kIsFloat) staging = float_tile_.template Get<float>();
            rows::LoadWeight<T>(gain_, norm_weight, tiling_.norm_is_float != 0, staging,
                                tiling_.dim);
        }
        PipeBarrier<PIPE_V>();

        int32_t begin = cu_seqlens_.GetValue(0);
        for (uint32_t item = 0; item < slice_.end - slice_.begin; ++item) {
            const int32_t end = cu_seqlens_.GetValue(item + 1);
            LocalTensor<T> out = out_queue_.template AllocTensor<T>();
            if (begin >= 0 && begin < end && static_cast<uint32_t>(end) <= tiling_.tokens) {
                PoolSequence(out, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
            } else {
                Duplicate(out.template ReinterpretCast<Bits>(), static_cast<Bits>(tiling_.nan_bits),
                          static_cast<int32_t>(tiling_.dim));
            }
            out_queue_.EnQue(out);
            out = out_queue_.template DeQue<T>();
            rows::CopyOut(out_[static_cast<uint64_t>(item) * tiling_.dim], out, tiling_.dim);
            out_queue_.FreeTensor(out);
            begin = end;
        }
    }

private:
    __aicore__ inline void PoolSequence(const LocalTensor<T>& out, uint32_t begin, uint32_t end)
    {
        if (tiling_.mode == POOL_LAST) begin = end - 1;
        if (tiling_.mode == POOL_CLS) end = begin + 1;
        if (end - begin == 1) {
            // A token that is alone needs one scaling at the end, not two.
            LocalTensor<T> raw;
            const LocalTensor<float> x = LoadTile(raw, begin, 1);
            if (tiling_.has_norm) {
                FindRms(x, 1);
            } else {
                Duplicate(factor_, 1.0f, static_cast<int32_t>(rows::kBlock));
            }
            Finish(out, x);
            if constexpr (kIsFloat) tile_queue_.FreeTensor(raw);
            return;
        }
        LocalTensor<float> pooled;
        if constexpr (kIsFloat) {
            pooled = out;
        } else {
            pooled = pooled_row_.template Get<float>();
        }
        for (uint32_t token = begin; token < end; token += tiling_.tokens_per_tile) {
            const uint32_t left = end - token;
            const uint32_t count = left < tiling_.tokens_per_tile ? left : tiling_.tokens_per_tile;
            AddTile(pooled, token, count, token == begin);
        }
        Duplicate(factor_, static_cast<float>(end - begin), static_cast<int32_t>(rows::kBlock));
        Finish(out, pooled);
    }

    // out = pooled * norm_weight / factor_[0], or that divided by its length. pooled is used up.
    __aicore__ inline void Finish(const LocalTensor<T>& out, const LocalTensor<float>& pooled)
    {
        if (tiling_.has_norm) {
            Mul(pooled, pooled, gain_, static_cast<int32_t>(tiling_.dim));
        }
        PipeBarrier<PIPE_V>();
        if (tiling_.normalize) FindLength(pooled);
        SpreadInverse(1);
        if constexpr (kIsFloat) {
            rows::Scale(out, pooled, scales_, tiling_.dim);
        } else {
            rows::Scale(pooled, pooled, scales_, tiling_.dim);
            PipeBarrier<PIPE_V>();
            Cast(out, pooled, RoundMode::CAST_RINT, tiling_.dim);
        }
    }

    // pooled[0..dim) += the tile's tokens, each normed without its weight; the first tile starts
    // it.
    __aicore__ inline void AddTile(const LocalTensor<float>& pooled, uint32_t token, uint32_t count,
                                   bool starts)
    {
        const uint32_t width = tiling_.width;
        LocalTensor<T> raw;
        const LocalTensor<float> x = LoadTile(raw, token, count);
        if (tiling_.has_norm) {
            FindRms(x, count);
            SpreadInverse(count);
            for (uint32_t row = 0; row < count; ++row) {
                const LocalTensor<float> target = starts && row == 0 ? pooled : x[row * width];
                rows::Scale(target, x[row * width], scales_[row * rows::kLanes], tiling_.dim);
            }
        } else if (starts) {
            DataCopy(pooled, x, width);
        }
        PipeBarrier<PIPE_V>();
        for (uint32_t row = starts ? 1 : 0; row < count; ++row) {
            Add(pooled, pooled, x[row * width], static_cast<int32_t>(tiling_.dim));
            PipeBarrier<PIPE_V>();
        }
        if constexpr (kIsFloat) tile_queue_.FreeTensor(raw);
    }

    // `count` tokens as floats. With float32 they are `raw` itself, for the caller to free.
    __aicore__ inline LocalTensor<float> LoadTile(LocalTensor<T>& raw, uint32_t token,
                                                  uint32_t count)
    {
        const uint32_t width = tiling_.width;
        raw = tile_queue_.template AllocTensor<T>();
        const DataCopyExtParams params(
            static_cast<uint16_t>(count), static_cast<uint32_t>(width * sizeof(T)),
            static_cast<uint32_t>((tiling_.row_stride - width) * sizeof(T)), 0, 0);
        DataCopyPad(raw, hidden_[token * tiling_.row_stride], params, DataCopyPadExtParams<T>());
        tile_queue_.EnQue(raw);
        raw = tile_queue_.template DeQue<T>();
        if constexpr (kIsFloat) {
            return raw;
        } else {
            const LocalTensor<float> x = float_tile_.template Get<float>();
            Cast(x, raw, RoundMode::CAST_NONE, count * width);
            PipeBarrier<PIPE_V>();
            tile_queue_.FreeTensor(raw);
            return x;
        }
    }

    // Eight partial sums of the squares of each of `count` rows of n floats, `pitch` apart.
    __aicore__ inline void SumSquares(const LocalTensor<float>& dst, const LocalTensor<float>& x,
                                      uint32_t pitch, uint32_t count, uint32_t n)
    {
        for (uint32_t begin = 0; begin < n; begin += rows::kChunk) {
            const uint32_t lanes = n - begin < rows::kChunk ? n - begin : rows::kChunk;
            for (uint32_t row = 0; row < count; ++row) {
                const LocalTensor<float> chunk = x[row * pitch + begin];
                rows::AddProducts(squares_[row * rows::kChunk], chunk, chunk, begin == 0, lanes);
            }
            PipeBarrier<PIPE_V>();
        }
        rows::PartialSums(dst, rows::kBlock, squares_, count, n);
    }

    // factor_[r] = sqrt(mean(x_r^2) + eps).
    __aicore__ inline void FindRms(const LocalTensor<float>& x, uint32_t count)
    {
        const int32_t lanes = static_cast<int32_t>(kMaxTileTokens);
        SumSquares(token_sums_, x, tiling_.width, count, tiling_.hidden);
        BlockReduceSum(factor_, token_sums_, 1, rows::kLanes, 1, 1, rows::kBlock);
        PipeBarrier<PIPE_V>();
        Muls(factor_, factor_, tiling_.mean_scale, lanes);
        PipeBarrier<PIPE_V>();
        Adds(factor_, factor_, tiling_.eps, lanes);
        PipeBarrier<PIPE_V>();
        Sqrt(factor_, factor_, lanes);
        PipeBarrier<PIPE_V>();
    }

    // pooled stands for pooled / f with f = factor_[0]. Its length is |pooled| / f, so pooled has
    // to be divided by max(|pooled| / f, 1e-12) * f: the new factor_[0].
    __aicore__ inline void FindLength(const LocalTensor<float>& pooled)
    {
        Muls(divisor_, factor_, 1.0f, 1);
        SumSquares(pooled_sums_, pooled, tiling_.width, 1, tiling_.dim);
        WholeReduceSum(factor_, pooled_sums_, rows::kBlock, 1, 1, 1, rows::kBlock);
        PipeBarrier<PIPE_V>();
        Sqrt(factor_, factor_, 1);
        PipeBarrier<PIPE_V>();
        Div(factor_, factor_, divisor_, 1);
        PipeBarrier<PIPE_V>();
        // Maxs may drop a NaN: a share far below the last place of any number brings it back.
        Muls(share_, factor_, 1e-30f, 1);
        PipeBarrier<PIPE_V>();
        Maxs(factor_, factor_, kSmallestLength, 1);
        PipeBarrier<PIPE_V>();
        Add(factor_, factor_, share_, 1);
        PipeBarrier<PIPE_V>();
        Mul(factor_, factor_, divisor_, 1);
        PipeBarrier<PIPE_V>();
    }

    // scales_[r] = 1 / factor_[r] for r < count, each filling a repeat: over a block, then over
    // eight.
    __aicore__ inline void SpreadInverse(uint32_t count)
    {
        const BrcbRepeatParams params(1, rows::kBlock);
        Div(factor_, ones_, factor_, static_cast<int32_t>(rows::kBlock));
        PipeBarrier<PIPE_V>();
        Brcb(blocks_, factor_, 1, params);
        PipeBarrier<PIPE_V>();
        Brcb(scales_, blocks_, static_cast<uint8_t>(count), params);
        PipeBarrier<PIPE_V>();
    }

    static constexpr uint32_t kSmallBlocks = kMaxTileTokens * (rows::kBlock + 2) + 5;

    FusedPoolTiling tiling_;
    rows::Slice slice_;
    GlobalTensor<T> hidden_;
    GlobalTensor<int32_t> cu_seqlens_;
    GlobalTensor<T> out_;
    TQue<QuePosition::VECIN, 1> tile_queue_;
    TQue<QuePosition::VECOUT, 1> out_queue_;
    TBuf<TPosition::VECCALC> float_tile_;
    TBuf<TPosition::VECCALC> pooled_row_;
    TBuf<TPosition::VECCALC> squares_buffer_;
    TBuf<TPosition::VECCALC> gain_buffer_;
    TBuf<TPosition::VECCALC> small_buffer_;
    LocalTensor<float> squares_;
    LocalTensor<float> gain_;
    LocalTensor<float> token_sums_;   // eight partial sums of squares for each token of a tile
    LocalTensor<float> pooled_sums_;  // the same for the pooled row
    LocalTensor<float> factor_;       // a divisor for each token of a tile, or for the pooled row
    LocalTensor<float> ones_;
    LocalTensor<float> divisor_;
    LocalTensor<float> share_;
    LocalTensor<float> blocks_;  // a block for each token of a tile
    LocalTensor<float> scales_;  // a repeat for each token of a tile
};

template <typename T, typename Bits>
__aicore__ inline void RunFusedPool(GM_ADDR hidden, GM_ADDR cu_seqlens, GM_ADDR norm_weight,
                                    GM_ADDR out, const FusedPoolTiling& tiling)
{
    TPipe pipe;
    FusedPool<T, Bits>(&pipe, hidden, cu_seqlens, out, tiling).Process(norm_weight);
}

extern "C" __global__ __aicore__ void fused_pool_bfloat16(GM_ADDR hidden, GM_ADDR cu_seqlens,
                                                          GM_ADDR norm_weight, GM_ADDR out,
                                                          FusedPoolTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunFusedPool<bfloat16_t, int16_t>(hidden, cu_seqlens, norm_weight, out, tiling);
}

extern "C" __global__ __aicore__ void fused_pool_float16(GM_ADDR hidden, GM_ADDR cu_seqlens,
                                                         GM_ADDR norm_weight, GM_ADDR out,
                                                         FusedPoolTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunFusedPool<half, int16_t>(hidden, cu_seqlens, norm_weight, out, tiling);
}

extern "C" __global__ __aicore__ void fused_pool_float32(GM_ADDR hidden, GM_ADDR cu_seqlens,
                                                         GM_ADDR norm_weight, GM_ADDR out,
                                                         FusedPoolTiling tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    RunFusedPool<float, int32_t>(hidden, cu_seqlens, norm_weight, out, tiling);
}
