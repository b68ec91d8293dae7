// Copies: global memory -> unified buffer (MTE2), unified buffer -> global memory (MTE3), within
// the buffer (V).
#pragma once

#include <cstring>
#include <mutex>

#include "lanes.h"

namespace AscendC {

struct DataCopyParams {  // lengths and gaps in units of 32 B
    DataCopyParams() = default;
    DataCopyParams(uint16_t count, uint16_t len, uint16_t src_gap, uint16_t dst_gap)
        : blockCount(count), blockLen(len), srcStride(src_gap), dstStride(dst_gap)
    {}
    uint16_t blockCount = 1, blockLen = 0, srcStride = 0, dstStride = 0;
};

struct DataCopyExtParams {  // length in bytes; gaps in bytes on the GM side and in 32 B on the UB
                            // side
    DataCopyExtParams() = default;
    DataCopyExtParams(uint16_t count, uint32_t len, uint32_t src_gap, uint32_t dst_gap,
                      uint32_t reserved)
        : blockCount(count), blockLen(len), srcStride(src_gap), dstStride(dst_gap), rsv(reserved)
    {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
};

template <class T>
struct DataCopyPadExtParams {  // paddings in elements
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool pad, uint8_t left, uint8_t right, T value)
        : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value)
    {}
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};

}  // namespace AscendC

namespace sim {

constexpr uint32_t kMaxCopyBlocks = 4095;
constexpr uint32_t kMaxCopyBytes = 2097151;

template <class T>
constexpr AtomicType AtomicOf()
{
    if constexpr (std::is_same_v<T, int8_t>) return AtomicType::kInt8;
    else if constexpr (std::is_same_v<T, int16_t>) return AtomicType::kInt16;
    else if constexpr (std::is_same_v<T, half>) return AtomicType::kHalf;
    else if constexpr (std::is_same_v<T, bfloat16_t>) return AtomicType::kBfloat16;
    else if constexpr (std::is_same_v<T, int32_t>) return AtomicType::kInt32;
    else if constexpr (std::is_same_v<T, float>) return AtomicType::kFloat;
    else return AtomicType::kNone;
}

inline std::mutex atomic_add_mutex;  // blocks run on several threads

template <class T>
void AtomicAdd(uint8_t* dst, const uint8_t* src, uint64_t bytes)
{
    std::lock_guard<std::mutex> lock(atomic_add_mutex);
    for (uint64_t i = 0; i < bytes; i += sizeof(T)) {
        T a, b;
        std::memcpy(&a, dst + i, sizeof(T));
        std::memcpy(&b, src + i, sizeof(T));
        if constexpr (kIsOneOf<T, half, bfloat16_t>) {
            a = T(static_cast<float>(a) + static_cast<float>(b));
        } else {
            a = static_cast<T>(a + b);
        }
        std::memcpy(dst + i, &a, sizeof(T));
    }
}

// `blocks` runs of `bytes`; the strides are from start to start.
template <class T>
void StoreRuns(const AscendC::GlobalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
               uint32_t blocks, uint64_t bytes, uint64_t dst_stride, uint64_t src_stride)
{
    Core& core = ThisCore();
    core.counters.copies += 1;
    core.counters.gm_write_bytes += blocks * bytes;
    uint8_t* to = reinterpret_cast<uint8_t*>(dst.SimData());
    const uint8_t* from = reinterpret_cast<const uint8_t*>(src.SimData());
    for (uint32_t b = 0; b < blocks; ++b, to += dst_stride, from += src_stride) {
        if (core.atomic == AtomicType::kNone) {
            std::memcpy(to, from, bytes);
        } else if constexpr (AtomicOf<T>() != AtomicType::kNone) {
            AtomicAdd<T>(to, from, bytes);
        }
    }
}

template <class T>
void CheckCopyOut([[maybe_unused]] const char* api)
{
    SIM_CHECK(ThisCore().atomic == AtomicType::kNone || ThisCore().atomic == AtomicOf<T>(), api,
              "atomic add is on for another element type");
}

template <class T>
void LoadRuns(const AscendC::LocalTensor<T>& dst, const AscendC::GlobalTensor<T>& src,
              uint32_t blocks, uint64_t bytes, uint64_t dst_stride, uint64_t src_stride,
              uint64_t dst_offset)
{
    Core& core = ThisCore();
    core.counters.copies += 1;
    core.counters.gm_read_bytes += blocks * bytes;
    uint8_t* to = reinterpret_cast<uint8_t*>(dst.SimData()) + dst_offset;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(src.SimData());
    for (uint32_t b = 0; b < blocks; ++b, to += dst_stride, from += src_stride)
        std::memcpy(to, from, bytes);
}

template <class T>
AscendC::DataCopyParams WholeBlocks([[maybe_unused]] uint32_t count)
{
    SIM_CHECK(uint64_t{count} * sizeof(T) % kBlockBytes == 0, "DataCopy",
              "count %u is %llu bytes, not a multiple of 32: the hardware would drop the tail; use "
              "DataCopyPad",
              count, static_cast<unsigned long long>(uint64_t{count} * sizeof(T)));
    SIM_CHECK(count > 0, "DataCopy", "count 0 copies nothing");
    uint64_t blocks = uint64_t{count} * sizeof(T) / kBlockBytes;
    SIM_CHECK(blocks <= 65535, "DataCopy",
              "%llu blocks of 32 bytes: the length would wrap in 16 bits",
              static_cast<unsigned long long>(blocks));
    return AscendC::DataCopyParams(1, static_cast<uint16_t>(blocks), 0, 0);
}

inline void CheckBlocks([[maybe_unused]] const char* api, [[maybe_unused]] uint32_t lowest,
                        [[maybe_unused]] uint32_t blocks)
{
    SIM_CHECK(blocks >= lowest && blocks <= kMaxCopyBlocks, api, "blockCount %u is outside %u..%u",
              blocks, lowest, kMaxCopyBlocks);
}

template <class T>
void CheckPadCopy([[maybe_unused]] const AscendC::DataCopyExtParams& p)
{
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
    CheckBlocks("DataCopyPad", 0, p.blockCount);
    SIM_CHECK(p.blockLen <= kMaxCopyBytes, "DataCopyPad", "blockLen %u is above %u bytes",
              p.blockLen, kMaxCopyBytes);
    SIM_CHECK(p.blockLen % sizeof(T) == 0, "DataCopyPad",
              "blockLen %u is not a multiple of the %zu bytes of an element", p.blockLen,
              sizeof(T));
}

}  // namespace sim

