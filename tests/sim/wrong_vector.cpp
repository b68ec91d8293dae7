// Bugs in the arguments of vector instructions. Each twin computes gm[1] = 2 * gm[0] unless it says
// otherwise.
#include "harness.h"

using namespace AscendC;

constexpr uint64_t kLanes = 64;

PAIR(repeat_wraps)  // 256 repeats are 0 in 8 bits; args[0] = 64 * 256
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    const BinaryRepeatParams p(1, 1, 1, 8, 8, 8);
    const uint32_t repeats = static_cast<uint32_t>(f.n / kLanes), step = wrong ? repeats : 255;
    for (uint32_t done = 0; done < repeats; done += step) {
        const uint32_t now = repeats - done < step ? repeats - done : step,
                       at = static_cast<uint32_t>(done * kLanes);
        Add(r[at], a[at], a[at], kLanes, now, p);
    }
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(stride_wraps)  // a repeat stride of 256 blocks; args[0] = 64: one repeat, or the first of them
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    const int stride = wrong ? 256 : 8;
    Add(r, a, a, kLanes, 1, BinaryRepeatParams(1, 1, 1, 8, stride, 8));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(stride_past_end)  // strides that walk out of the tensor; args[0] = 128
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, kLanes, 2, BinaryRepeatParams(1, 1, 1, 8, wrong ? 9 : 8, 8));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(zero_block_stride)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, kLanes, 1, BinaryRepeatParams(wrong ? 0 : 1, 1, 1, 8, 8, 8));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(mask_too_wide)  // 64 floats a repeat, not 128; args[0] = 64
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, static_cast<uint64_t>(wrong ? 128 : 64), 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(mask_high_half)  // the second word of a bit mask is for 16-bit types; args[0] = 64
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    uint64_t mask[2] = {~uint64_t{0}, wrong ? 1u : 0u};
    Add(r, a, a, mask, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(mask_lost)  // a count form resets the mask; args[0] = 64
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    SetMaskNorm();
    SetVectorMask<float, MaskMode::NORMAL>(0, ~uint64_t{0});
    if (wrong) Duplicate(r, 0.0f, f.n);
    PipeBarrier<PIPE_V>();
    Add<float, false>(r, a, a, MASK_PLACEHOLDER, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    ResetMask();
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(mask_mode)  // SetVectorMask names a mode the core is not in
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    if (!wrong) SetMaskCount();
    SetVectorMask<float, MaskMode::COUNTER>(0, f.n);
    Add<float, false>(r, a, a, MASK_PLACEHOLDER, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    SetMaskNorm();
    ResetMask();
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(counter_mode_forgotten)  // a high-dimensional form sets a mask of bits in counter mode;
                              // args[0] = 64
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    SetMaskCount();
    if (!wrong) SetMaskNorm();
    Add(r, a, a, kLanes, 1, BinaryRepeatParams(1, 1, 1, 8, 8, 8));
    SetMaskNorm();
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(counter_mode_left)
{
    Frame f(gm, args);
    f.Double();
    SetMaskCount();
    if (!wrong) SetMaskNorm();
}

PAIR(partial_overlap)
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, 2 * f.n * sizeof(float) + 32);
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(t, a, 1.0f, f.n);
    f.in.FreeTensor(a);
    PipeBarrier<PIPE_V>();
    const LocalTensor<float> moved = t[wrong ? 8 : (f.n + 7) / 8 * 8];
    Add(moved, t, t, f.n);
    PipeBarrier<PIPE_V>();
    Muls(r, moved, 1.0f, f.n);
    f.Store(r);
}

PAIR(widened_in_place)  // gm[1] = float(gm[0]), half
{
    const uint32_t n = static_cast<uint32_t>(args[0]);
    TPipe pipe;
    TBuf<> scratch, other;
    pipe.InitBuffer(scratch, n * 4 + 32);
    pipe.InitBuffer(other, n * 2 + 32);
    const LocalTensor<float> wide = scratch.Get<float>();
    const LocalTensor<half> narrow = wrong ? wide.ReinterpretCast<half>() : other.Get<half>();
    CopyIn(narrow, Global<half>(gm[0], n), n);
    Sync<HardEvent::MTE2_V>();
    Cast(wide, narrow, RoundMode::CAST_NONE, n);
    Sync<HardEvent::V_MTE3>();
    CopyOut(Global<float>(gm[1], n), wide, n);
}

PAIR(cast_mode)  // float -> bf16 -> float: CAST_NONE does not round; gm[1] = bf16(gm[0])
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * 2);
    const LocalTensor<bfloat16_t> t = scratch.Get<bfloat16_t>();
    LocalTensor<float> a = f.Load(), r = f.Result();
    Cast(t, a, wrong ? RoundMode::CAST_NONE : RoundMode::CAST_RINT, f.n);
    PipeBarrier<PIPE_V>();
    Cast(r, t, RoundMode::CAST_NONE, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(count_past_end)  // the count of another tensor
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, 32);
    const LocalTensor<float> t = scratch.Get<float>();
    Duplicate(t, 2.0f, wrong ? 9 : 8);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(negative_count)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    if (wrong) Add(r, a, a, -1);
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

// gm[1][0] = sum of gm[0], args[0] floats
template <class Sum>
void OneSum(Gm* gm, const int64_t* args, uint32_t tmp_bytes, Sum sum)
{
    const uint32_t n = static_cast<uint32_t>(args[0]);
    TPipe pipe;
    TBuf<> source, work, target;
    pipe.InitBuffer(source, n * 4);
    pipe.InitBuffer(work, tmp_bytes);
    pipe.InitBuffer(target, 32);
    CopyIn(source.Get<float>(), Global<float>(gm[0], n), n);
    Sync<HardEvent::MTE2_V>();
    sum(target.Get<float>(), source.Get<float>(), work.Get<float>(), n);
    Sync<HardEvent::V_MTE3>();
    CopyOut(Global<float>(gm[1], 1), target.Get<float>(), 1);
}

PAIR(small_work_buffer)  // args[0] = 1024: 16 partial sums
{
    OneSum(gm, args, wrong ? 32 : 64,
           [](auto dst, auto src, auto tmp, uint32_t n) { ReduceSum(dst, src, tmp, n); });
}

PAIR(mask_and_repeat_swapped)  // WholeReduceSum takes mask first; args[0] = 320: 5 repeats of 64
{
    OneSum(gm, args, 32, [](auto dst, auto src, auto tmp, uint32_t n) {
        const int32_t repeats = static_cast<int32_t>(n / 64);
        // Eight sums a repeat, one repeat each: the swapped call would ask for 5 lanes of 64
        // repeats.
        if (wrong) WholeReduceSum(tmp, src, repeats, 64, 1, 1, 8);
        else WholeReduceSum(tmp, src, 64, repeats, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        WholeReduceSum(dst, tmp, repeats, 1, 1, 1, 8);
    });
}

PAIR(misaligned_sums)  // BlockReduceSum writes eight values: 32 bytes; args[0] = 64
{
    OneSum(gm, args, 96, [](auto dst, auto src, auto tmp, uint32_t) {
        const auto sums = tmp[wrong ? 4 : 8];
        BlockReduceSum(sums, src, 1, 64, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        WholeReduceSum(dst, sums, 8, 1, 1, 1, 8);
    });
}

PAIR(sum_of_nothing)
{
    OneSum(gm, args, 64, [](auto dst, auto src, auto tmp, uint32_t n) {
        ReduceSum(dst, src, tmp, wrong ? 0 : static_cast<int32_t>(n));
    });
}
