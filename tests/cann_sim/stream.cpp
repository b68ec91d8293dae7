// Streams and events.
#include <chrono>

#include "runtime.h"

using namespace cannsim;

namespace cannsim {

Stream& StreamOf(void* handle)
{
    return handle ? *static_cast<Stream*>(handle) : *CurrentDevice().default_stream;
}

int TakeStreamResource(Device& device, const char* for_what)
{
    if (device.stats.streams >= TheState().stream_budget)
        return Fail(ACL_ERROR_RT_NO_STREAM_RESOURCE,
                    "%s needs a stream resource: device %d has used all %llu", for_what, device.id,
                    static_cast<unsigned long long>(TheState().stream_budget));
    device.stats.streams++;
    return 0;
}

}  // namespace cannsim

namespace {

double NowMs()
{
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

bool Idle(const Stream& stream)
{
    return stream.queue.empty() && !stream.running;
}

int Synchronize(Stream& stream)
{
    Lock lock = Locked();
    if (stream.capture)
        return Invalidate(*stream.capture, ACL_ERROR_RT_STREAM_CAPTURED,
                          "synchronizing the stream");
    if (int code = Stopped(*stream.device)) return code;
    return HostWait(*stream.device, "aclrtSynchronizeStream", [&] { return Idle(stream); }, lock);
}

int SynchronizeDevice()
{
    Lock lock = Locked();
    Device& device = CurrentDevice();
    if (int code = Stopped(device)) return code;
    if (int code = CheckUnsafe("synchronizing the device", lock)) return code;
    const auto idle = [&] {
        for (const Stream* stream : device.streams)
            if (!Idle(*stream)) return false;
        return true;
    };
    return HostWait(device, "aclrtSynchronizeDevice", idle, lock);
}

int Record(Event* event, Stream& stream)
{
    uint64_t number = 0;
    {
        Lock lock = Locked();
        if (stream.capture && !(event->flag & ACL_EVENT_EXTERNAL)) {
            event->capture = stream.capture;
            event->from = &stream;
            return ACL_SUCCESS;
        }
        event->capture = nullptr;
        event->device = stream.device;
        number = ++event->asked;
    }
    return Enqueue(stream, MakeBookkeeping("event_record", [=] {
                       Lock lock = Locked();
                       event->done = std::max(event->done, number);
                       event->external_set = true;
                       event->when_ms = NowMs();
                       return 0;
                   }));
}

int Wait(Event* event, Stream& stream)
{
    uint64_t number = 0;
    const bool external = event->flag & ACL_EVENT_EXTERNAL;
    {
        Lock lock = Locked();
        if (Model* model = event->capture; model && !external) {
            // An edge inside a capture: the order of the nodes already respects it.
            if (!TheState().captures.count(model))
                return Fail(ACL_ERROR_RT_EVENT_CAPTURED,
                            "waiting for an event recorded in a finished capture");
            if (stream.capture && stream.capture != model)
                return Fail(ACL_ERROR_STREAM_CAPTURE_CONFLICT, "an event joins two captures");
            stream.capture = model;
            model->streams.insert(&stream);
            if (event->from != &stream) model->unjoined.erase(event->from);
            if (&stream != model->origin) model->unjoined.insert(&stream);
            return ACL_SUCCESS;
        }
        // Never recorded: no effect. Recorded before this capture: its begin is later anyway.
        if (!external && (!event->asked || stream.capture)) return ACL_SUCCESS;
        number = event->asked;
    }
    if (external)
        return Enqueue(stream,
                       MakeWait("event_wait_external", [=] { return event->external_set; }));
    return Enqueue(stream, MakeWait("event_wait", [=] { return event->done >= number; }));
}

// Asking for the state of an event that a capture recorded spoils that capture.
int CheckNotCaptured(Event* event, const char* what)
{
    if (!event->capture || !TheState().captures.count(event->capture)) return 0;
    return Invalidate(*event->capture, ACL_ERROR_RT_EVENT_CAPTURED, what);
}

}  // namespace

extern "C" {

aclError aclrtCreateStreamWithConfig(aclrtStream* out, uint32_t, uint32_t)
{
    Lock lock = Locked();
    Device& device = CurrentDevice();
    if (int code = FailByFault("create_stream", lock)) return code;
    if (int code = TakeStreamResource(device, "aclrtCreateStream")) return code;
    auto* stream = new Stream;  // never freed: events may name it when it is destroyed
    stream->id = TheState().next_stream++;
    stream->device = &device;
    device.streams.insert(stream);
    *out = stream;
    return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream* out)
{
    return aclrtCreateStreamWithConfig(out, 0, 0);
}

aclError aclrtDestroyStream(aclrtStream handle)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (!stream.device->streams.erase(&stream))
        return Fail(ACL_ERROR_RT_PARAM_INVALID, "stream %d was destroyed before", stream.id);
    stream.device->stats.streams--;
    return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream handle)
{
    return aclrtDestroyStream(handle);
}

aclError aclrtSynchronizeStream(aclrtStream stream)
{
    return Synchronize(StreamOf(stream));
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t)
{
    return Synchronize(StreamOf(stream));
}

aclError aclrtSynchronizeDevice()
{
    return SynchronizeDevice();
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t)
{
    return SynchronizeDevice();
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status)
{
    Lock lock = Locked();
    Stream& stream = StreamOf(handle);
    if (stream.capture)
        return Invalidate(*stream.capture, ACL_ERROR_RT_STREAM_CAPTURED, "querying the stream");
    PumpAll(lock);
    *status = Idle(stream) ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t* id)
{
    *id = StreamOf(stream).id;
    return ACL_SUCCESS;
}

aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* on)
{
    *on = 0;
    return ACL_SUCCESS;
}

aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void* arg)
{
    return Enqueue(StreamOf(stream), MakeBookkeeping("host_func", [=] {
                       function(arg);
                       return 0;
                   }));
}

aclError aclrtLaunchCallback(aclrtCallback function, void* arg, aclrtCallbackBlockType,
                             aclrtStream handle)
{
    Stream& stream = StreamOf(handle);
    {
        Lock lock = Locked();
        if (stream.capture)
            return Invalidate(*stream.capture, ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT,
                              "aclrtLaunchCallback");
    }
    return Enqueue(stream, MakeBookkeeping("callback", [=] {
                       function(arg);
                       return 0;
                   }));
}

// The words in device memory by which torch_npu orders a graph's update and its replay.
aclError aclrtValueWrite(void* p, uint64_t value, uint32_t, aclrtStream stream)
{
    return Enqueue(StreamOf(stream), MakeBookkeeping("value_write", [=] {
                       *static_cast<volatile uint64_t*>(p) = value;
                       return 0;
                   }));
}

aclError aclrtValueWait(void* p, uint64_t value, uint32_t flag, aclrtStream stream)
{
    return Enqueue(StreamOf(stream), MakeWait("value_wait", [=] {
                       const uint64_t now = *static_cast<volatile uint64_t*>(p);
                       switch (flag) {
                           case 0: return static_cast<int64_t>(now - value) >= 0;
                           case 1: return now == value;
                           case 2: return (now & value) != 0;
                           default: return ~(now | value) != 0;
                       }
                   }));
}

// ================================================================ events
aclError aclrtCreateEventWithFlag(aclrtEvent* out, uint32_t flag)
{
    auto* event = new Event;  // never freed: captured nodes may refer to it
    event->flag = flag;
    *out = event;
    return ACL_SUCCESS;
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* out, uint32_t flag)
{
    return aclrtCreateEventWithFlag(out, flag);
}

aclError aclrtDestroyEvent(aclrtEvent)
{
    return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream)
{
    return Record(static_cast<Event*>(event), StreamOf(stream));
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event)
{
    return Wait(static_cast<Event*>(event), StreamOf(stream));
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream)
{
    auto* event = static_cast<Event*>(handle);
    return Enqueue(StreamOf(stream), MakeBookkeeping("event_reset", [=] {
                       Lock lock = Locked();
                       event->external_set = false;
                       return 0;
                   }));
}

aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    auto* event = static_cast<Event*>(handle);
    Lock lock = Locked();
    if (int code = CheckNotCaptured(event, "synchronizing a captured event")) return code;
    if (!event->device) return ACL_SUCCESS;  // never recorded
    Device& device = *event->device;
    if (int code = Stopped(device)) return code;
    const uint64_t number = event->asked;
    return HostWait(device, "aclrtSynchronizeEvent", [&] { return event->done >= number; }, lock);
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status)
{
    auto* event = static_cast<Event*>(handle);
    Lock lock = Locked();
    if (int code = CheckNotCaptured(event, "querying a captured event")) return code;
    PumpAll(lock);
    *status = event->done >= event->asked ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                          : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent start, aclrtEvent end)
{
    *ms =
        static_cast<float>(static_cast<Event*>(end)->when_ms - static_cast<Event*>(start)->when_ms);
    return ACL_SUCCESS;
}

}  // extern "C"
