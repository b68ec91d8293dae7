// What cann_sim.h declares: launches, questions about memory, counters, faults.
#include "cann_sim.h"

#include <cstring>

#include "runtime.h"

using namespace cannsim;

extern "C" {

int cannsim_launch(void* stream, const char* name, cannsim_call call, void* arg, cannsim_drop drop)
{
    std::shared_ptr<void> item(arg, [drop](void* p) {
        if (drop) drop(p);
    });
    return Enqueue(StreamOf(stream), MakeTask(name, [call, item] { return call(item.get()); }));
}

int cannsim_region(const void* p, const void** base, size_t* size)
{
    Lock lock = Locked();
    const auto& memory = TheState().memory;
    const auto address = reinterpret_cast<uintptr_t>(p);
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return 0;
    const auto& [start, allocation] = *--next;
    if (address >= start + allocation.bytes) return 0;
    *base = reinterpret_cast<const void*>(start);
    *size = allocation.bytes;
    return 1;
}

int cannsim_device_of(const void* p, size_t size)
{
    Lock lock = Locked();
    const Device* device = DeviceOf(p, size, lock);
    return device ? device->id : -1;
}

int cannsim_stream_device(void* stream)
{
    return StreamOf(stream).device->id;
}

void cannsim_set_error(const char* text)
{
    SetError(text);
}

void cannsim_inject(const char* what, int after, int times, int code)
{
    Lock lock = Locked();
    Inject(what, after, times, code, lock);
}

void cannsim_revive(void)
{
    Lock lock = Locked();
    PumpAll(lock);  // a stopped device drops what it has queued
    for (auto& device : TheState().devices) {
        device->stopped = 0;
        for (Stream* stream : device->streams) stream->update = nullptr;
    }
    ForgetFaults(lock);
}

void cannsim_set_memory(uint64_t bytes)
{
    Lock lock = Locked();
    TheState().memory_bytes = bytes;
}

void cannsim_get_stats(int device, cannsim_stats* out)
{
    constexpr size_t kFields = sizeof(cannsim_stats) / sizeof(uint64_t);
    Lock lock = Locked();
    uint64_t sum[kFields] = {};
    for (auto& d : TheState().devices) {
        if (device >= 0 && d->id != device) continue;
        uint64_t fields[kFields];
        std::memcpy(fields, &d->stats, sizeof fields);
        for (size_t i = 0; i < kFields; ++i) sum[i] += fields[i];
    }
    std::memcpy(out, sum, sizeof sum);
}

void cannsim_reset_peak(void)
{
    Lock lock = Locked();
    for (auto& d : TheState().devices) d->stats.bytes_peak = d->stats.bytes_now;
}

uint64_t cannsim_count(const char* name)
{
    Lock lock = Locked();
    const auto& counts = TheState().counts;
    const auto found = counts.find(name);
    return found == counts.end() ? 0 : found->second;
}

size_t cannsim_counts(char* text, size_t size)
{
    Lock lock = Locked();
    std::string all;
    for (const auto& [name, count] : TheState().counts)
        all += name + " " + std::to_string(count) + "\n";
    if (size) text[all.copy(text, size - 1)] = 0;
    return all.size();
}

void cannsim_reset_counts(void)
{
    Lock lock = Locked();
    TheState().counts.clear();
}

}  // extern "C"
