// Bugs of address, length and initialisation. Each twin computes gm[1] = 2 * gm[0] unless it says
// otherwise.
#include "harness.h"

using namespace AscendC;

PAIR(misaligned_operand)  // an offset counted in elements where 32 bytes are the unit
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float) + 64);
    const LocalTensor<float> t = scratch.Get<float>()[wrong ? 1 : 8];
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(t, a, 2.0f, f.n);
    PipeBarrier<PIPE_V>();
    Muls(r, t, 1.0f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(dropped_tail)  // DataCopy rounds a count down to 32 bytes
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.out.EnQue(r);
    r = f.out.DeQue<float>();
    if (wrong) DataCopy(f.y, r, f.n);
    else CopyOut(f.y, r, f.n);
    f.out.FreeTensor(r);
}

PAIR(misaligned_copy)  // DataCopy into the middle of a 32-byte block
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float) + 32);
    const LocalTensor<float> t = scratch.Get<float>()[wrong ? 2 : 8];
    CopyIn(t, f.x, f.n);
    Sync<HardEvent::MTE2_V>();
    LocalTensor<float> r = f.Result();
    Muls(r, t, 2.0f, f.n);
    f.Store(r);
}

PAIR(copy_past_buffer)
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, wrong ? f.n * sizeof(float) - 32 : f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    CopyIn(t, f.x, f.n);
    Sync<HardEvent::MTE2_V>();
    LocalTensor<float> r = f.Result();
    Muls(r, t, 2.0f, f.n);
    f.Store(r);
}

PAIR(undefined_filler)  // padding asked for, isPad forgotten; args[0] odd
{
    const uint32_t n = static_cast<uint32_t>(args[0]), padded = (n + 7) / 8 * 8;
    TPipe pipe;
    TQue<TPosition::VECIN, 1> in;
    TQue<TPosition::VECOUT, 1> out;
    pipe.InitBuffer(in, 1, padded * 4);
    pipe.InitBuffer(out, 1, padded * 4);
    LocalTensor<float> a = in.AllocTensor<float>(), r = out.AllocTensor<float>();
    DataCopyPad(a, Global<float>(gm[0], n), DataCopyExtParams(1, n * 4, 0, 0, 0),
                DataCopyPadExtParams<float>(!wrong, 0, static_cast<uint8_t>(padded - n), 0.0f));
    in.EnQue(a);
    a = in.DeQue<float>();
    Muls(r, a, 2.0f, padded);
    in.FreeTensor(a);
    out.EnQue(r);
    r = out.DeQue<float>();
    CopyOut(Global<float>(gm[1], n), r, n);
    out.FreeTensor(r);
}

PAIR(never_written)  // reads more than was copied in
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    if (!wrong) Duplicate(t, 1.0f, f.n);
    PipeBarrier<PIPE_V>();
    LocalTensor<float> a = f.Load(), r = f.Result();
    Mul(t, t, a, f.n);
    PipeBarrier<PIPE_V>();
    Add(r, t, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(over_budget)  // fits the buffer, but not what the tool chain leaves of it
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, wrong ? 190000 : 180000);
    f.Double();
}

PAIR(over_limit)
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, wrong ? 196608 : 180000);
    f.Double();
}

PAIR(empty_buffer)
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, wrong ? 0 : 1);
    f.Double();
}

