#include "harness.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "sim.h"

namespace {

std::map<std::string, Kernel>& Kernels()
{
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

}  // namespace

Register::Register(const char* name, Kernel kernel) { Kernels().emplace(name, kernel); }

#define EXPORT extern "C" __attribute__((visibility("default")))

struct Array {
    void* data;
    uint64_t bytes;
    int32_t writable;
};

// Returns 0, or 1 with the error's text.
EXPORT int sim_run(const char* name, uint32_t blocks, int threads, int order, const Array* arrays,
                   int count, const int64_t* args, char* error, uint64_t error_bytes)
{
    static const char* const kNames[] = {"gm0", "gm1", "gm2", "gm3"};
    Gm gm[4] = {};
    sim::Region regions[4] = {};
    for (int i = 0; i < count; ++i) {
        gm[i] = static_cast<Gm>(arrays[i].data);
        regions[i] = {kNames[i], arrays[i].data, arrays[i].bytes, arrays[i].writable != 0};
    }
    try {
        const Kernel kernel = Kernels().at(name);
        sim::SetBlockOrder(static_cast<sim::BlockOrder>(order));
        auto body = [&] { kernel(gm, args); };
        switch (count) {
            case 1: sim::Launch(name, blocks, threads, {regions[0]}, body); break;
            case 2: sim::Launch(name, blocks, threads, {regions[0], regions[1]}, body); break;
            case 3:
                sim::Launch(name, blocks, threads, {regions[0], regions[1], regions[2]}, body);
                break;
            default: throw std::runtime_error("one to three arrays");
        }
    } catch (const std::exception& e) {
        std::snprintf(error, error_bytes, "%s", e.what());
        return 1;
    }
    return 0;
}

EXPORT void sim_counters(uint64_t* out, int reset)
{
    const sim::Counters c = sim::ReadCounters();
    const uint64_t values[] = {c.launches,       c.blocks,   c.gm_read_bytes,
                               c.gm_write_bytes, c.copies,   c.vector_instructions,
                               c.vector_repeats, c.barriers, c.flags,
                               c.ub_peak_bytes};
    std::memcpy(out, values, sizeof values);
    if (reset != 0) sim::ResetCounters();
}
