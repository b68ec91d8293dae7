// TPipe, queues, scratch buffers, events and barriers.
//
// Instructions run at once and in program order, so flags and barriers move no data: they are
// counted, and the checked build keeps account of what each pipe may know.
#pragma once

#include <exception>

#include "tensor.h"

namespace AscendC {

using TEventID = int8_t;

template <HardEvent event>
void SetFlag(int32_t id)
{
    sim::check::SetFlag(event, id);
    sim::ThisCore().counters.flags += 1;
}

template <HardEvent event>
void WaitFlag(int32_t id)
{
    sim::check::WaitFlag(event, id);
}

template <pipe_t pipe>
void PipeBarrier()
{
    static_assert(pipe != PIPE_S,
                  "PipeBarrier: the scalar pipe needs none, and PIPE_S does not exist on A2");
    sim::check::Barrier(pipe);
    sim::ThisCore().counters.barriers += 1;
}

template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind;

template <TPosition pos>
class TBuf;

class TPipe {
public:
    TPipe()
    {
        sim::Core& core = sim::ThisCore();
        SIM_CHECK(core.pipe == nullptr, "TPipe", "a second TPipe while one is alive");
        core.pipe = this;
        core.buffer_count = 0;
        core.ub_used = 0;
        for (uint8_t& reserved : core.reserved_events) reserved = 0;
        core.ResetModes();
    }

    ~TPipe()
    {
        sim::check::EndPipe();
        sim::ThisCore().pipe = nullptr;
    }

    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    template <TPosition src, TPosition dst, int32_t depth, auto mask>
    bool InitBuffer(TQueBind<src, dst, depth, mask>& queue, int64_t num, int64_t bytes)
    {
        SIM_CHECK(queue.buffers_ == nullptr, "InitBuffer", "called twice for one queue");
        SIM_CHECK(num >= 1, "InitBuffer", "num %lld: a queue needs a buffer",
                  static_cast<long long>(num));
        using Queue = TQueBind<src, dst, depth, mask>;
        queue.buffers_ = Allocate(num, bytes, sim::BufferState::kFree, Queue::kFree);
        queue.count_ = static_cast<int32_t>(num);
        position_buffers_[static_cast<int>(Queue::kEnQue)] += static_cast<int>(num);
        SIM_CHECK(position_buffers_[static_cast<int>(Queue::kEnQue)] <= sim::kMaxBuffersPerPosition,
                  "InitBuffer", "%d buffers at one position: there are event ids for %d",
                  position_buffers_[static_cast<int>(Queue::kEnQue)], sim::kMaxBuffersPerPosition);
        return true;
    }

    template <TPosition pos>
    bool InitBuffer(TBuf<pos>& scratch, int64_t bytes)
    {
        SIM_CHECK(scratch.buffer_ == nullptr, "InitBuffer", "called twice for one TBuf");
        scratch.buffer_ = Allocate(1, bytes, sim::BufferState::kScratch, HardEvent{});
        return true;
    }

    template <HardEvent event>
    TEventID AllocEventID()
    {
        TEventID id = FetchEventID(event);
        sim::ThisCore().reserved_events[static_cast<int>(event)] |= static_cast<uint8_t>(1u << id);
        return id;
    }

    template <HardEvent event>
    void ReleaseEventID(TEventID id)
    {
        [[maybe_unused]] uint8_t& reserved =
            sim::ThisCore().reserved_events[static_cast<int>(event)];
        SIM_CHECK(id >= 0 && id < sim::kEventIds && (reserved >> id & 1) != 0, "ReleaseEventID",
                  "id %d of %s was not reserved", id, sim::check::EventName(event));
        reserved &= static_cast<uint8_t>(~(1u << id));
    }

    // A free id, not reserved: for a SetFlag followed at once by its WaitFlag.
    TEventID FetchEventID(HardEvent event)
    {
        uint32_t reserved = sim::ThisCore().reserved_events[static_cast<int>(event)];
        SIM_CHECK(reserved != 0xff, "AllocEventID", "all %d ids of %s are in use", sim::kEventIds,
                  sim::check::EventName(event));
        return static_cast<TEventID>(__builtin_ctz(~reserved));
    }

