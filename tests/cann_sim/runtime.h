// The parts libascendcl.so is made of: what its source files share.
//
// One lock guards everything below; it is never held while a work item runs. Functions that take a
// Lock want it held.
#pragma once

#include <acl/acl.h>
#include <acl/error_codes/rt_error_codes.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cann_sim.h"

namespace cannsim {

using Lock = std::unique_lock<std::mutex>;

struct Task {
    std::string name;
    std::function<int()> run;     // empty: a mere wait
    std::function<bool()> ready;  // empty: always
    bool bookkeeping = false;     // runs on a stopped device too, or the host would wait for ever
};
using TaskPtr = std::shared_ptr<Task>;

struct Stream;
struct Model;

struct Device {
    int id = 0;
    bool used = false;
    Stream* default_stream = nullptr;
    std::set<Stream*> streams;
    cannsim_stats stats{};
    int stopped = 0;  // the code of the failure that stopped it
    std::string reason;
};

// Tasks whose content may be replaced after the capture.
struct Group : std::enable_shared_from_this<Group> {
    Device* device = nullptr;
    std::vector<TaskPtr> tasks;
};

struct Stream {
    int32_t id = 0;
    Device* device = nullptr;
    std::deque<TaskPtr> queue;
    bool running = false;
    Model* capture = nullptr;
    std::shared_ptr<Group> open_group;  // between TaskGrpBegin and TaskGrpEnd
    std::shared_ptr<Group> update;      // between TaskUpdateBegin and TaskUpdateEnd
    std::vector<TaskPtr> fresh;         // collected for the update
};

struct Event {
    uint32_t flag = 0;
    uint64_t asked = 0, done = 0;  // records asked for, records that ran
    bool external_set = false;
    double when_ms = 0;
    Device* device = nullptr;  // of the last record
    Model* capture = nullptr;
    Stream* from = nullptr;
};

struct Node {
    TaskPtr task;
    std::shared_ptr<Group> group;  // set for a member of a task group
    size_t index = 0;
};

// A captured graph.
struct Model {
    uint32_t id = 0;
    Device* device = nullptr;
    std::vector<Node> nodes;
    std::vector<std::shared_ptr<Group>> groups;
    std::set<Stream*> streams;   // taking part in the capture
    std::set<Stream*> unjoined;  // side streams whose work the origin has not waited for
    Stream* origin = nullptr;
    std::thread::id thread;
    aclmdlRICaptureMode mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
    bool invalid = false;
    uint64_t resources = 0;  // stream resources it holds
};

struct Allocation {
    size_t bytes;
    Device* device;
};

struct State {
    std::mutex mutex;
    std::condition_variable moved;
    std::vector<std::unique_ptr<Device>> devices;
    std::map<uintptr_t, Allocation> memory;  // by base address
    std::map<uintptr_t, size_t> pinned;      // page-locked host memory
    uint64_t memory_bytes = 0;               // of each device
    uint64_t stream_budget = 0;              // of each device
    std::set<Model*> captures;               // open ones
    std::map<std::string, uint64_t> counts;
    int32_t next_stream = 1;
    uint32_t next_model = 1;
};
State& TheState();
Lock Locked();

// ---- settings
bool Switch(const char* name);
double Number(const char* name, double otherwise);
const char* Text(const char* name, const char* otherwise);
void Trace(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- errors
int Fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
const std::string& RecentError();
void SetError(const std::string& text);
// A work item failed: from now on every wait and every copy of the device fails.
void Stop(Device& device, int code);
// The code that stopped the device, with its reason as the recent error; 0 while it runs.
int Stopped(Device& device);

// ---- faults
void Inject(const std::string& what, int after, int times, int code, Lock& lock);
void InjectFromEnvironment(Lock& lock);
void ForgetFaults(Lock& lock);
// The code of a fault that is due for `what` now, with an error text; else 0.
int FailByFault(const std::string& what, Lock& lock);

// ---- devices
Device& CurrentDevice();
Device* DeviceOf(const void* p, size_t bytes, Lock& lock);
Stream& StreamOf(void* handle);
int TakeStreamResource(Device& device, const char* for_what);

// ---- work
TaskPtr MakeTask(std::string name, std::function<int()> run);
TaskPtr MakeWait(std::string name, std::function<bool()> ready);
TaskPtr MakeBookkeeping(std::string name, std::function<int()> run);
// Records into a capture, collects for an update, or queues and runs.
int Enqueue(Stream& stream, TaskPtr task);
void PumpAll(Lock& lock);
// What Enqueue does last: runs what can run and reports a failure that it caused.
int RunQueued(Device& device, Lock& lock);
// Waits until `done`. Nothing moving for long is a deadlock, on a device as well: it is reported.
int HostWait(Device& device, const char* what, const std::function<bool()>& done, Lock& lock);

// ---- capture
int Invalidate(Model& model, int code, const char* what);
// May the host block, next to the captures that are open?
int CheckUnsafe(const char* what, Lock& lock);

}  // namespace cannsim
