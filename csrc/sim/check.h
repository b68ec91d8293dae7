// What the checked build verifies. In the fast build every function here is empty and every
// SIM_CHECK vanishes, so the API headers call them without #if.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core.h"

namespace sim::check {

// The lanes one vector instruction processes; see lanes.h.
struct Lanes;

// One UB operand of a vector instruction.
struct Operand {
    const char* name;
    const void* address;
    const void* end;  // of the tensor
    const Buffer* buffer;
    uint32_t generation;
    bool reads;
    bool writes;
    uint32_t element;       // bytes of a lane
    uint32_t block_stride;  // in 32 B, from start to start
    uint32_t repeat_stride;
    uint32_t align;  // of the start address, in bytes
};

// A run of bytes that a DMA or scalar instruction touches, in UB (buffer set) or in GM.
struct Bytes {
    const char* name;
    const void* address;
    uint64_t size;
    uint32_t blocks;  // this many runs,
    uint64_t stride;  // this far apart
    bool writes;
    const Buffer* buffer;  // nullptr: GM
    uint32_t generation;
    const void* begin;  // of the tensor
    const void* end;
    bool undefined;  // what is written has no defined value
};

#if ASCENDC_SIM_STRICT

[[noreturn]] void Fail(const char* api, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

#define SIM_CHECK(condition, api, ...) ((condition) ? void() : ::sim::check::Fail(api, __VA_ARGS__))

void BeginLaunch(const char* kernel, std::initializer_list<Region> regions);
void EndLaunch();
void BeginBlock();
void EndBlock();
void EndPipe();  // from the TPipe destructor, which cannot throw: EndBlock reports

void Vector(const char* api, const Lanes& lanes, std::initializer_list<Operand> operands,
            std::initializer_list<Bytes> results = {});
void Touch(pipe_t pipe, const char* api, std::initializer_list<Bytes> accesses);
void Barrier(pipe_t pipe);
void SetFlag(HardEvent event, int32_t id);
void WaitFlag(HardEvent event, int32_t id);
const char* EventName(HardEvent event);

#else

#define SIM_CHECK(condition, api, ...) static_cast<void>(0)

inline void BeginLaunch(const char*, std::initializer_list<Region>) {}
inline void EndLaunch() {}
inline void BeginBlock() {}
inline void EndBlock() {}
inline void EndPipe() {}
inline void Vector(const char*, const Lanes&, std::initializer_list<Operand>,
                   std::initializer_list<Bytes> = {})
{}
inline void Touch(pipe_t, const char*, std::initializer_list<Bytes>) {}
inline void Barrier(pipe_t) {}
inline void SetFlag(HardEvent, int32_t) {}
inline void WaitFlag(HardEvent, int32_t) {}

#endif

}  // namespace sim::check
