// Bugs of synchronisation: flags and barriers. Each twin computes gm[1] = 2 * gm[0].
#include "harness.h"

using namespace AscendC;

PAIR(missing_barrier)  // two dependent vector instructions
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(r, a, 4.0f, f.n);
    if (!wrong) PipeBarrier<PIPE_V>();
    Muls(r, r, 0.5f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(overwritten_operand)  // write after read, on one pipe
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    if (!wrong) PipeBarrier<PIPE_V>();
    Duplicate(a, 0.0f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(skipped_enque)  // "I only need the buffer"
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x, f.n);
    if (!wrong) {
        f.in.EnQue(a);
        a = f.in.DeQue<float>();
    }
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(skipped_enque_out)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    if (!wrong) {
        f.out.EnQue(r);
        r = f.out.DeQue<float>();
    }
    CopyOut(f.y, r, f.n);
    f.out.FreeTensor(r);
}

PAIR(scratch_copy_in)  // no queue watches a TBuf
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> r = f.Result();
    CopyIn(t, f.x, f.n);
    if (!wrong) Sync<HardEvent::MTE2_V>();
    Add(r, t, t, f.n);
    f.Store(r);
}

PAIR(scratch_copy_out)
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> a = f.Load();
    Add(t, a, a, f.n);
    f.in.FreeTensor(a);
    if (!wrong) Sync<HardEvent::V_MTE3>();
    CopyOut(f.y, t, f.n);
}

PAIR(scratch_reused)  // MTE2 overwrites what the vector unit still reads
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> r = f.Result();
    for (int round = 0; round < 2; ++round) {
        if (!wrong && round > 0) Sync<HardEvent::V_MTE2>();
        CopyIn(t, f.x, f.n);
        Sync<HardEvent::MTE2_V>();
        PipeBarrier<PIPE_V>();
        Add(r, t, t, f.n);
    }
    f.Store(r);
}

PAIR(result_reused)  // the vector unit overwrites what MTE3 still reads
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> a = f.Load();
    Add(t, a, a, f.n);
    f.in.FreeTensor(a);
    Sync<HardEvent::V_MTE3>();
    CopyOut(f.y, t, f.n);
    if (!wrong) Sync<HardEvent::MTE3_V>();
    Duplicate(t, 0.0f, f.n);
}

PAIR(copy_twice)  // MTE2 writes a place twice
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x, f.n);
    if (!wrong) PipeBarrier<PIPE_MTE2>();
    CopyIn(a, f.x, f.n);
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(store_twice)  // MTE3 writes a place in global memory twice
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.out.EnQue(r);
    r = f.out.DeQue<float>();
    CopyOut(f.y, r, f.n);
    if (!wrong) PipeBarrier<PIPE_MTE3>();
    CopyOut(f.y, r, f.n);
    f.out.FreeTensor(r);
}

PAIR(read_back)  // MTE2 reads what MTE3 of the same core wrote
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(r, a, 1.0f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
    if (!wrong) Sync<HardEvent::MTE3_MTE2>();
    a = f.in.AllocTensor<float>();
    CopyIn(a, f.y, f.n);
    f.in.EnQue(a);
    a = f.in.DeQue<float>();
    r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    PipeBarrier<PIPE_ALL>();
    f.Store(r);
}

PAIR(bound_queue)  // pure copy (of 2 x, made in place on the way out) needs MTE2 -> MTE3
{
    const uint32_t n = static_cast<uint32_t>(args[0]);
    TPipe pipe;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> queue;
    pipe.InitBuffer(queue, 2, n * 4);
    for (int round = 0; round < 2; ++round) {  // two additions of x
        LocalTensor<float> t = queue.AllocTensor<float>();
        CopyIn(t, Global<float>(gm[0], n), n);
        if (!wrong) {
            queue.EnQue(t);
            t = queue.DeQue<float>();
        }
        SetAtomicAdd<float>();
        PipeBarrier<PIPE_MTE3>();
        CopyOut(Global<float>(gm[1], n), t, n);
        SetAtomicNone();
        queue.FreeTensor(t);
    }
}

