// Launches: blocks over OpenMP's threads (fast) or one after another under the checker (strict),
// and the counters.
#include "sim.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core.h"

namespace sim {
namespace {

Counters totals;
std::mutex totals_mutex;
std::mutex checked_mutex;  // the checker knows one launch at a time
BlockOrder block_order = BlockOrder::kForward;

void Merge(Counters& into, const Counters& from)
{
    into.launches += from.launches;
    into.blocks += from.blocks;
    into.gm_read_bytes += from.gm_read_bytes;
    into.gm_write_bytes += from.gm_write_bytes;
    into.copies += from.copies;
    into.vector_instructions += from.vector_instructions;
    into.vector_repeats += from.vector_repeats;
    into.barriers += from.barriers;
    into.flags += from.flags;
    into.ub_peak_bytes = std::max(into.ub_peak_bytes, from.ub_peak_bytes);
}

// A core with its unified buffer, made once for each thread that ever runs blocks at the same time.
struct CoreMemory {
    alignas(512) uint8_t ub[kUbBytes];
    Core core;

    CoreMemory() { core.ub = ub; }
};

struct Job {
    void (*call)(void*);
    void* body;
    uint32_t block_dim;
    std::atomic<uint32_t> next{0};
    std::mutex mutex;
    std::exception_ptr error;

    void Run(Core& core)
    {
        Core* outer = current_core;
        current_core = &core;
        core.block_num = block_dim;
        try {
            for (uint32_t block; (block = next.fetch_add(1)) < block_dim;) {
                core.block_idx = block;
                core.counters.blocks += 1;
                call(body);
            }
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            if (!error) error = std::current_exception();
            next = block_dim;
        }
        current_core = outer;
    }
};

std::mutex cores_mutex;
std::vector<std::unique_ptr<CoreMemory>>* cores = nullptr;  // outlives static destruction

std::unique_ptr<CoreMemory> TakeCore()
{
    std::unique_ptr<CoreMemory> memory;
    {
        std::lock_guard<std::mutex> lock(cores_mutex);
        if (cores != nullptr && !cores->empty()) {
            memory = std::move(cores->back());
            cores->pop_back();
        }
    }
    if (memory == nullptr) memory = std::make_unique<CoreMemory>();
    memory->core.pipe = nullptr;
    memory->core.counters = Counters{};
    return memory;
}

// Adds what the core has counted to the totals.
void ReturnCore(std::unique_ptr<CoreMemory> memory)
{
    {
        std::lock_guard<std::mutex> lock(totals_mutex);
        Merge(totals, memory->core.counters);
    }
    std::lock_guard<std::mutex> lock(cores_mutex);
    if (cores == nullptr) cores = new std::vector<std::unique_ptr<CoreMemory>>;
    cores->push_back(std::move(memory));
}

#if ASCENDC_SIM_STRICT
void RunChecked(const char* kernel, uint32_t block_dim, std::initializer_list<Region> regions,
                void (*call)(void*), void* body, Core& core)
{
    std::vector<uint32_t> order(block_dim);
    for (uint32_t i = 0; i < block_dim; ++i) order[i] = i;
    if (block_order == BlockOrder::kReverse) std::reverse(order.begin(), order.end());
    if (block_order == BlockOrder::kShuffled)
        std::shuffle(order.begin(), order.end(), std::mt19937(block_dim));

    Core* outer = current_core;
    current_core = &core;
    check::BeginLaunch(kernel, regions);
    core.block_num = block_dim;
    try {
        for (uint32_t block : order) {
            core.block_idx = block;
            core.counters.blocks += 1;
            check::BeginBlock();
            call(body);
            check::EndBlock();
        }
    } catch (...) {
        check::EndLaunch();
        current_core = outer;
        throw;
    }
    check::EndLaunch();
    current_core = outer;
}
#endif

}  // namespace

void SetBlockOrder(BlockOrder order) { block_order = order; }

Counters ReadCounters()
{
    std::lock_guard<std::mutex> lock(totals_mutex);
    return totals;
}

void ResetCounters()
{
    std::lock_guard<std::mutex> lock(totals_mutex);
    totals = Counters{};
}

void detail::Launch(const char* kernel, uint32_t block_dim, [[maybe_unused]] int threads,
                    [[maybe_unused]] std::initializer_list<Region> regions, void (*call)(void*),
                    void* body)
{
    if (block_dim < 1 || block_dim > 65535) {
        throw Error(std::string(kernel) + ": launched with blockDim " + std::to_string(block_dim) +
                    "; it must be 1 to 65535");
    }
    std::exception_ptr error;
#if ASCENDC_SIM_STRICT
    std::unique_ptr<CoreMemory> memory = TakeCore();
    memory->core.counters.launches = 1;
    try {
        std::lock_guard<std::mutex> lock(checked_mutex);
        RunChecked(kernel, block_dim, regions, call, body, memory->core);
    } catch (...) {
        error = std::current_exception();
    }
    ReturnCore(std::move(memory));
#else
    Job job;
    job.call = call;
    job.body = body;
    job.block_dim = block_dim;
    const int workers = std::max(1, static_cast<int>(std::min<int64_t>(threads, block_dim)));
    // Memory is taken here: where there is too little, an exception could not leave the threads.
    std::vector<std::unique_ptr<CoreMemory>> taken(workers);
    for (std::unique_ptr<CoreMemory>& memory : taken) memory = TakeCore();
    taken.front()->core.counters.launches = 1;
    // torch's threads, where it has the same OpenMP: they are awake after its own operators
#pragma omp parallel for num_threads(workers) schedule(static, 1) if (workers > 1)
    for (int i = 0; i < workers; ++i) job.Run(taken[i]->core);
    for (std::unique_ptr<CoreMemory>& memory : taken) ReturnCore(std::move(memory));
    error = job.error;
#endif
    if (error) std::rethrow_exception(error);
}

}  // namespace sim
