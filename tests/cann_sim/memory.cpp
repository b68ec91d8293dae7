// Device memory, page-locked host memory, copies.
#include <cstdlib>
#include <cstring>

#include "runtime.h"

using namespace cannsim;

namespace cannsim {

// A tensor may span allocations that lie side by side.
Device* DeviceOf(const void* p, size_t bytes, Lock&)
{
    const auto& memory = TheState().memory;
    const auto begin = reinterpret_cast<uintptr_t>(p);
    auto it = memory.upper_bound(begin);
    if (it == memory.begin()) return nullptr;
    --it;
    Device* device = it->second.device;
    uintptr_t end = it->first + it->second.bytes;
    if (begin >= end) return nullptr;
    while (end < begin + bytes) {
        if (++it == memory.end() || it->first != end || it->second.device != device) return nullptr;
        end += it->second.bytes;
    }
    return device;
}

}  // namespace cannsim

namespace {

constexpr size_t kAlign = 512;

bool Poisons()
{
    static const bool poisons = Switch("CANN_SIM_POISON");
    return poisons;
}

int Allocate(void** p, size_t bytes)
{
    if (bytes == 0) return Fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMalloc of 0 bytes");
    Lock lock = Locked();
    if (int code = FailByFault("malloc", lock)) return code;
    Device& device = CurrentDevice();
    cannsim_stats& stats = device.stats;
    if (stats.bytes_now + bytes > TheState().memory_bytes) {
        // Not printed: torch_npu empties its cache and tries again.
        SetError("device " + std::to_string(device.id) + " is out of memory");
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    if (posix_memalign(p, kAlign, (bytes + kAlign - 1) / kAlign * kAlign))
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    if (Poisons()) std::memset(*p, 0xFF, bytes);
    TheState().memory[reinterpret_cast<uintptr_t>(*p)] = {bytes, &device};
    stats.mallocs++;
    stats.bytes_now += bytes;
    stats.bytes_peak = std::max(stats.bytes_peak, stats.bytes_now);
    Trace("malloc d%d %zu -> %p", device.id, bytes, *p);
    return ACL_SUCCESS;
}

bool IsPinned(const void* p, Lock&)
{
    const auto& pinned = TheState().pinned;
    const auto address = reinterpret_cast<uintptr_t>(p);
    auto it = pinned.upper_bound(address);
    return it != pinned.begin() && address < (--it)->first + it->second;
}

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    aclrtMemcpyKind kind;
    Device* device = nullptr;
    const char* name = "memcpy_h2h";
};

// Do the pointers fit the direction and each other? Fills in device and name.
int Check(Copy& c, size_t room, Lock& lock)
{
    if (c.bytes > room)
        return Fail(ACL_ERROR_RT_PARAM_INVALID, "copy of %zu bytes into %zu", c.bytes, room);
    Device* to = DeviceOf(c.to, c.bytes, lock);
    Device* from = DeviceOf(c.from, c.bytes, lock);
    const bool fits = !c.bytes || (c.kind == ACL_MEMCPY_HOST_TO_DEVICE     ? to && !from
                                   : c.kind == ACL_MEMCPY_DEVICE_TO_HOST   ? from && !to
                                   : c.kind == ACL_MEMCPY_DEVICE_TO_DEVICE ? to && from
                                                                           : true);
    if (!fits)
        return Fail(ACL_ERROR_RT_PARAM_INVALID,
                    "a copy of kind %d does not fit: to %p (%s), from %p (%s), %zu bytes",
                    static_cast<int>(c.kind), c.to, to ? "device" : "host", c.from,
                    from ? "device" : "host", c.bytes);
    if (to && from && to != from)
        return Fail(ACL_ERROR_RT_PARAM_INVALID,
                    "a copy from device %d to device %d: they cannot reach each other", from->id,
                    to->id);
    c.device = to ? to : from;
    if (c.device) c.name = !from ? "memcpy_h2d" : !to ? "memcpy_d2h" : "memcpy_d2d";
    return ACL_SUCCESS;
}

void Account(const Copy& c)
{
    if (!c.device) return;
    cannsim_stats& stats = c.device->stats;
    switch (c.name[7]) {
        case 'h': stats.h2d += c.bytes; break;
        case 'd': (c.name[9] == 'h' ? stats.d2h : stats.d2d) += c.bytes; break;
    }
}

}  // namespace

