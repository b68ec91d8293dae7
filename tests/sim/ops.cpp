// Kernels that run one instruction each, for comparison with numpy. Numbers come in args; data in
// gm[0], gm[1].
#include "harness.h"

using namespace AscendC;

namespace {

// Scratch of one type, filled from global memory, and written back.
template <class T>
struct Scratch {
    Scratch(TPipe& pipe, uint32_t elements)
    {
        pipe.InitBuffer(buffer, elements * sizeof(T));
        tensor = buffer.template Get<T>();
    }
    void Fill(Gm from, uint32_t n)
    {
        if (n > 0) CopyIn(tensor, Global<T>(from, n), n);
        Sync<HardEvent::MTE2_V>();
        Sync<HardEvent::MTE2_S>();
    }
    void Drain(Gm to, uint32_t n)
    {
        PipeBarrier<PIPE_ALL>();
        CopyOut(Global<T>(to, n), tensor, n);
        PipeBarrier<PIPE_ALL>();
    }
    TBuf<> buffer;
    LocalTensor<T> tensor;
};

int32_t I(int64_t value) { return static_cast<int32_t>(value); }
uint32_t U(int64_t value) { return static_cast<uint32_t>(value); }

// args: count, mode
template <class D, class S>
void RunCast(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]);
    TPipe pipe;
    Scratch<S> src(pipe, n);
    Scratch<D> dst(pipe, n);
    src.Fill(gm[0], n);
    Cast(dst.tensor, src.tensor, static_cast<RoundMode>(args[1]), n);
    dst.Drain(gm[1], n);
}
const Register cast_1{"cast_float_bfloat16", RunCast<float, bfloat16_t>};
const Register cast_2{"cast_float_half", RunCast<float, half>};
const Register cast_3{"cast_bfloat16_float", RunCast<bfloat16_t, float>};
const Register cast_4{"cast_half_float", RunCast<half, float>};
const Register cast_5{"cast_int32_float", RunCast<int32_t, float>};
const Register cast_6{"cast_float_int32", RunCast<float, int32_t>};
const Register cast_7{"cast_int32_bfloat16", RunCast<int32_t, bfloat16_t>};

// args: count, name of the instruction as a number; gm[1] = op(gm[0], gm[1])
template <class T>
void RunCount(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]);
    TPipe pipe;
    Scratch<T> a(pipe, n), d(pipe, n);
    a.Fill(gm[0], n);
    d.Fill(gm[1], n);
    const LocalTensor<T> x = a.tensor, y = d.tensor;
    switch (args[1]) {
        case 0: Add(y, x, y, I(n)); break;
        case 1: Sub(y, x, y, I(n)); break;
        case 2: Mul(y, x, y, I(n)); break;
        case 3: Max(y, x, y, I(n)); break;
        case 4: Min(y, x, y, I(n)); break;
        default: break;
    }
    if constexpr (sim::kIsOneOf<T, float, half>) {
        switch (args[1]) {
            case 5: Div(y, x, y, I(n)); break;
            case 6: Exp(y, x, I(n)); break;
            case 7: Ln(y, x, I(n)); break;
            case 8: Sqrt(y, x, I(n)); break;
            case 9: Abs(y, x, I(n)); break;
            case 10: Reciprocal(y, x, I(n)); break;
            case 11: Rsqrt(y, x, I(n)); break;
            case 12: MulAddDst(y, x, x, I(n)); break;
            case 13: Axpy(y, x, T(3.0f), I(n)); break;
            case 14: Adds(y, x, T(3.0f), I(n)); break;
            case 15: Muls(y, x, T(3.0f), I(n)); break;
            case 16: Maxs(y, x, T(3.0f), I(n)); break;
            case 17: Mins(y, x, T(3.0f), I(n)); break;
            default: break;
        }
    }
    d.Drain(gm[1], n);
}
const Register count_1{"count_float", RunCount<float>};
const Register count_2{"count_half", RunCount<half>};
const Register count_3{"count_int32", RunCount<int32_t>};
const Register count_4{"count_int16", RunCount<int16_t>};

// half sources into a float destination: gm[1] += gm[0] * gm[0] (args[1] = 0) or gm[0] * 3 (1)
void RunWideMulAdd(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]);
    TPipe pipe;
    Scratch<half> a(pipe, n);
    Scratch<float> d(pipe, n);
    a.Fill(gm[0], n);
    d.Fill(gm[1], n);
    if (args[1] == 0) MulAddDst(d.tensor, a.tensor, a.tensor, I(n));
    else Axpy(d.tensor, a.tensor, half(3.0f), I(n));
    d.Drain(gm[1], n);
}
const Register wide_muladd{"wide_muladd", RunWideMulAdd};

