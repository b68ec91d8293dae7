// Capture into a graph, replay, and the update of task groups.
#include "runtime.h"

using namespace cannsim;

namespace {

// A thread may say that it knows what it does.
thread_local aclmdlRICaptureMode thread_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

// Groups that a handle may still name.
std::set<Group*>& LiveGroups()
{
    static auto* groups = new std::set<Group*>;
    return *groups;
}

std::string Names(const std::vector<TaskPtr>& tasks)
{
    std::string names;
    for (const TaskPtr& task : tasks) names += " " + task->name;
    return names;
}

}  // namespace

namespace cannsim {

int Invalidate(Model& model, int code, const char* what)
{
    model.invalid = true;
    return Fail(code, "%s is not allowed while stream %d is being captured", what,
                model.origin->id);
}

int CheckUnsafe(const char* what, Lock&)
{
    if (thread_mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return 0;
    for (Model* model : TheState().captures) {
        const bool ours = model->thread == std::this_thread::get_id();
        const bool hit = ours ? model->mode != ACL_MODEL_RI_CAPTURE_MODE_RELAXED
                              : model->mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL &&
                                    thread_mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
        if (hit) return Invalidate(*model, ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, what);
    }
    return 0;
}

}  // namespace cannsim

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode mode)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    Device& device = *stream.device;
    if (&stream == device.default_stream)
        return Fail(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream cannot be captured");
    if (stream.capture)
        return Fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d is being captured already", stream.id);
    if (int code = FailByFault("capture_begin", lock)) return code;
    if (int code = TakeStreamResource(device, "aclmdlRICaptureBegin")) return code;
    auto* model = new Model;
    model->id = TheState().next_model++;
    model->device = &device;
    model->origin = &stream;
    model->thread = std::this_thread::get_id();
    model->mode = mode;
    model->streams.insert(&stream);
    model->resources = 1;
    stream.capture = model;
    TheState().captures.insert(model);
    Trace("capture begin s%d model %u", stream.id, model->id);
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status, aclmdlRI* out)
{
    Lock lock = Locked();
    Model* model = StreamOf(handle).capture;
    *status = !model           ? ACL_MODEL_RI_CAPTURE_STATUS_NONE
              : model->invalid ? ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED
                               : ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
    if (out) *out = model;
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* out)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    Model* model = stream.capture;
    *out = nullptr;
    if (!model)
        return Fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "stream %d is not being captured", stream.id);
    if (model->origin != &stream)
        return Fail(ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, "the capture began on stream %d",
                    model->origin->id);
    if (model->mode != ACL_MODEL_RI_CAPTURE_MODE_RELAXED &&
        model->thread != std::this_thread::get_id())
        return Fail(ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD,
                    "the capture began in another thread");
    if (int code = FailByFault("capture_stuck", lock)) return code;
    bool open_group = false;
    for (Stream* member : model->streams) {
        open_group |= member->open_group != nullptr;
        member->capture = nullptr;
        member->open_group = nullptr;
    }
    TheState().captures.erase(model);
    *out = model;
    Trace("capture end model %u: %zu nodes", model->id, model->nodes.size());
    if (int code = FailByFault("capture_end", lock)) {
        model->invalid = true;
        return code;
    }
    if (model->invalid)
        return Fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED,
                    "the capture was invalidated by an illegal call");
    model->invalid = true;  // unless the rest is in order
    if (!model->unjoined.empty())
        return Fail(ACL_ERROR_RT_STREAM_UNJOINED, "a side stream was not joined");
    if (open_group) return Fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "a task group is still open");
    model->invalid = false;
    return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream_handle)
{
    auto* model = static_cast<Model*>(handle);
    Lock lock = Locked();
    Stream& stream = StreamOf(stream_handle);
    if (!model || model->invalid)
        return Fail(ACL_ERROR_RT_MODEL_EXECUTE, "replay of a graph whose capture failed");
    if (stream.capture) return Fail(ACL_ERROR_RT_STREAM_CAPTURED, "replay inside a capture");
    if (stream.device != model->device)
        return Fail(ACL_ERROR_RT_MODEL_CONTEXT,
                    "replay of a graph of device %d on stream %d of device %d", model->device->id,
                    stream.id, stream.device->id);
    if (int code = FailByFault("replay", lock)) return code;
    model->device->stats.replays++;
    Trace("replay model %u on s%d", model->id, stream.id);
    for (const Node& node : model->nodes) {
        // A member of a group is looked up when it runs: an update that arrives while the replay
        // waits for it is seen.
        const auto run = [group = node.group, index = node.index] {
            const TaskPtr now = group->tasks[index];
            return now->run ? now->run() : 0;
        };
        stream.queue.push_back(node.group ? MakeTask(node.task->name, run) : node.task);
    }
    return RunQueued(*model->device, lock);
}

aclError aclmdlRIDestroy(aclmdlRI handle)
{
    std::unique_ptr<Model> model(static_cast<Model*>(handle));  // goes away without the lock
    Lock lock = Locked();
    model->device->stats.streams -= model->resources;
    for (const auto& group : model->groups) LiveGroups().erase(group.get());
    lock.unlock();
    return ACL_SUCCESS;
}

aclError aclmdlRIGetId(aclmdlRI model, uint32_t* id)
{
    *id = static_cast<Model*>(model)->id;
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode)
{
    std::swap(thread_mode, *mode);
    return ACL_SUCCESS;
}

// ================================================================ task groups
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream handle)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (!stream.capture)
        return Fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "a task group outside a capture");
    if (stream.open_group)
        return Fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "task groups do not nest");
    stream.open_group = std::make_shared<Group>();
    stream.open_group->device = stream.device;
    stream.capture->groups.push_back(stream.open_group);
    LiveGroups().insert(stream.open_group.get());
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskGrpEnd(aclrtStream handle, aclrtTaskGrp* group)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (!stream.open_group) return Fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "no open task group");
    *group = stream.open_group.get();
    stream.open_group = nullptr;
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream handle, aclrtTaskGrp group)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (!LiveGroups().count(static_cast<Group*>(group)))
        return Fail(ACL_ERROR_RT_INVALID_HANDLE, "update of a task group whose graph is gone");
    if (stream.capture || stream.update)
        return Fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "update on a busy stream");
    if (int code = FailByFault("update", lock)) return code;
    stream.update = static_cast<Group*>(group)->shared_from_this();
    stream.fresh.clear();
    return ACL_SUCCESS;
}

aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream handle)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (!stream.update) return Fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "no update in progress");
    const auto group = std::move(stream.update);
    stream.update = nullptr;
    auto fresh = std::make_shared<std::vector<TaskPtr>>(std::move(stream.fresh));
    stream.fresh.clear();
    if (Names(group->tasks) != Names(*fresh))
        return Fail(ACL_ERROR_RT_MODEL_UPDATE_FAILED,
                    "the captured group has [%s ], the update launched [%s ]",
                    Names(group->tasks).c_str(), Names(*fresh).c_str());
    stream.device->stats.updates++;
    // In the order of the stream, like all other work.
    stream.queue.push_back(MakeBookkeeping("task_update", [=] {
        Lock now = Locked();
        group->tasks.swap(*fresh);
        return 0;
    }));
    return RunQueued(*stream.device, lock);
}

}  // extern "C"