    template <HardEvent event>
    TEventID FetchEventID()
    {
        return FetchEventID(event);
    }

private:
    sim::Buffer* Allocate(int64_t num, int64_t bytes, sim::BufferState state, HardEvent free_flag)
    {
        sim::Core& core = sim::ThisCore();
        SIM_CHECK(bytes > 0, "InitBuffer", "a buffer of %lld bytes", static_cast<long long>(bytes));
        SIM_CHECK(core.buffer_count + num <= sim::kMaxBuffers, "InitBuffer",
                  "more than %d buffers in all", sim::kMaxBuffers);
        uint32_t each = sim::RoundUp32(static_cast<uint32_t>(bytes));
        int64_t used = core.ub_used + num * each;
        SIM_CHECK(used <= sim::kUbBytes, "InitBuffer",
                  "%lld bytes asked for, the unified buffer has %u", static_cast<long long>(used),
                  sim::kUbBytes);
        SIM_CHECK(used <= sim::kUbBudgetBytes, "InitBuffer",
                  "%lld bytes asked for, over the budget of %u: the tool chain keeps the rest",
                  static_cast<long long>(used), sim::kUbBudgetBytes);
        if (used > sim::kUbBytes || core.buffer_count + num > sim::kMaxBuffers)
            throw sim::Error("unified buffer overflow");
        sim::Buffer* first = core.buffers + core.buffer_count;
        for (int64_t i = 0; i < num; ++i) {
            core.buffers[core.buffer_count++] = {core.ub_used, each, 0, state, -1, -1, free_flag};
            core.ub_used += each;
        }
        if (core.counters.ub_peak_bytes < core.ub_used) core.counters.ub_peak_bytes = core.ub_used;
        return first;
    }

    int position_buffers_[sim::kEventPairs] = {};
};

inline TPipe* GetTPipePtr() { return sim::ThisCore().pipe; }

// A ring of buffers passed from one pipe to another, with the flags of both directions.
template <TPosition src, TPosition dst, int32_t depth, auto mask>
class TQueBind {
    static constexpr bool kIn = src == TPosition::GM && dst == TPosition::VECIN;
    static constexpr bool kOut = src == TPosition::VECOUT && dst == TPosition::GM;
    static constexpr bool kCopy = src == TPosition::VECIN && dst == TPosition::VECOUT;
    static_assert(kIn || kOut || kCopy, "queue position: VECIN, VECOUT, or VECIN bound to VECOUT");
    static_assert(depth >= 1,
                  "queue depth: depth 0 selects another interface, which is not modelled");

    static constexpr HardEvent kEnQue = kIn    ? HardEvent::MTE2_V
                                        : kOut ? HardEvent::V_MTE3
                                               : HardEvent::MTE2_MTE3;
    static constexpr HardEvent kFree = kIn    ? HardEvent::V_MTE2
                                       : kOut ? HardEvent::MTE3_V
                                              : HardEvent::MTE3_MTE2;

public:
    TQueBind() = default;
    TQueBind(const TQueBind&) = delete;
    TQueBind& operator=(const TQueBind&) = delete;

    template <class T>
    LocalTensor<T> AllocTensor()
    {
        SIM_CHECK(count_ > 0, "AllocTensor", "the queue was used before InitBuffer");
        for (int32_t tried = 0; tried < count_; ++tried) {
            // In turn, as the device does; the fast build takes the first, which is in the cache.
            sim::Buffer& buffer = buffers_[sim::kStrict ? cursor_ : tried];
            cursor_ = cursor_ + 1 == count_ ? 0 : cursor_ + 1;
            if (buffer.state != sim::BufferState::kFree) continue;
            if (buffer.free_event >= 0) {
                WaitFlag<kFree>(buffer.free_event);
                GetTPipePtr()->ReleaseEventID<kFree>(buffer.free_event);
                buffer.free_event = -1;
            }
            buffer.state = sim::BufferState::kOccupied;
            buffer.generation += 1;
            return Tensor<T>(buffer);
        }
        SIM_CHECK(false, "AllocTensor",
                  "no free buffer among the queue's %d: the core would spin for ever", count_);
        throw sim::Error("AllocTensor: no free buffer");
    }

    template <class T>
    bool EnQue(const LocalTensor<T>& tensor)
    {
        sim::Buffer& buffer = Own("EnQue", tensor);
        SIM_CHECK(buffer.state == sim::BufferState::kOccupied ||
                      buffer.state == sim::BufferState::kDequeued,
                  "EnQue", "the tensor is %s",
                  buffer.state == sim::BufferState::kFree ? "free" : "already in the queue");
        SIM_CHECK(queued_ < depth, "EnQue", "the queue already holds its depth of %d tensors",
                  depth);
        buffer.state = sim::BufferState::kQueued;
        buffer.enque_event = GetTPipePtr()->AllocEventID<kEnQue>();
        SetFlag<kEnQue>(buffer.enque_event);
        ring_[(head_ + queued_) % depth] = &buffer;
        queued_ += 1;
        return true;
    }