// args: size of src, size of dst, form (0 lanes, 1 bits, 2 counter mode), mask low, mask high,
// repeats, six strides
template <class T>
void RunStridedSub(Gm* gm, const int64_t* args)
{
    const uint32_t src_size = U(args[0]), dst_size = U(args[1]);
    TPipe pipe;
    Scratch<T> a(pipe, src_size), d(pipe, dst_size);
    a.Fill(gm[0], src_size);
    d.Fill(gm[1], dst_size);
    const BinaryRepeatParams p(I(args[6]), I(args[7]), I(args[8]), I(args[9]), I(args[10]),
                               I(args[11]));
    const LocalTensor<T> second = a.tensor[src_size / 2];
    uint64_t bits[2] = {static_cast<uint64_t>(args[3]), static_cast<uint64_t>(args[4])};
    if (args[2] == 0) Sub(d.tensor, a.tensor, second, bits[0], args[5], p);
    if (args[2] == 1) Sub(d.tensor, a.tensor, second, bits, args[5], p);
    if (args[2] == 2) {
        SetMaskCount();
        SetVectorMask<T, MaskMode::COUNTER>(0, bits[0]);
        Sub<T, false>(d.tensor, a.tensor, second, MASK_PLACEHOLDER, 1, p);
        SetMaskNorm();
        ResetMask();
    }
    d.Drain(gm[1], dst_size);
}
const Register strided_1{"strided_sub_float", RunStridedSub<float>};
const Register strided_2{"strided_sub_half", RunStridedSub<half>};
const Register strided_3{"strided_sub_int32", RunStridedSub<int32_t>};

// bfloat16 -> float by repeats. args: size of src, size of dst, lanes, repeats, four strides
void RunStridedCast(Gm* gm, const int64_t* args)
{
    TPipe pipe;
    Scratch<bfloat16_t> a(pipe, U(args[0]));
    Scratch<float> d(pipe, U(args[1]));
    a.Fill(gm[0], U(args[0]));
    d.Fill(gm[1], U(args[1]));
    Cast(d.tensor, a.tensor, RoundMode::CAST_NONE, static_cast<uint64_t>(args[2]), args[3],
         UnaryRepeatParams(I(args[4]), I(args[5]), I(args[6]), I(args[7])));
    d.Drain(gm[1], U(args[1]));
}
const Register strided_cast{"strided_cast", RunStridedCast};

// args: size of src, size of dst, kind, mask (lanes), repeats, dstRep, srcBlk, srcRep
template <class T>
void RunSum(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]), results = U(args[1]);
    TPipe pipe;
    Scratch<T> a(pipe, n), d(pipe, results), tmp(pipe, 1024);
    a.Fill(gm[0], n);
    d.Fill(gm[1], results);
    const LocalTensor<T> x = a.tensor, y = d.tensor;
    const int32_t mask = I(args[3]), repeat = I(args[4]), dst = I(args[5]), blk = I(args[6]),
                  rep = I(args[7]);
    switch (args[2]) {
        case 0: ReduceSum(y, x, tmp.tensor, I(n)); break;
        case 1: ReduceSum(y, x, tmp.tensor, mask, repeat, rep); break;
        case 2: WholeReduceSum(y, x, mask, repeat, dst, blk, rep); break;
        case 3: BlockReduceSum(y, x, repeat, mask, dst, blk, rep); break;
        case 4: PairReduceSum(y, x, repeat, mask, dst, blk, rep); break;
        case 5: RepeatReduceSum(y, x, repeat, mask, 1, blk, dst, rep); break;
        default: break;
    }
    d.Drain(gm[1], results);
}
const Register sum_1{"sum_float", RunSum<float>};
const Register sum_2{"sum_half", RunSum<half>};

// args: size of src, size of dst, repeats, block stride, repeat stride
template <class T>
void RunBrcb(Gm* gm, const int64_t* args)
{
    TPipe pipe;
    Scratch<T> a(pipe, U(args[0])), d(pipe, U(args[1]));
    a.Fill(gm[0], U(args[0]));
    d.Fill(gm[1], U(args[1]));
    Brcb(d.tensor, a.tensor, args[2], BrcbRepeatParams(I(args[3]), I(args[4])));
    d.Drain(gm[1], U(args[1]));
}
const Register brcb_1{"brcb_float", RunBrcb<float>};
const Register brcb_2{"brcb_int16", RunBrcb<int16_t>};

