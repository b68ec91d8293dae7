// Launches: blocks over a pool of threads (fast) or one after another under the checker (strict),
// and the counters.
#include "sim.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
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

// Threads that help with the blocks of one launch at a time. Never destroyed: its threads outlive
// static destruction.
class Pool {
public:
    std::unique_ptr<CoreMemory> TakeCore()
    {
        std::lock_guard<std::mutex> lock(cores_mutex_);
        if (cores_.empty()) return std::make_unique<CoreMemory>();
        std::unique_ptr<CoreMemory> core = std::move(cores_.back());
        cores_.pop_back();
        return core;
    }

    void ReturnCore(std::unique_ptr<CoreMemory> core)
    {
        std::lock_guard<std::mutex> lock(cores_mutex_);
        cores_.push_back(std::move(core));
    }

    // The caller runs blocks itself and waits only for helpers that have begun: one that wakes late
    // finds no job.
    void Help(Job& job, int helpers, Core& own)
    {
        std::unique_lock<std::mutex> launch(launch_mutex_, std::try_to_lock);
        if (!launch.owns_lock()) return job.Run(own);  // another launch has the threads
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(threads_.size()) < helpers)
                threads_.emplace_back([this] { Work(); });
            job_ = &job;
            wanted_ = helpers;
        }
        for (int i = 0; i < helpers; ++i) wake_.notify_one();
        job.Run(own);
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;
        wanted_ = 0;
        done_.wait(lock, [this] { return running_ == 0; });
    }

private:
    void Work()
    {
        std::unique_ptr<CoreMemory> memory = TakeCore();
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            Job* job = job_;
            wanted_ -= 1;
            running_ += 1;
            lock.unlock();
            memory->core.counters = Counters{};
            job->Run(memory->core);
            {
                std::lock_guard<std::mutex> merge(totals_mutex);
                Merge(totals, memory->core.counters);
            }
            lock.lock();
            running_ -= 1;
            if (running_ == 0) done_.notify_one();
        }
    }

    std::mutex launch_mutex_, mutex_, cores_mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    std::vector<std::unique_ptr<CoreMemory>> cores_;
    Job* job_ = nullptr;
    int wanted_ = 0;
    int running_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};

// A child of fork() has none of its parent's threads, and may have its locks held: it starts
// afresh.
void ForgetAfterFork()
{
    the_pool = nullptr;
    new (&totals_mutex) std::mutex;
    new (&checked_mutex) std::mutex;
}

Pool& ThePool()
{
    Pool* pool = the_pool.load(std::memory_order_acquire);
    if (pool != nullptr) return *pool;
    static std::once_flag registered;
    std::call_once(registered, [] { pthread_atfork(nullptr, nullptr, ForgetAfterFork); });
    Pool* fresh = new Pool;
    if (the_pool.compare_exchange_strong(pool, fresh)) return *fresh;
    delete fresh;
    return *pool;
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
    Pool& pool = ThePool();
    std::unique_ptr<CoreMemory> memory = pool.TakeCore();
    Core& core = memory->core;
    core.pipe = nullptr;
    core.counters = Counters{};
    core.counters.launches = 1;
    std::exception_ptr error;
#if ASCENDC_SIM_STRICT
    try {
        std::lock_guard<std::mutex> lock(checked_mutex);
        RunChecked(kernel, block_dim, regions, call, body, core);
    } catch (...) {
        error = std::current_exception();
    }
#else
    Job job;
    job.call = call;
    job.body = body;
    job.block_dim = block_dim;
    int helpers = std::min<int64_t>(threads, block_dim) - 1;
    if (helpers > 0) {
        pool.Help(job, helpers, core);
    } else {
        job.Run(core);
    }
    error = job.error;
#endif
    {
        std::lock_guard<std::mutex> lock(totals_mutex);
        Merge(totals, core.counters);
    }
    pool.ReturnCore(std::move(memory));
    if (error) std::rethrow_exception(error);
}

}  // namespace sim