PAIR(scalar_store_unseen)  // SetValue, then the vector unit
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, 32);
    const LocalTensor<float> two = scratch.Get<float>();
    for (uint32_t i = 0; i < 8; ++i) two.SetValue(i, 2.0f);
    LocalTensor<float> a = f.Load(), r = f.Result();
    if (!wrong) Sync<HardEvent::S_V>();
    Mul(r, a, two, static_cast<uint64_t>(8), static_cast<uint8_t>(f.n / 8),
        BinaryRepeatParams(1, 1, 0, 1, 1, 0));
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(scalar_store_copied)  // SetValue, then MTE3
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    Sync<HardEvent::MTE2_S>();
    Sync<HardEvent::V_S>();
    r.SetValue(0, 2.0f * a(0));
    if (!wrong) Sync<HardEvent::S_MTE3>();
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(scalar_load_early)  // GetValue of what the vector unit computes
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, 32);
    const LocalTensor<float> two = scratch.Get<float>();
    Duplicate(two, 2.0f, 8);
    if (!wrong) Sync<HardEvent::V_S>();
    const float factor = two.GetValue(0);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Muls(r, a, factor, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(queued_scalar_load)  // DeQue serves the vector unit, not the scalar unit
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    if (!wrong) Sync<HardEvent::MTE2_S>();
    const float first = a(0);
    Muls(r, a, first == first ? 2.0f : 2.0f, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(known_through_scalar)  // what the scalar unit waited for holds for all it posts afterwards
{
    Frame f(gm, args);
    TBuf<> scratch;
    f.pipe.InitBuffer(scratch, f.n * sizeof(float));
    const LocalTensor<float> t = scratch.Get<float>();
    LocalTensor<float> a = f.Load();
    Add(t, a, a, f.n);
    f.in.FreeTensor(a);
    if (!wrong) Sync<HardEvent::V_S>();
    CopyOut(f.y, t, f.n);
}

PAIR(flag_left_up)
{
    Frame f(gm, args);
    f.Double();
    SetFlag<HardEvent::V_MTE2>(7);
    if (!wrong) WaitFlag<HardEvent::V_MTE2>(7);
}

PAIR(flag_never_set)
{
    Frame f(gm, args);
    if (!wrong) SetFlag<HardEvent::S_V>(3);
    WaitFlag<HardEvent::S_V>(3);
    f.Double();
}

PAIR(flag_set_twice)
{
    Frame f(gm, args);
    SetFlag<HardEvent::V_S>(1);
    if (!wrong) WaitFlag<HardEvent::V_S>(1);
    SetFlag<HardEvent::V_S>(1);
    WaitFlag<HardEvent::V_S>(1);
    f.Double();
}

PAIR(flag_id_range)
{
    Frame f(gm, args);
    SetFlag<HardEvent::V_S>(wrong ? 8 : 5);
    WaitFlag<HardEvent::V_S>(wrong ? 8 : 5);
    f.Double();
}

PAIR(event_not_reserved)
{
    Frame f(gm, args);
    const TEventID id =
        wrong ? f.pipe.FetchEventID(HardEvent::V_S) : f.pipe.AllocEventID<HardEvent::V_S>();
    f.pipe.ReleaseEventID<HardEvent::V_S>(id);
    f.Double();
}

PAIR(events_used_up)
{
    Frame f(gm, args);
    for (int i = 0; i < (wrong ? 9 : 8); ++i) f.pipe.AllocEventID<HardEvent::V_S>();
    f.Double();
}

PAIR(fetched_id_kept)  // FetchEventID reserves nothing: the queue takes the same id
{
    Frame f(gm, args);
    const TEventID id =
        wrong ? f.pipe.FetchEventID(HardEvent::MTE2_V) : f.pipe.AllocEventID<HardEvent::MTE2_V>();
    SetFlag<HardEvent::MTE2_V>(id);
    f.Double();
    WaitFlag<HardEvent::MTE2_V>(id);
}