namespace AscendC {

template <class T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& p)
{
    sim::CheckBlocks("DataCopy", 1, p.blockCount);
    sim::CheckAligned("DataCopy", "dst", dst.SimData(), 32);
    sim::CheckAligned("DataCopy", "src", src.SimData(), sizeof(T));
    uint64_t bytes = uint64_t{p.blockLen} * 32;
    uint64_t from = bytes + uint64_t{p.srcStride} * 32, to = bytes + uint64_t{p.dstStride} * 32;
    sim::check::Touch(PIPE_MTE2, "DataCopy",
                      {src.SimBytes("src", false, bytes, p.blockCount, from),
                       dst.SimBytes("dst", true, bytes, p.blockCount, to)});
    sim::LoadRuns(dst, src, p.blockCount, bytes, to, from, 0);
}

template <class T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p)
{
    sim::CheckBlocks("DataCopy", 1, p.blockCount);
    sim::CheckAligned("DataCopy", "src", src.SimData(), 32);
    sim::CheckAligned("DataCopy", "dst", dst.SimData(), sizeof(T));
    sim::CheckCopyOut<T>("DataCopy");
    uint64_t bytes = uint64_t{p.blockLen} * 32;
    uint64_t from = bytes + uint64_t{p.srcStride} * 32, to = bytes + uint64_t{p.dstStride} * 32;
    sim::check::Touch(PIPE_MTE3, "DataCopy",
                      {src.SimBytes("src", false, bytes, p.blockCount, from),
                       dst.SimBytes("dst", true, bytes, p.blockCount, to)});
    sim::StoreRuns(dst, src, p.blockCount, bytes, to, from);
}

