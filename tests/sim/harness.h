// Kernels that exist only to test the simulator, callable by name from Python through a C
// interface.
#pragma once

#include <cstdint>

#include "kernel_operator.h"

using Gm = uint8_t*;
using Kernel = void (*)(Gm* gm, const int64_t* args);

struct Register {
    Register(const char* name, Kernel kernel);
};

// A kernel with one bug, and its twin without: `wrong` tells which of the two is compiled.
#define PAIR(name)                                                   \
    template <bool wrong>                                            \
    void name(Gm* gm, const int64_t* args);                          \
    static const Register name##_wrong{#name "_wrong", name<true>};  \
    static const Register name##_right{#name "_right", name<false>}; \
    template <bool wrong>                                            \
    void name([[maybe_unused]] Gm* gm, [[maybe_unused]] const int64_t* args)

#define SINGLE(name)                                  \
    static void name(Gm* gm, const int64_t* args);    \
    static const Register name##_kernel{#name, name}; \
    static void name([[maybe_unused]] Gm* gm, [[maybe_unused]] const int64_t* args)

template <class T>
AscendC::GlobalTensor<T> Global(Gm base, uint64_t elements)
{
    AscendC::GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<T*>(base), elements);
    return tensor;
}

template <class T>
void CopyIn(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src, uint32_t n)
{
    AscendC::DataCopyPad(
        dst, src, AscendC::DataCopyExtParams(1, static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0),
        AscendC::DataCopyPadExtParams<T>());
}

template <class T>
void CopyOut(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src, uint32_t n)
{
    AscendC::DataCopyPad(
        dst, src, AscendC::DataCopyExtParams(1, static_cast<uint32_t>(n * sizeof(T)), 0, 0, 0));
}

template <AscendC::HardEvent event>
void Sync()
{
    const auto id = AscendC::GetTPipePtr()->FetchEventID(event);
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}

// The plain part of most kernels here: y = 2 x on args[0] floats, gm = {x, y}.
struct Frame {
    explicit Frame(Gm* gm, const int64_t* args, uint32_t buffers = 1)
        : n(static_cast<uint32_t>(args[0])), x(Global<float>(gm[0], n)), y(Global<float>(gm[1], n))
    {
        pipe.InitBuffer(in, buffers, n * sizeof(float));
        pipe.InitBuffer(out, buffers, n * sizeof(float));
    }

    AscendC::LocalTensor<float> Load()
    {
        AscendC::LocalTensor<float> t = in.AllocTensor<float>();
        CopyIn(t, x, n);
        in.EnQue(t);
        return in.DeQue<float>();
    }

    void Store(AscendC::LocalTensor<float> t)
    {
        out.EnQue(t);
        t = out.DeQue<float>();
        CopyOut(y, t, n);
        out.FreeTensor(t);
    }

    AscendC::LocalTensor<float> Result() { return out.AllocTensor<float>(); }

    void Double()
    {
        AscendC::LocalTensor<float> a = Load(), r = Result();
        AscendC::Add(r, a, a, static_cast<int32_t>(n));
        in.FreeTensor(a);
        Store(r);
    }

    AscendC::TPipe pipe;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> in;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> out;
    uint32_t n;
    AscendC::GlobalTensor<float> x, y;
};
