// Bugs in the use of queues, buffers and TPipe. Each twin computes gm[1] = 2 * gm[0].
#include "harness.h"

using namespace AscendC;

PAIR(used_in_queue)  // between EnQue and DeQue
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x, f.n);
    f.in.EnQue(a);
    if (wrong) Add(r, a, a, f.n);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(no_free_buffer)  // hangs on the second round
{
    Frame f(gm, args);
    for (int round = 0; round < 2; ++round) {
        LocalTensor<float> a = f.Load(), r = f.Result();
        Add(r, a, a, f.n);
        if (!wrong) f.in.FreeTensor(a);
        f.out.EnQue(r);
        r = f.out.DeQue<float>();
        PipeBarrier<PIPE_MTE3>();
        CopyOut(f.y, r, f.n);
        f.out.FreeTensor(r);
    }
}

PAIR(never_freed)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    if (!wrong) f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(left_in_queue)
{
    Frame f(gm, args);
    f.Double();
    LocalTensor<float> a = f.in.AllocTensor<float>();
    CopyIn(a, f.x, f.n);
    f.in.EnQue(a);
    if (!wrong) {
        a = f.in.DeQue<float>();
        f.in.FreeTensor(a);
    }
}

PAIR(freed_twice)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    if (wrong) f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(used_after_free)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    if (wrong) f.in.FreeTensor(a);
    Add(r, a, a, f.n);
    if (!wrong) f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(used_after_reuse)  // an old handle to a buffer that was handed out again
{
    Frame f(gm, args);
    LocalTensor<float> old = f.Load();
    f.in.FreeTensor(old);
    LocalTensor<float> a = f.Load(), r = f.Result();
    const LocalTensor<float>& used = wrong ? old : a;
    Add(r, used, used, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(foreign_tensor)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.Load(), r = f.Result();
    Add(r, a, a, f.n);
    if (wrong) f.out.FreeTensor(a);
    else f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(empty_queue)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x, f.n);
    if (!wrong) f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(queued_twice)
{
    Frame f(gm, args);
    LocalTensor<float> a = f.in.AllocTensor<float>(), r = f.Result();
    CopyIn(a, f.x, f.n);
    f.in.EnQue(a);
    if (wrong) f.in.EnQue(a);
    a = f.in.DeQue<float>();
    Add(r, a, a, f.n);
    f.in.FreeTensor(a);
    f.Store(r);
}

PAIR(beyond_depth)  // two in a row into a queue of depth 1, or of depth 2
{
    const uint32_t n = static_cast<uint32_t>(args[0]);
    Frame f(gm, args);
    TQue<TPosition::VECIN, wrong ? 1 : 2> two;
    f.pipe.InitBuffer(two, 2, n * 4);
    for (int i = 0; i < 2; ++i) {
        LocalTensor<float> t = two.template AllocTensor<float>();
        CopyIn(t, f.x, n);
        two.EnQue(t);
    }
    LocalTensor<float> a = two.template DeQue<float>(), b = two.template DeQue<float>(),
                       r = f.Result();
    Add(r, a, b, n);
    two.FreeTensor(a);
    two.FreeTensor(b);
    f.Store(r);
}

PAIR(no_init)  // the queue was never given buffers
{
    Frame f(gm, args);
    TQue<TPosition::VECIN, 1> other;
    if (!wrong) f.pipe.InitBuffer(other, 1, 32);
    LocalTensor<float> t = other.AllocTensor<float>();
    other.FreeTensor(t);
    f.Double();
}

PAIR(init_twice)
{
    Frame f(gm, args);
    if (wrong) f.pipe.InitBuffer(f.in, 1, 32);
    f.Double();
}

PAIR(too_many_at_position)  // nine buffers of VECIN over two queues
{
    Frame f(gm, args, 4);
    TQue<TPosition::VECIN, 1> other;
    f.pipe.InitBuffer(other, wrong ? 5 : 4, 32);
    f.Double();
}

PAIR(too_many_buffers)
{
    Frame f(gm, args);
    TBuf<> scratch[63];
    for (int i = 0; i < (wrong ? 63 : 62); ++i) f.pipe.InitBuffer(scratch[i], 32);
    f.Double();
}

PAIR(second_pipe)
{
    if (wrong) {
        Frame f(gm, args);
        TPipe another;
        f.Double();
    } else {
        Frame(gm, args).Double();
    }
}