extern "C" {

aclError aclrtMalloc(void** p, size_t bytes, aclrtMemMallocPolicy)
{
    return Allocate(p, bytes);
}

aclError aclrtMallocAlign32(void** p, size_t bytes, aclrtMemMallocPolicy)
{
    return Allocate(p, bytes);
}

aclError aclrtFree(void* p)
{
    Lock lock = Locked();
    auto& memory = TheState().memory;
    const auto it = memory.find(reinterpret_cast<uintptr_t>(p));
    if (it == memory.end()) return Fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree: %p is unknown", p);
    const auto [bytes, device] = it->second;
    device->stats.bytes_now -= bytes;
    device->stats.frees++;
    if (Poisons()) std::memset(p, 0xFF, bytes);
    memory.erase(it);
    std::free(p);
    return ACL_SUCCESS;
}

aclError aclrtMallocHost(void** p, size_t bytes)
{
    if (posix_memalign(p, kAlign, bytes ? bytes : 1)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    if (Poisons()) std::memset(*p, 0xFF, bytes);
    Lock lock = Locked();
    TheState().pinned[reinterpret_cast<uintptr_t>(*p)] = bytes;
    return ACL_SUCCESS;
}

aclError aclrtMallocHostWithCfg(void** p, uint64_t bytes, aclrtMallocConfig*)
{
    return aclrtMallocHost(p, bytes);
}

aclError aclrtFreeHost(void* p)
{
    Lock lock = Locked();
    if (!TheState().pinned.erase(reinterpret_cast<uintptr_t>(p)))
        return Fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFreeHost: %p is unknown", p);
    std::free(p);
    return ACL_SUCCESS;
}

aclError aclrtPointerGetAttributes(const void* p, aclrtPtrAttributes* out)
{
    Lock lock = Locked();
    std::memset(out, 0, sizeof *out);
    const Device* device = DeviceOf(p, 1, lock);
    out->location.type = device              ? ACL_MEM_LOCATION_TYPE_DEVICE
                         : IsPinned(p, lock) ? ACL_MEM_LOCATION_TYPE_HOST
                                             : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
    if (device) out->location.id = static_cast<uint32_t>(device->id);
    return ACL_SUCCESS;
}

// Waits for no stream, as on a device: the caller synchronizes first.
aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind)
{
    Copy copy{to, from, bytes, kind};
    {
        Lock lock = Locked();
        Device& current = CurrentDevice();
        if (int code = Stopped(current)) return code;
        if (int code = CheckUnsafe("a blocking memory copy", lock)) return code;
        if (int code = Check(copy, room, lock)) return code;
        if (copy.device)
            if (int code = Stopped(*copy.device)) return code;
        TheState().counts[copy.name]++;
        if (int code = FailByFault(copy.name, lock)) {
            Stop(copy.device ? *copy.device : current, code);
            return code;
        }
        current.stats.syncs++;
        Account(copy);
    }
    std::memcpy(to, from, bytes);
    return ACL_SUCCESS;
}

aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes,
                          aclrtMemcpyKind kind, aclrtStream handle)
{
    Copy copy{to, from, bytes, kind};
    Stream& stream = StreamOf(handle);
    {
        Lock lock = Locked();
        if (int code = Check(copy, room, lock)) return code;
        if (copy.device && copy.device != stream.device)
            return Fail(ACL_ERROR_RT_STREAM_CONTEXT,
                        "%s with memory of device %d on stream %d of device %d", copy.name,
                        copy.device->id, stream.id, stream.device->id);
        const void* host = kind == ACL_MEMCPY_HOST_TO_DEVICE   ? from
                           : kind == ACL_MEMCPY_DEVICE_TO_HOST ? to
                                                               : nullptr;
        if (stream.capture && host && bytes && !IsPinned(host, lock))
            return Invalidate(*stream.capture, ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC,
                              "an asynchronous copy with pageable host memory");
        Account(copy);
    }
    return Enqueue(stream, MakeTask(copy.name, [copy] {
                       std::memmove(copy.to, copy.from, copy.bytes);
                       return 0;
                   }));
}

aclError aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t bytes,
                                       aclrtMemcpyKind kind, aclrtStream stream)
{
    return aclrtMemcpyAsync(to, room, from, bytes, kind, stream);
}

aclError aclrtMemset(void* p, size_t room, int32_t value, size_t bytes)
{
    Lock lock = Locked();
    if (int code = CheckUnsafe("a blocking memset", lock)) return code;
    if (bytes > room || !DeviceOf(p, bytes, lock))
        return Fail(ACL_ERROR_RT_PARAM_INVALID, "memset of %zu bytes at %p", bytes, p);
    std::memset(p, value, bytes);
    return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void* p, size_t room, int32_t value, size_t bytes, aclrtStream handle)
{
    Stream& stream = StreamOf(handle);
    {
        Lock lock = Locked();
        if (bytes > room || DeviceOf(p, bytes, lock) != stream.device)
            return Fail(ACL_ERROR_RT_PARAM_INVALID, "memset of %zu bytes at %p on device %d", bytes,
                        p, stream.device->id);
    }
    return Enqueue(stream, MakeTask("memset", [=] {
                       std::memset(p, value, bytes);
                       return 0;
                   }));
}

}  // extern "C"
