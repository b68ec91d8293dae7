// LocalTensor (unified buffer) and GlobalTensor (global memory): typed references to memory, no
// storage.
#pragma once

#include <cstdint>

#include "check.h"
#include "core.h"

namespace AscendC {

enum class CacheMode { CACHE_MODE_DISABLE = 0, CACHE_MODE_NORMAL = 1 };

template <class T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(T* data, uint32_t elements, sim::Buffer* buffer)
        : data_(data), size_(elements), generation_(buffer->generation), buffer_(buffer)
    {}

    LocalTensor operator[](uint32_t offset) const
    {
        SIM_CHECK(offset <= size_, "LocalTensor::operator[]",
                  "offset %u is past the end of a tensor of %u elements", offset, size_);
        LocalTensor part = *this;
        part.data_ += offset;
        part.size_ -= offset;
        return part;
    }

    T GetValue(uint32_t index) const
    {
        Scalar("LocalTensor::GetValue", index, false);
        return data_[index];
    }

    void SetValue(uint32_t index, T value) const
    {
        Scalar("LocalTensor::SetValue", index, true);
        data_[index] = value;
    }

#if ASCENDC_SIM_STRICT
    class Element {  // tells a read through operator() from a write
    public:
        Element(const LocalTensor& tensor, uint32_t index) : tensor_(tensor), index_(index) {}
        operator T() const { return tensor_.GetValue(index_); }
        void operator=(T value) const { tensor_.SetValue(index_, value); }
        void operator=(const Element& other) const { *this = static_cast<T>(other); }

    private:
        LocalTensor tensor_;
        uint32_t index_;
    };
    Element operator()(uint32_t index) const { return Element(*this, index); }
#else
    T& operator()(uint32_t index) const { return data_[index]; }
#endif

    uint32_t GetSize() const { return size_; }
    void SetSize(uint32_t elements) { size_ = elements; }

    template <class U>
    LocalTensor<U> ReinterpretCast() const
    {
        LocalTensor<U> other;
        other.data_ = reinterpret_cast<U*>(data_);
        other.size_ = static_cast<uint32_t>(size_ * sizeof(T) / sizeof(U));
        other.generation_ = generation_;
        other.buffer_ = buffer_;
        return other;
    }

    // For the simulator; the device has no such members.
    T* SimData() const { return data_; }
    sim::Buffer* SimBuffer() const { return buffer_; }
    uint32_t SimGeneration() const { return generation_; }
    sim::check::Operand SimOperand(const char* name, bool reads, bool writes, uint32_t block_stride,
                                   uint32_t repeat_stride, uint32_t align) const
    {
        return {name,   data_,     data_ + size_, buffer_,       generation_, reads,
                writes, sizeof(T), block_stride,  repeat_stride, align};
    }
    sim::check::Bytes SimBytes(const char* name, bool writes, uint64_t size, uint32_t blocks = 1,
                               uint64_t stride = 0, uint64_t offset = 0,
                               bool undefined = false) const
    {
        const uint8_t* start = reinterpret_cast<const uint8_t*>(data_) + offset;
        return {name,    start,       size,  blocks,        stride,   writes,
                buffer_, generation_, data_, data_ + size_, undefined};
    }

private:
    template <class U>
    friend class LocalTensor;

    void Scalar(const char* api, uint32_t index, bool writes) const
    {
        SIM_CHECK(index < size_, api, "index %u is past the end of a tensor of %u elements", index,
                  size_);
        sim::check::Touch(PIPE_S, api,
                          {SimBytes("tensor", writes, sizeof(T), 1, 0, index * sizeof(T))});
    }

    T* data_ = nullptr;
    uint32_t size_ = 0;
    uint32_t generation_ = 0;
    sim::Buffer* buffer_ = nullptr;
};

template <class T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(T* buffer, uint64_t elements)
    {
        SetGlobalBuffer(buffer);
        size_ = elements;
        sized_ = true;
    }

    void SetGlobalBuffer(T* buffer)
    {
        SIM_CHECK(reinterpret_cast<uintptr_t>(buffer) % sizeof(T) == 0,
                  "GlobalTensor::SetGlobalBuffer",
                  "address %p is not aligned to the %zu bytes of an element",
                  static_cast<const void*>(buffer), sizeof(T));
        base_ = data_ = buffer;
        sized_ = false;
    }

    GlobalTensor operator[](uint64_t offset) const
    {
        GlobalTensor part = *this;
        part.data_ += offset;
        return part;
    }

    T GetValue(uint64_t index) const
    {
        sim::check::Touch(PIPE_S, "GlobalTensor::GetValue",
                          {SimBytes("tensor", false, sizeof(T), 1, 0, index * sizeof(T))});
        sim::ThisCore().counters.gm_read_bytes += sizeof(T);
        return data_[index];
    }

    T operator()(uint64_t index) const { return GetValue(index); }

    template <class V>
    void SetValue(uint64_t, V) const
    {
        static_assert(sizeof(V) == 0,
                      "GlobalTensor::SetValue loses data when two cores share a cache line; "
                      "write through the unified buffer and DataCopyPad");
    }

    uint64_t GetSize() const
    {
        SIM_CHECK(sized_, "GlobalTensor::GetSize", "SetGlobalBuffer was given no size");
        return size_;
    }

    void SetL2CacheHint(CacheMode) const {}

    T* SimData() const { return data_; }
    sim::check::Bytes SimBytes(const char* name, bool writes, uint64_t size, uint32_t blocks = 1,
                               uint64_t stride = 0, uint64_t offset = 0) const
    {
        const uint8_t* start = reinterpret_cast<const uint8_t*>(data_) + offset;
        return {name,   start,   size, blocks, stride,
                writes, nullptr, 0,    base_,  sized_ ? base_ + size_ : nullptr,
                false};
    }

private:
    T* base_ = nullptr;
    T* data_ = nullptr;
    uint64_t size_ = 0;
    bool sized_ = false;
};

}  // namespace AscendC