// args: source bytes, UB bytes, blockCount, blockLen, srcStride, dstStride, isPad, left, right.
// gm[1] is UB before and after; padding value 7.
template <class T>
void RunPadIn(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]) / sizeof(T), ub = U(args[1]) / sizeof(T);
    TPipe pipe;
    Scratch<T> d(pipe, ub);
    d.Fill(gm[1], ub);
    PipeBarrier<PIPE_MTE2>();
    DataCopyPad(
        d.tensor, Global<T>(gm[0], n),
        DataCopyExtParams(static_cast<uint16_t>(args[2]), U(args[3]), U(args[4]), U(args[5]), 0),
        DataCopyPadExtParams<T>(args[6] != 0, static_cast<uint8_t>(args[7]),
                                static_cast<uint8_t>(args[8]), T(7)));
    d.Drain(gm[1], ub);
}
const Register pad_in_1{"pad_in_1", RunPadIn<int8_t>};
const Register pad_in_2{"pad_in_2", RunPadIn<int16_t>};
const Register pad_in_4{"pad_in_4", RunPadIn<float>};
const Register pad_in_8{"pad_in_8", RunPadIn<int64_t>};

// args: UB bytes, destination bytes, blockCount, blockLen, srcStride, dstStride
template <class T>
void RunPadOut(Gm* gm, const int64_t* args)
{
    const uint32_t ub = U(args[0]) / sizeof(T), n = U(args[1]) / sizeof(T);
    TPipe pipe;
    Scratch<T> s(pipe, ub);
    s.Fill(gm[0], ub);
    Sync<HardEvent::MTE2_MTE3>();
    DataCopyPad(
        Global<T>(gm[1], n), s.tensor,
        DataCopyExtParams(static_cast<uint16_t>(args[2]), U(args[3]), U(args[4]), U(args[5]), 0));
}
const Register pad_out_1{"pad_out_1", RunPadOut<int8_t>};
const Register pad_out_2{"pad_out_2", RunPadOut<int16_t>};
const Register pad_out_4{"pad_out_4", RunPadOut<float>};

// args: floats in each of gm[0], gm[1], blockCount, blockLen, srcStride, dstStride; way 0 in, 1
// out, 2 inside UB
void RunBlockCopy(Gm* gm, const int64_t* args)
{
    const uint32_t n = U(args[0]);
    TPipe pipe;
    Scratch<float> a(pipe, n), d(pipe, n);
    a.Fill(gm[0], n);
    d.Fill(gm[1], n);
    const DataCopyParams p(static_cast<uint16_t>(args[1]), static_cast<uint16_t>(args[2]),
                           static_cast<uint16_t>(args[3]), static_cast<uint16_t>(args[4]));
    PipeBarrier<PIPE_ALL>();
    if (args[5] == 0) DataCopy(d.tensor, Global<float>(gm[0], n), p);
    if (args[5] == 2) DataCopy(d.tensor, a.tensor, p);
    if (args[5] == 1) DataCopy(Global<float>(gm[1], n), a.tensor, p);
    else d.Drain(gm[1], n);
}
const Register block_copy{"block_copy", RunBlockCopy};

// gm[1][r] = sum of the squares of row r of gm[0] (half). args: rows, width. Blocks take rows in
// turn.
void RunRows(Gm* gm, const int64_t* args)
{
    const uint32_t rows = U(args[0]), width = U(args[1]);
    TPipe pipe;
    TQue<TPosition::VECIN, 1> in;
    TQue<TPosition::VECOUT, 1> out;
    TBuf<> wide, tmp;
    pipe.InitBuffer(in, 2, width * 2);
    pipe.InitBuffer(out, 1, 32);
    pipe.InitBuffer(wide, width * 4);
    pipe.InitBuffer(tmp, (width / 64 + 1) * 4);
    const LocalTensor<float> x = wide.Get<float>();
    for (uint64_t row = static_cast<uint64_t>(GetBlockIdx()); row < rows;
         row += static_cast<uint64_t>(GetBlockNum())) {
        LocalTensor<half> raw = in.AllocTensor<half>();
        CopyIn(raw, Global<half>(gm[0], uint64_t{rows} * width)[row * width], width);
        in.EnQue(raw);
        raw = in.DeQue<half>();
        Cast(x, raw, RoundMode::CAST_NONE, width);
        in.FreeTensor(raw);
        PipeBarrier<PIPE_V>();
        Mul(x, x, x, I(width));
        PipeBarrier<PIPE_V>();
        LocalTensor<float> sum = out.AllocTensor<float>();
        ReduceSum(sum, x, tmp.Get<float>(), I(width));
        out.EnQue(sum);
        sum = out.DeQue<float>();
        CopyOut(Global<float>(gm[1], rows)[row], sum, 1);
        out.FreeTensor(sum);
        PipeBarrier<PIPE_V>();
    }
}
const Register rows_kernel{"rows", RunRows};

}  // namespace
