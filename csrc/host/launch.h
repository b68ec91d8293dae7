// Where CANN and the simulator differ: how a kernel is named, launched and counted. Nothing else in
// csrc/host knows which of the two it is built for (PYRERANK_NPU=1: CANN).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#if PYRERANK_NPU
#include <acl/acl.h>

#include "../ascendc/tiling.h"  // the generated headers name its structs
#include "aclrtlaunch_fused_pool_bfloat16.h"
#include "aclrtlaunch_fused_pool_float16.h"
#include "aclrtlaunch_fused_pool_float32.h"
#include "aclrtlaunch_last_token_gather_16bit.h"
#include "aclrtlaunch_last_token_gather_32bit.h"
#include "aclrtlaunch_score_head_bfloat16.h"
#include "aclrtlaunch_score_head_float16.h"
#include "aclrtlaunch_score_head_float32.h"
#define PYRERANK_KERNEL(name) ACLRT_LAUNCH_KERNEL(name)
#else
#include <dlfcn.h>

#include <cstdio>
#include <memory>

#include "../ascendc/tiling.h"
#include "../sim/sim.h"
#define PYRERANK_KERNEL(name) name

extern "C" {
using Gm = uint8_t*;
void last_token_gather_16bit(Gm hidden, Gm ids, Gm out, LastTokenGatherTiling tiling);
void last_token_gather_32bit(Gm hidden, Gm ids, Gm out, LastTokenGatherTiling tiling);
void score_head_bfloat16(Gm hidden, Gm index, Gm norm_weight, Gm w, Gm score, Gm logit,
                         ScoreHeadTiling tiling);
void score_head_float16(Gm hidden, Gm index, Gm norm_weight, Gm w, Gm score, Gm logit,
                        ScoreHeadTiling tiling);
void score_head_float32(Gm hidden, Gm index, Gm norm_weight, Gm w, Gm score, Gm logit,
                        ScoreHeadTiling tiling);
void fused_pool_bfloat16(Gm hidden, Gm cu_seqlens, Gm norm_weight, Gm out, FusedPoolTiling tiling);
void fused_pool_float16(Gm hidden, Gm cu_seqlens, Gm norm_weight, Gm out, FusedPoolTiling tiling);
void fused_pool_float32(Gm hidden, Gm cu_seqlens, Gm norm_weight, Gm out, FusedPoolTiling tiling);
}
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

#if PYRERANK_NPU

constexpr const char* kTarget = "npu";
constexpr bool kStrict = false;

// Vector cores of the current device.
inline int64_t Cores(const Target&)
{
    static std::array<int64_t, 64> known{};  // 0: not asked yet
    int32_t device = 0;
    if (aclrtGetDevice(&device) != ACL_SUCCESS) throw std::runtime_error("no current NPU device");
    int64_t& cores = known.at(static_cast<size_t>(device));
    if (cores == 0 &&
        aclGetDeviceCapability(static_cast<uint32_t>(device), ACL_DEVICE_INFO_VECTOR_CORE_NUM,
                               &cores) != ACL_SUCCESS) {
        throw std::runtime_error("cannot read the number of vector cores of NPU " +
                                 std::to_string(device));
    }
    return cores;
}

template <class Kernel, class Tiling, size_t N, size_t... I>
void Enqueue(const char* name, Kernel* kernel, uint32_t blocks, const Target& target,
             const std::array<Buffer, N>& buffers, Tiling tiling, std::index_sequence<I...>)
{
    // The generated stub takes the struct by pointer and copies it into the launch.
    const uint32_t status = kernel(blocks, reinterpret_cast<aclrtStream>(target.stream),
                                   reinterpret_cast<void*>(buffers[I].address)..., &tiling);
    if (status != 0)
        throw std::runtime_error(std::string(name) + ": launch failed with " +
                                 std::to_string(status));
}

inline std::map<std::string, uint64_t> ReadCounters()
{
    return {};
}
inline void ResetCounters() {}

#else

constexpr const char* kTarget = "cpu";
constexpr bool kStrict = sim::kStrict;

inline int64_t Cores(const Target& target)
{
    return target.threads;
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
    using Submit = int (*)(void* stream, const char* name, int (*call)(void*), void* item,
                           void (*drop)(void*));
    static const Submit submit = reinterpret_cast<Submit>(dlsym(RTLD_DEFAULT, "cannsim_launch"));
    if (target.stream == 0 || submit == nullptr) return run();
    auto item = std::make_unique<Run>(run);
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
        submit(reinterpret_cast<void*>(target.stream), name, call, item.release(), drop);
    if (status != 0)
        throw std::runtime_error(std::string(name) + ": launch failed with " +
                                 std::to_string(status));
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