PAIR(index_past_end)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    Sync<HardEvent::MTE2_S>();
    const float last = a.GetValue(wrong ? a.GetSize() : f.n - 1);
    Sync<HardEvent::V_S>();
    r.SetValue(f.n - 1, 2.0f * last);
    Sync<HardEvent::S_MTE3>();
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(offset_past_end)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    const LocalTensor<float> part = a[wrong ? a.GetSize() + 8 : 0];
    Add(r, part, part, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(scratch_offset)  // GetWithOffset takes bytes
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, 2 * f.n * sizeof(float) + 64);
    const LocalTensor<float> t = scratch.GetWithOffset<float>(f.n, wrong ? 8 : 32);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(t, a, 2.0f, f.n);
    PipeBarrier<PIPE_V>();
    Muls(r, t, 1.0f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(past_region)  // the tensor claims more than was allocated
{
    Frame f(gm, args);
    f.x.SetGlobalBuffer(reinterpret_cast<float*>(gm[0]), f.n + 8);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x[wrong ? 8 : 0], f.n);
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(past_tensor)  // inside the allocation, past the size given to SetGlobalBuffer
{
    Frame f(gm, args);
    f.x = Global<float>(gm[0], wrong ? f.n - 1 : f.n);
    f.Double();
}

PAIR(negative_index)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    const int32_t row = wrong ? -1 : 0;
    CopyIn(a, f.x[static_cast<uint64_t>(static_cast<int64_t>(row) * f.n)], f.n);
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(offset_in_32_bits)  // gm[1][0..64) = gm[0][row * width ..), args = {row, width}
{
    TPipe pipe;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> queue;
    pipe.InitBuffer(queue, 1, 64);
    const int32_t row = static_cast<int32_t>(args[0]), width = static_cast<int32_t>(args[1]);
    const int64_t offset =
        wrong ? static_cast<int32_t>(static_cast<uint32_t>(row) * static_cast<uint32_t>(width))
              : int64_t{row} * width;
    LocalTensor<int8_t> t = queue.AllocTensor<int8_t>();
    CopyIn(t, Global<int8_t>(gm[0], static_cast<uint64_t>(row + 1) * width)[offset], 64);
    queue.EnQue(t);
    t = queue.DeQue<int8_t>();
    CopyOut(Global<int8_t>(gm[1], 64), t, 64);
    queue.FreeTensor(t);
}

PAIR(write_to_input)
{
    Frame f(gm, args);
    if (wrong) f.y = f.x;
    f.Double();
}

PAIR(size_unknown)  // GetSize of a tensor that was given none
{
    Frame f(gm, args);
    if (wrong) f.x.SetGlobalBuffer(reinterpret_cast<float*>(gm[0]));
    f.n = static_cast<uint32_t>(f.x.GetSize());
    f.Double();
}

PAIR(misaligned_global)
{
    Frame f(gm, args);
    GlobalTensor<float> shifted;
    shifted.SetGlobalBuffer(reinterpret_cast<float*>(gm[0] + (wrong ? 2 : 0)), f.n);
    f.Double();
}

PAIR(split_element)  // a block length that cuts an element
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    DataCopyPad(a, f.x, DataCopyExtParams(1, f.n * 4 - (wrong ? 2 : 0), 0, 0, 0),
                DataCopyPadExtParams<float>());
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(too_many_blocks)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    const uint16_t blocks = wrong ? 5000 : 1;
    DataCopyPad(a, f.x, DataCopyExtParams(blocks, f.n * 4, 0, 0, 0), DataCopyPadExtParams<float>());
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(too_much_padding)  // args[0] a multiple of 8
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * 4 + 64);
    const LocalTensor<float> t = scratch.Get<float>();
    DataCopyPad(t, f.x, DataCopyExtParams(1, f.n * 4, 0, 0, 0),
                DataCopyPadExtParams<float>(true, 0, wrong ? 9 : 8, 0.0f));
    Sync<HardEvent::MTE2_V>();
    LocalTensor<float> r = f.Result();
    Muls(r, t, 2.0f, f.n);
    f.Store(r);
}

PAIR(cores_overlap)  // gm[1] = 2 * gm[0] in args[0] floats a block; the wrong slices overlap by one
{
    const uint64_t n = static_cast<uint64_t>(args[0]);
    const uint64_t start = GetBlockIdx() * n, shared = wrong && GetBlockIdx() > 0 ? 4 : 0;
    Gm own[2] = {gm[0] + start * 4 - shared, gm[1] + start * 4 - shared};
    Frame(own, args).Double();
}

PAIR(cores_unordered)  // block 1 reads what block 0 writes
{
    const uint64_t n = static_cast<uint64_t>(args[0]);
    const uint64_t offset = GetBlockIdx() * n * 4;
    Gm own[2] = {wrong && GetBlockIdx() == 1 ? gm[1] : gm[0] + offset, gm[1] + offset};
    Frame(own, args).Double();
}

PAIR(atomic_left_on)  // gm[1], zero before, += 2 * gm[0]
{
    Frame f(gm, args);
    SetAtomicAdd<float>();
    f.Double();
    if (!wrong) SetAtomicNone();
}

PAIR(atomic_type)
{
    Frame f(gm, args);
    if (wrong) SetAtomicAdd<int32_t>();
    else SetAtomicAdd<float>();
    f.Double();
    SetAtomicNone();
}

PAIR(stale_cache)  // a scalar read of global memory this launch wrote by DMA
{
    Frame f(gm, args);
    f.Double();
    PipeBarrier<PIPE_ALL>();
    if (wrong) f.y.GetValue(0);
    else f.x.GetValue(0);
}
