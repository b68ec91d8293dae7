// The mask registers, for instructions called with isSetMask = false.
#pragma once

#include "check.h"
#include "core.h"

namespace AscendC {

constexpr uint64_t MASK_PLACEHOLDER = 0;

enum class MaskMode : uint8_t { NORMAL, COUNTER };

inline void SetMaskCount()
{
    sim::ThisCore().mask.counter = true;
    sim::ThisCore().mask.chosen = false;
}

inline void SetMaskNorm()
{
    sim::ThisCore().mask.counter = false;
    sim::ThisCore().mask.chosen = false;
}

template <class T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(uint64_t maskHigh, uint64_t maskLow)
{
    [[maybe_unused]] bool counter = mode == MaskMode::COUNTER;
    SIM_CHECK(sim::ThisCore().mask.counter == counter, "SetVectorMask",
              "template says %s mode, the core is in %s mode", counter ? "counter" : "normal",
              counter ? "normal" : "counter");
    sim::ThisCore().mask = {maskLow, maskHigh, sim::ThisCore().mask.counter, true};
}

inline void ResetMask()
{
    sim::ThisCore().mask = {~uint64_t{0}, ~uint64_t{0}, sim::ThisCore().mask.counter, true};
}

}  // namespace AscendC
