// kernel<<<blocks, ub, stream>>>(arguments), after bisheng wrote ASC_CHEVRON(kernel, blocks, ub,
// stream)(arguments).
#pragma once

#include <tuple>

#include "ascendc_runtime.h"

#define ASC_CHEVRON(kernel, blocks, ub, stream) \
    Chevron<&kernel>                            \
    {                                           \
        #kernel, blocks, stream                 \
    }

template <auto* kernel>
struct Chevron;

template <class... Args, void (*kernel)(Args...)>
struct Chevron<kernel> {
    const char* name;
    uint32_t blocks;
    void* stream;

    void operator()(Args... arguments) const
    {
        char block[512];
        static_assert((sizeof(Args) + ...) + 4 * sizeof...(Args) < sizeof(block), "too many bytes");
        ArgumentReader places(nullptr);
        (std::memcpy(block + places.Place<Args>(), &arguments, sizeof(Args)), ...);
        SetLastError(LaunchAscendKernel(Device<kernel>::Named(name), blocks, block, places.end(),
                                        stream));
    }
};
