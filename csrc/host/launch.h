// Where CANN and the simulator differ: how a kernel is launched and counted, and how many cores a
// device has. Besides kernels.h, nothing else in csrc/host knows which of the two it is built for
// (PYRERANK_NPU=1: CANN).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.h"

#if PYRERANK_NPU
#if !PYRERANK_ASC  // what CANN 8 generated must agree with kernels.h
#include "aclrtlaunch_fused_pool_bfloat16.h"
#include "aclrtlaunch_fused_pool_float16.h"
#include "aclrtlaunch_fused_pool_float32.h"
#include "aclrtlaunch_last_token_gather_16bit.h"
#include "aclrtlaunch_last_token_gather_32bit.h"
#include "aclrtlaunch_score_head_bfloat16.h"
#include "aclrtlaunch_score_head_float16.h"
#include "aclrtlaunch_score_head_float32.h"
#endif
#else
#include <dlfcn.h>

#include <cstdio>

#include "../sim/sim.h"
#endif

namespace pyrerank
{

// One buffer of global memory a kernel takes, in the order of its parameters.
struct Buffer {
    const char* name;
    uint64_t address;
    uint64_t bytes;
    bool writable;
};

struct Target {
    int threads;      // CPU only
    uint64_t stream;  // a stream handle of torch_npu, or 0
};

[[noreturn]] inline void Fail(const std::string& what, int64_t status, const char* reason = nullptr)
{
    const std::string text = what + " failed with " + std::to_string(status);
    throw std::runtime_error(reason == nullptr ? text : text + ": " + reason);
}

// The vector cores of the calling thread's device. A device is asked once, by `ask(device)`.
template <class GetDevice, class Ask>
int64_t DeviceCores(GetDevice get_device, Ask ask)
{
    static std::array<std::atomic<int64_t>, 64> known{};  // 0: not asked yet
    int32_t device = -1;
    if (const int status = get_device(&device)) Fail("aclrtGetDevice", status);
    std::atomic<int64_t>& cores = known.at(static_cast<size_t>(device));
    if (cores == 0) cores = ask(static_cast<uint32_t>(device));
    return cores;
}

constexpr int kVectorCores = 1;  // of aclDeviceInfo

#if PYRERANK_NPU

constexpr const char* kTarget = "npu";
constexpr bool kStrict = false;
static_assert(kVectorCores == ACL_DEVICE_INFO_VECTOR_CORE_NUM, "the enumeration changed");

inline int64_t Cores(const Target&)
{
    return DeviceCores(aclrtGetDevice, [](uint32_t device) {
        // On a chip of another family CANN's launch functions do nothing and report success.
        const char* soc = aclrtGetSocName();
        const std::string name = soc == nullptr ? "unknown" : soc;
        const bool same_family = (name.rfind("Ascend910B", 0) == 0 && name != "Ascend910B") ||
                                 name.rfind("Ascend910_93", 0) == 0;
        if (!same_family) {
            throw std::runtime_error("NPU " + std::to_string(device) + ": its chip is " + name +
                                     ", the kernels were compiled for " PYRERANK_SOC
                                     " and run on Atlas A2 and A3 only");
        }
        int64_t cores = 0;
        const int status = aclGetDeviceCapability(device, ACL_DEVICE_INFO_VECTOR_CORE_NUM, &cores);
        if (status != 0) Fail("aclGetDeviceCapability", status, aclGetRecentErrMsg());
        return cores;
    });
}

template <class Kernel, class Tiling, size_t N, size_t... I>
void Enqueue(const char* name, Kernel* kernel, uint32_t blocks, const Target& target,
             const std::array<Buffer, N>& buffers, Tiling tiling, std::index_sequence<I...>)
{
    const uint32_t status = kernel(blocks, reinterpret_cast<aclrtStream>(target.stream),
                                   reinterpret_cast<void*>(buffers[I].address)..., &tiling);
    if (status != 0) Fail(std::string(name) + ": launch", status, aclGetRecentErrMsg());
}

inline std::map<std::string, uint64_t> ReadCounters()
{
    return {};
}
inline void ResetCounters() {}

#else

constexpr const char* kTarget = "cpu";
constexpr bool kStrict = sim::kStrict;

// What of the simulated CANN runtime is in the process.
struct Runtime {
    int (*launch)(void* stream, const char* name, int (*call)(void*), void* item,
                  void (*drop)(void*));
    int (*get_device)(int32_t* device);
    int (*get_capability)(uint32_t device, int what, int64_t* value);
    bool real;  // CANN itself is there instead