template <class T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p)
{
    sim::CheckBlocks("DataCopy", 1, p.blockCount);
    sim::CheckAligned("DataCopy", "dst", dst.SimData(), 32);
    sim::CheckAligned("DataCopy", "src", src.SimData(), 32);
    uint64_t bytes = uint64_t{p.blockLen} * 32;
    uint64_t from = bytes + uint64_t{p.srcStride} * 32, to = bytes + uint64_t{p.dstStride} * 32;
    sim::check::Touch(PIPE_V, "DataCopy",
                      {src.SimBytes("src", false, bytes, p.blockCount, from),
                       dst.SimBytes("dst", true, bytes, p.blockCount, to)});
    sim::Counters& counters = sim::ThisCore().counters;
    counters.vector_instructions += 1;
    counters.vector_repeats += (p.blockCount * bytes + sim::kRepeatBytes - 1) / sim::kRepeatBytes;
    for (uint32_t b = 0; b < p.blockCount; ++b) {
        std::memmove(reinterpret_cast<uint8_t*>(dst.SimData()) + b * to,
                     reinterpret_cast<const uint8_t*>(src.SimData()) + b * from, bytes);
    }
}

template <class T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, uint32_t count)
{
    DataCopy(dst, src, sim::WholeBlocks<T>(count));
}

template <class T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count)
{
    DataCopy(dst, src, sim::WholeBlocks<T>(count));
}

template <class T>
void DataCopy(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint32_t count)
{
    DataCopy(dst, src, sim::WholeBlocks<T>(count));
}

// Each block starts at a 32-byte boundary of UB. Up to the next boundary follows a filler: the
// padding value; without any padding, the block's first element; with paddings but isPad = false,
// nothing defined.
template <class T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>& pad)
{
    sim::CheckPadCopy<T>(p);
    sim::CheckAligned("DataCopyPad", "dst", dst.SimData(), 32);
    SIM_CHECK(pad.leftPadding * sizeof(T) <= 32 && pad.rightPadding * sizeof(T) <= 32,
              "DataCopyPad", "paddings of %u and %u elements: at most 32 bytes each",
              pad.leftPadding, pad.rightPadding);
    if (p.blockCount == 0 || p.blockLen == 0) return;
    uint64_t before = pad.leftPadding * sizeof(T);
    uint64_t end = before + p.blockLen;
    uint64_t padded = sim::RoundUp32(static_cast<uint32_t>(end + pad.rightPadding * sizeof(T)));
    uint64_t from = uint64_t{p.blockLen} + p.srcStride, to = padded + uint64_t{p.dstStride} * 32;
    bool plain = pad.leftPadding == 0 && pad.rightPadding == 0;
    [[maybe_unused]] bool undefined = !plain && !pad.isPad;
    sim::check::Touch(PIPE_MTE2, "DataCopyPad",
                      {src.SimBytes("src", false, p.blockLen, p.blockCount, from),
                       dst.SimBytes("dst", true, before, p.blockCount, to, 0, undefined),
                       dst.SimBytes("dst", true, p.blockLen, p.blockCount, to, before),
                       dst.SimBytes("dst", true, padded - end, p.blockCount, to, end, undefined)});
    sim::LoadRuns(dst, src, p.blockCount, p.blockLen, to, from, before);
    if (padded == p.blockLen || !(plain || pad.isPad)) return;
    for (uint32_t b = 0; b < p.blockCount; ++b) {
        T* block = dst.SimData() + b * to / sizeof(T);
        T value = plain ? block[0] : pad.paddingValue;
        std::fill_n(block, before / sizeof(T), value);
        std::fill(block + end / sizeof(T), block + padded / sizeof(T), value);
    }
}

template <class T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p)
{
    sim::CheckPadCopy<T>(p);
    sim::CheckAligned("DataCopyPad", "src", src.SimData(), 32);
    sim::CheckCopyOut<T>("DataCopyPad");
    if (p.blockCount == 0 || p.blockLen == 0) return;
    uint64_t from = sim::RoundUp32(p.blockLen) + uint64_t{p.srcStride} * 32,
             to = uint64_t{p.blockLen} + p.dstStride;
    sim::check::Touch(PIPE_MTE3, "DataCopyPad",
                      {src.SimBytes("src", false, p.blockLen, p.blockCount, from),
                       dst.SimBytes("dst", true, p.blockLen, p.blockCount, to)});
    sim::StoreRuns(dst, src, p.blockCount, p.blockLen, to, from);
}

template <class T>
void SetAtomicAdd()
{
    static_assert(sim::AtomicOf<T>() != sim::AtomicType::kNone,
                  "SetAtomicAdd takes int8_t, int16_t, half, bfloat16_t, int32_t and float on A2");
    sim::ThisCore().atomic = sim::AtomicOf<T>();
}

inline void SetAtomicNone() { sim::ThisCore().atomic = sim::AtomicType::kNone; }

}  // namespace AscendC