    template <class T>
    LocalTensor<T> DeQue()
    {
        SIM_CHECK(count_ > 0, "DeQue", "the queue was used before InitBuffer");
        SIM_CHECK(queued_ > 0, "DeQue", "the queue is empty");
        if (queued_ == 0) throw sim::Error("DeQue: the queue is empty");
        sim::Buffer& buffer = *ring_[head_];
        head_ = (head_ + 1) % depth;
        queued_ -= 1;
        WaitFlag<kEnQue>(buffer.enque_event);
        GetTPipePtr()->ReleaseEventID<kEnQue>(buffer.enque_event);
        buffer.enque_event = -1;
        buffer.state = sim::BufferState::kDequeued;
        return Tensor<T>(buffer);
    }

    template <class T>
    void FreeTensor(LocalTensor<T>& tensor)
    {
        sim::Buffer& buffer = Own("FreeTensor", tensor);
        SIM_CHECK(buffer.state != sim::BufferState::kFree, "FreeTensor",
                  "the tensor is free already");
        SIM_CHECK(buffer.state != sim::BufferState::kQueued, "FreeTensor",
                  "the tensor is in the queue");
        buffer.state = sim::BufferState::kFree;
        buffer.free_event = GetTPipePtr()->AllocEventID<kFree>();
        SetFlag<kFree>(buffer.free_event);
    }

    bool HasTensorInQue() const { return queued_ > 0; }
    bool VacantInQue() const { return queued_ < depth; }
    int32_t GetTensorCountInQue() const { return queued_; }

private:
    friend class TPipe;

    template <class T>
    LocalTensor<T> Tensor(sim::Buffer& buffer) const
    {
        T* data = reinterpret_cast<T*>(sim::ThisCore().ub + buffer.addr);
        return LocalTensor<T>(data, static_cast<uint32_t>(buffer.bytes / sizeof(T)), &buffer);
    }

    template <class T>
    sim::Buffer& Own([[maybe_unused]] const char* api, const LocalTensor<T>& tensor) const
    {
        sim::Buffer* buffer = tensor.SimBuffer();
        SIM_CHECK(count_ > 0, api, "the queue was used before InitBuffer");
        SIM_CHECK(buffer >= buffers_ && buffer < buffers_ + count_, api,
                  "the tensor belongs to another queue");
        SIM_CHECK(tensor.SimGeneration() == buffer->generation, api,
                  "the tensor was freed and its buffer handed out again");
        return *buffer;
    }

    sim::Buffer* buffers_ = nullptr;
    int32_t count_ = 0;
    int32_t cursor_ = 0;
    int32_t head_ = 0;
    int32_t queued_ = 0;
    sim::Buffer* ring_[depth] = {};
};

template <TPosition pos, int32_t depth, auto mask = 0>
class TQue : public TQueBind<pos == TPosition::VECIN ? TPosition::GM : pos,
                             pos == TPosition::VECOUT ? TPosition::GM : pos, depth, mask> {};

// Scratch: no state, no synchronisation; every Get starts at the same address.
template <TPosition pos = TPosition::VECCALC>
class TBuf {
public:
    TBuf() = default;
    TBuf(const TBuf&) = delete;
    TBuf& operator=(const TBuf&) = delete;

    template <class T>
    LocalTensor<T> Get()
    {
        SIM_CHECK(buffer_ != nullptr, "TBuf::Get", "the buffer was used before InitBuffer");
        return Get<T>(static_cast<uint32_t>(buffer_->bytes / sizeof(T)));
    }

    template <class T>
    LocalTensor<T> Get(uint32_t elements)
    {
        return GetWithOffset<T>(elements, 0);
    }

    template <class T>
    LocalTensor<T> GetWithOffset(uint32_t elements, uint32_t offset)
    {
        SIM_CHECK(buffer_ != nullptr, "TBuf::Get", "the buffer was used before InitBuffer");
        SIM_CHECK(offset % sim::kBlockBytes == 0, "TBuf::GetWithOffset",
                  "offset %u is not a multiple of 32", offset);
        SIM_CHECK(offset + uint64_t{elements} * sizeof(T) <= buffer_->bytes, "TBuf::Get",
                  "%u elements of %zu bytes at offset %u do not fit a buffer of %u bytes", elements,
                  sizeof(T), offset, buffer_->bytes);
        T* data = reinterpret_cast<T*>(sim::ThisCore().ub + buffer_->addr + offset);
        return LocalTensor<T>(data, elements, buffer_);
    }

private:
    friend class TPipe;
    sim::Buffer* buffer_ = nullptr;
};

inline int64_t GetBlockIdx() { return sim::ThisCore().block_idx; }
inline int64_t GetBlockNum() { return sim::ThisCore().block_num; }

}  // namespace AscendC