    Runtime()
    {
        // loaded by torch_npu, perhaps with its symbols hidden
        void* cann = dlopen("libascendcl.so", RTLD_LAZY | RTLD_NOLOAD);
        Find(cann, "cannsim_launch", launch);
        Find(cann, "aclrtGetDevice", get_device);
        Find(cann, "aclGetDeviceCapability", get_capability);
        real = cann != nullptr && launch == nullptr;
    }

    template <class Function>
    static void Find(void* library, const char* name, Function& function)
    {
        function = reinterpret_cast<Function>(dlsym(library ? library : RTLD_DEFAULT, name));
    }

    static const Runtime& Get()
    {
        static const Runtime runtime;
        return runtime;
    }
};

// On a stream as many as the device has, so that both builds cut work alike.
inline int64_t Cores(const Target& target)
{
    if (target.stream == 0) return target.threads;
    const Runtime& runtime = Runtime::Get();
    if (runtime.launch == nullptr || runtime.get_device == nullptr) return target.threads;
    return DeviceCores(runtime.get_device, [&](uint32_t device) {
        int64_t cores = 0;
        const int status = runtime.get_capability(device, kVectorCores, &cores);
        if (status != 0) Fail("aclGetDeviceCapability", status);
        return cores;
    });
}

// With a stream, the launch becomes an item of that stream of the simulated CANN runtime, if one is
// in the process, and can be captured there; else it runs now.
template <class Kernel, class Tiling, size_t N, size_t... I>
void Enqueue(const char* name, Kernel* kernel, uint32_t blocks, const Target& target,
             const std::array<Buffer, N>& buffers, const Tiling& tiling, std::index_sequence<I...>)
{
    auto run = [=, threads = target.threads] {
        sim::Launch(name, blocks, threads,
                    {sim::Region{buffers[I].name, reinterpret_cast<const void*>(buffers[I].address),
                                 buffers[I].bytes, buffers[I].writable}...},
                    [&] { kernel(reinterpret_cast<uint8_t*>(buffers[I].address)..., tiling); });
    };
    using Run = decltype(run);
    if (target.stream == 0) return run();
    const Runtime& runtime = Runtime::Get();
    if (runtime.real) {
        throw std::runtime_error(std::string(name) +
                                 ": this build of pyrerank has no kernels for an NPU: source the "
                                 "CANN toolkit's set_env.sh and reinstall pyrerank");
    }
    if (runtime.launch == nullptr) return run();
    const auto call = [](void* p) {
        try {
            (*static_cast<Run*>(p))();
            return 0;
        } catch (const std::exception& error) {  // no exception may cross the runtime's C frames
            std::fprintf(stderr, "%s\n", error.what());
            return 507035;  // ACL's "vector core exception"
        }
    };
    const auto drop = [](void* p) { delete static_cast<Run*>(p); };
    const int status =
        runtime.launch(reinterpret_cast<void*>(target.stream), name, call, new Run(run), drop);
    if (status != 0) Fail(std::string(name) + ": launch", status);
}

inline std::map<std::string, uint64_t> ReadCounters()
{
    const sim::Counters c = sim::ReadCounters();
    return {{"launches", c.launches},
            {"blocks", c.blocks},
            {"gm_read_bytes", c.gm_read_bytes},
            {"gm_write_bytes", c.gm_write_bytes},
            {"copies", c.copies},
            {"vector_instructions", c.vector_instructions},
            {"vector_repeats", c.vector_repeats},
            {"barriers", c.barriers},
            {"flags", c.flags},
            {"ub_peak_bytes", c.ub_peak_bytes}};
}
inline void ResetCounters()
{
    sim::ResetCounters();
}

#endif

template <class Kernel, class Tiling, size_t N>
void Launch(const char* name, Kernel* kernel, uint32_t blocks, const Target& target,
            const std::array<Buffer, N>& buffers, const Tiling& tiling)
{
    Enqueue(name, kernel, blocks, target, buffers, tiling, std::make_index_sequence<N>());
}

}  // namespace pyrerank
