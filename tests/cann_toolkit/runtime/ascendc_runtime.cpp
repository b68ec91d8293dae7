// libascendc_runtime.a of the simulated toolkit: a launch becomes an item of its stream, which runs
// the kernel on the checked simulator.
#include "ascendc_runtime.h"

#include <acl/acl.h>
#include <sim.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

extern "C" {
int cannsim_launch(void* stream, const char* name, int (*call)(void*), void* item,
                   void (*drop)(void*));
int cannsim_region(const void* p, const void** base, size_t* bytes);
}

namespace
{

constexpr int kVectorCoreException = 507035;

thread_local uint32_t last_error = 0;

struct Launch {
    const DeviceKernel* kernel;
    uint32_t blocks;
    std::vector<char> block;

    void Run() const
    {
        std::array<const void*, kMaxPointers> pointers{};
        std::array<sim::Region, kMaxPointers> regions{};
        const size_t count = kernel->pointers(block.data(), pointers.data());
        for (size_t i = 0; i < count; ++i) {
            regions[i] = {"device memory", nullptr, 0, true};
            if (pointers[i] != nullptr)  // outside of device memory: an empty region, so an error
                cannsim_region(pointers[i], &regions[i].base, &regions[i].bytes);
        }
        sim::Launch(kernel->name, blocks, 1,
                    {regions[0], regions[1], regions[2], regions[3], regions[4], regions[5],
                     regions[6], regions[7]},
                    [&] { kernel->run(block.data()); });
    }
};

}  // namespace

uint32_t LaunchAscendKernel(const DeviceKernel* kernel, uint32_t blocks, const void* block,
                            size_t bytes, void* stream)
{
    if (bytes < kernel->arguments) return ACL_ERROR_RT_PARAM_INVALID;
    if (std::getenv("CANN_TOOLKIT_TRACE") != nullptr)
        std::fprintf(stderr, "launch %s blocks %u\n", kernel->name, blocks);
    const char* begin = static_cast<const char*>(block);
    const auto call = [](void* p) {
        try {
            static_cast<Launch*>(p)->Run();
            return 0;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            return kVectorCoreException;
        }
    };
    const auto drop = [](void* p) { delete static_cast<Launch*>(p); };
    return static_cast<uint32_t>(
        cannsim_launch(stream, kernel->name, call,
                       new Launch{kernel, blocks, {begin, begin + bytes}}, drop));
}

uint32_t AllocAscendMemDevice(void** memory, uint64_t bytes)
{
    return static_cast<uint32_t>(aclrtMalloc(memory, bytes, ACL_MEM_MALLOC_HUGE_ONLY));
}

uint32_t FreeAscendMemDevice(void* memory)
{
    return static_cast<uint32_t>(aclrtFree(memory));
}

void SetLastError(uint32_t status)
{
    if (status != 0) last_error = status;
}

// The simulated runtime keeps no last error; <<<>>> has nothing else.
extern "C" aclError aclrtGetLastError(aclrtLastErrLevel)
{
    return static_cast<aclError>(std::exchange(last_error, 0));
}
