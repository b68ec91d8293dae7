// Where launches of the simulated toolkit end. What crosses this header is plain C: the generated
// stub has another C++ ABI than the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

extern "C" {

// A kernel as the device runs it, on the block of arguments of its launch.
struct DeviceKernel {
    const char* name;
    size_t arguments;  // bytes
    void (*run)(const void* block);
    size_t (*pointers)(const void* block, const void** found);  // at most kMaxPointers
};

uint32_t LaunchAscendKernel(const DeviceKernel* kernel, uint32_t blocks, const void* block,
                            size_t bytes, void* stream);
uint32_t AllocAscendMemDevice(void** memory, uint64_t bytes);
uint32_t FreeAscendMemDevice(void* memory);
void SetLastError(uint32_t status);

}  // extern "C"

constexpr size_t kMaxPointers = 8;

// Reads arguments by the device's rule: each at its own alignment, of 4 bytes at least.
class ArgumentReader
{
public:
    explicit ArgumentReader(const void* block) : block_(static_cast<const char*>(block)) {}

    template <class T>
    T Next()
    {
        T value;
        std::memcpy(&value, block_ + Place<T>(), sizeof(T));
        return value;
    }

    template <class T>
    size_t Place()
    {
        constexpr size_t align = alignof(T) < 4 ? 4 : alignof(T);
        const size_t begin = (end_ + align - 1) / align * align;
        end_ = begin + sizeof(T);
        return begin;
    }

    size_t end() const { return end_; }

private:
    const char* block_;
    size_t end_ = 0;
};

template <auto* kernel>
struct Device;

template <class... Args, void (*kernel)(Args...)>
struct Device<kernel> {
    static size_t Size()
    {
        ArgumentReader reader(nullptr);
        (reader.Place<Args>(), ...);
        return reader.end();
    }

    static void Run(const void* block)
    {
        ArgumentReader reader(block);
        std::apply(kernel, std::tuple<Args...>{reader.Next<Args>()...});
    }

    static size_t Pointers(const void* block, const void** found)
    {
        ArgumentReader reader(block);
        size_t count = 0;
        const auto note = [&](const auto& value) {
            if constexpr (std::is_pointer_v<std::decay_t<decltype(value)>>) found[count++] = value;
        };
        (note(reader.Next<Args>()), ...);
        return count;
    }

    static const DeviceKernel* Named(const char* name)
    {
        static const DeviceKernel device{name, Size(), &Run, &Pointers};
        return &device;
    }
};
