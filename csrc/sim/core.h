// State of the vector core that runs the current block: its unified buffer, the buffers carved out
// of it, reserved event ids, mask and atomic registers.
#pragma once

#include <cstdint>

#include "sim.h"
#include "types.h"

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };
enum event_t {
    EVENT_ID0,
    EVENT_ID1,
    EVENT_ID2,
    EVENT_ID3,
    EVENT_ID4,
    EVENT_ID5,
    EVENT_ID6,
    EVENT_ID7
};

namespace AscendC {

class TPipe;

enum class HardEvent : uint8_t {  // PRODUCER_CONSUMER; the pairs a vector core has
    MTE2_V,
    V_MTE2,
    MTE3_V,
    V_MTE3,
    MTE3_MTE2,
    MTE2_MTE3,
    S_V,
    V_S,
    S_MTE2,
    MTE2_S,
    S_MTE3,
    MTE3_S,
};

enum class TPosition : uint8_t { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;

}  // namespace AscendC

namespace sim {

using AscendC::HardEvent;

constexpr uint32_t kUbBytes = 196608;        // what the core has
constexpr uint32_t kUbBudgetBytes = 188160;  // what a kernel may use: the tool chain keeps the rest
constexpr uint32_t kBlockBytes = 32;
constexpr uint32_t kRepeatBytes = 256;
constexpr int kMaxBuffers = 64;
constexpr int kMaxBuffersPerPosition = 8;
constexpr int kEventIds = 8;
constexpr int kEventPairs = 12;

constexpr uint32_t RoundUp32(uint32_t bytes) { return (bytes + 31) / 32 * 32; }

enum class BufferState : uint8_t { kFree, kOccupied, kQueued, kDequeued, kScratch };

struct Buffer {
    uint32_t addr;
    uint32_t bytes;
    uint32_t generation;  // AllocTensor calls so far: tells a stale tensor from a live one
    BufferState state;
    int8_t enque_event;   // event id between EnQue and DeQue, else -1
    int8_t free_event;    // event id between FreeTensor and the next AllocTensor, else -1
    HardEvent free_flag;  // the pair free_event belongs to
};

enum class AtomicType : uint8_t { kNone, kInt8, kInt16, kHalf, kBfloat16, kInt32, kFloat };

struct Mask {
    uint64_t low = ~uint64_t{0};
    uint64_t high = ~uint64_t{0};
    bool counter = false;  // mode: false = one bit a lane, true = low is a number of elements
    bool chosen = false;   // by the kernel itself, and not lost to an instruction since
};

struct Core {
    uint8_t* ub = nullptr;
    int64_t block_idx = 0;
    int64_t block_num = 0;
    AscendC::TPipe* pipe = nullptr;
    int buffer_count = 0;
    uint32_t ub_used = 0;
    Mask mask;
    AtomicType atomic = AtomicType::kNone;
    uint8_t reserved_events[kEventPairs] = {};  // a bit per id
    Buffer buffers[kMaxBuffers];
    Counters counters;

    void ResetModes()
    {
        mask = Mask{};
        atomic = AtomicType::kNone;
    }
};

inline thread_local Core* current_core = nullptr;

inline Core& ThisCore() { return *current_core; }

}  // namespace sim
