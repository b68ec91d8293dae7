// Host side of the simulator: run a kernel over its blocks, read what it cost, hear what it broke.
//
// Compile csrc/sim/*.cpp and all that includes this with one value of ASCENDC_SIM_STRICT (0 or 1) and
// with hidden visibility, so that a checked and a fast build can live in one process.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>
#include <vector>

#ifndef ASCENDC_SIM_STRICT
#define ASCENDC_SIM_STRICT 0
#endif

namespace sim {

constexpr bool kStrict = ASCENDC_SIM_STRICT != 0;

// One allocation of global memory a launch may touch.
struct Region {
    const char* name;
    const void* base;
    size_t bytes;
    bool writable;
};

// Totals since the last reset, over all launches of the process.
struct Counters {
    uint64_t launches = 0;
    uint64_t blocks = 0;
    uint64_t gm_read_bytes = 0;  // DMA and scalar reads, without the cache's line granularity
    uint64_t gm_write_bytes = 0;
    uint64_t copies = 0;  // DMA instructions (MTE2 and MTE3)
    uint64_t vector_instructions = 0;
    uint64_t vector_repeats = 0;  // 256-byte repeats those instructions processed
    uint64_t barriers = 0;
    uint64_t flags = 0;  // flags raised, by the kernel or by its queues
    uint64_t ub_peak_bytes = 0;
};

// A rule of the hardware was broken. The text names kernel, block, API call, operand and rule.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

enum class BlockOrder { kForward, kReverse, kShuffled };

// Order of the blocks in the checked build. The fast build has no order to set.
void SetBlockOrder(BlockOrder order);

Counters ReadCounters();
void ResetCounters();

// One instruction, a flag or a barrier among them.
struct Instruction {
    const char* pipe;
    const char* api;
    const char* region;  // of global memory that it touches; nullptr: none
    uint64_t bytes;      // of its largest operand
    std::array<uint32_t, 4> after;  // how many instructions of S, V, MTE2, MTE3 it waited for
};

// What the block that ran last did, in program order. The checked build alone has this.
const std::vector<Instruction>& LastTrace();

namespace detail {
void Launch(const char* kernel, uint32_t block_dim, int threads,
            std::initializer_list<Region> regions, void (*call)(void*), void* body);
}  // namespace detail

// Runs `body` once for each block index. Fast: over at most `threads` of OpenMP's threads, the caller
// among them. Strict: one block after another. The first exception is rethrown.
template <class Body>
void Launch(const char* kernel, uint32_t block_dim, int threads,
            std::initializer_list<Region> regions, Body&& body)
{
    using Plain = std::remove_reference_t<Body>;
    detail::Launch(
        kernel, block_dim, threads, regions, [](void* b) { (*static_cast<Plain*>(b))(); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace sim
