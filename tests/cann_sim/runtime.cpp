// Settings, errors, and the work items of streams.
#include "runtime.h"

#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cannsim {
namespace {

State* MakeState()
{
    auto* state = new State;  // never freed: torch_npu's threads may outlive static objects
    state->memory_bytes = static_cast<uint64_t>(Number("CANN_SIM_MEM_GB", 16) * (1ull << 30));
    state->stream_budget = static_cast<uint64_t>(Number("CANN_SIM_STREAMS", 100000));
    const int count = static_cast<int>(Number("CANN_SIM_DEVICES", 2));
    for (int i = 0; i < count; ++i) {
        auto device = std::make_unique<Device>();
        device->id = i;
        device->default_stream = new Stream;
        device->default_stream->device = device.get();
        device->streams.insert(device->default_stream);
        state->devices.push_back(std::move(device));
    }
    Lock lock(state->mutex);
    InjectFromEnvironment(lock);
    return state;
}

thread_local std::string recent_error;

}  // namespace

State& TheState()
{
    static State* state = MakeState();
    return *state;
}

Lock Locked()
{
    return Lock(TheState().mutex);
}

bool Switch(const char* name)
{
    const char* value = std::getenv(name);
    return value && *value && std::strcmp(value, "0") != 0;
}

double Number(const char* name, double otherwise)
{
    const char* value = std::getenv(name);
    return value && *value ? std::atof(value) : otherwise;
}

const char* Text(const char* name, const char* otherwise)
{
    const char* value = std::getenv(name);
    return value && *value ? value : otherwise;
}

void Trace(const char* format, ...)
{
    static const bool on = Switch("CANN_SIM_TRACE");
    if (!on) return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "[cannsim] %s\n", text);
}

// ================================================================ errors
int Fail(int code, const char* format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    recent_error = text;
    std::fprintf(stderr, "[cannsim] error %d: %s\n", code, text);
    return code;
}

const std::string& RecentError()
{
    return recent_error;
}

void SetError(const std::string& text)
{
    recent_error = text;
}

void Stop(Device& device, int code)
{
    if (device.stopped) return;
    device.stopped = code;
    device.reason = recent_error;
}

int Stopped(Device& device)
{
    if (device.stopped)
        recent_error = "device " + std::to_string(device.id) +
                       " was stopped by an earlier failure: " + device.reason;
    return device.stopped;
}

// ================================================================ work items
namespace {

// Runs what can run on one stream; true if anything did.
bool Pump(Stream& stream, Lock& lock)
{
    State& state = TheState();
    Device& device = *stream.device;
    bool moved = false;
    while (!stream.running && !stream.queue.empty()) {
        TaskPtr task = stream.queue.front();
        if (!device.stopped && task->ready && !task->ready()) break;
        stream.queue.pop_front();
        moved = true;
        if (!device.stopped || task->bookkeeping) {
            Trace("run  d%d s%d %s", device.id, stream.id, task->name.c_str());
            device.stats.launches++;
            state.counts[task->name]++;
            int code = FailByFault(task->name, lock);
            if (!code && task->run) {
                stream.running = true;
                lock.unlock();
                code = task->run();
                lock.lock();
                stream.running = false;
            }
            if (code) Stop(device, code);
        }
        lock.unlock();  // what the item owned may need the lock to go away
        task.reset();
        lock.lock();
        state.moved.notify_all();
    }
    return moved;
}

// Is an item at work, in whichever thread?
bool Working()
{
    for (const auto& device : TheState().devices)
        for (const Stream* stream : device->streams)
            if (stream->running) return true;
    return false;
}

bool Lazy()
{
    static const bool lazy = Switch("CANN_SIM_LAZY");
    return lazy;
}

}  // namespace

TaskPtr MakeTask(std::string name, std::function<int()> run)
{
    return std::make_shared<Task>(Task{std::move(name), std::move(run), nullptr});
}

TaskPtr MakeWait(std::string name, std::function<bool()> ready)
{
    return std::make_shared<Task>(Task{std::move(name), nullptr, std::move(ready)});
}

TaskPtr MakeBookkeeping(std::string name, std::function<int()> run)
{
    return std::make_shared<Task>(Task{std::move(name), std::move(run), nullptr, true});
}

void PumpAll(Lock& lock)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (auto& device : TheState().devices) {
            const std::vector<Stream*> streams(device->streams.begin(), device->streams.end());
            for (Stream* stream : streams)
                if (device->streams.count(stream)) moved |= Pump(*stream, lock);
        }
    }
}

int RunQueued(Device& device, Lock& lock)
{
    if (Lazy()) return 0;
    const int before = device.stopped;
    PumpAll(lock);
    // Reported where it happened; on a device it comes with the next wait.
    return before ? 0 : device.stopped;
}

int Enqueue(Stream& stream, TaskPtr task)
{
    Lock lock = Locked();
    const char* name = task->name.c_str();
    if (int code = FailByFault("launch:" + task->name, lock)) return code;
    if (stream.update) {
        Trace("upd  s%d %s", stream.id, name);
        stream.fresh.push_back(std::move(task));
        return 0;
    }
    if (Model* model = stream.capture) {
        if (model->invalid)
            return Fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED,
                        "the capture is invalid, cannot add %s", name);
        Trace("capt s%d %s", stream.id, name);
        Node node{task, stream.open_group, 0};
        if (node.group) {
            auto& tasks = node.group->tasks;
            if (tasks.empty()) {
                if (int code = TakeStreamResource(*model->device, name)) {
                    model->invalid = true;
                    return code;
                }
                model->resources++;
            }
            node.index = tasks.size();
            tasks.push_back(task);
        }
        stream.device->stats.captured++;
        model->nodes.push_back(std::move(node));
        if (&stream != model->origin) model->unjoined.insert(&stream);
        return 0;
    }
    stream.queue.push_back(std::move(task));
    return RunQueued(*stream.device, lock);
}

int HostWait(Device& device, const char* what, const std::function<bool()>& done, Lock& lock)
{
    using Clock = std::chrono::steady_clock;
    static const auto limit =
        std::chrono::milliseconds(static_cast<int>(Number("CANN_SIM_WAIT_S", 10) * 1000));
    device.stats.syncs++;
    Trace("wait d%d %s", device.id, what);
    auto give_up = Clock::now() + limit;
    while (true) {
        PumpAll(lock);
        if (device.stopped) return Stopped(device);
        if (done()) return 0;
        if (Working()) give_up = Clock::now() + limit;
        const auto slice = std::min(Clock::now() + std::chrono::milliseconds(20), give_up);
        TheState().moved.wait_until(lock, slice);
        if (Clock::now() < give_up) continue;
        Fail(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT,
             "%s: a stream waits for an event that nobody records; a replay, for its update", what);
        Stop(device, ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
        PumpAll(lock);
        return ACL_ERROR_RT_STREAM_SYNC_TIMEOUT;
    }
}

}  // namespace cannsim
