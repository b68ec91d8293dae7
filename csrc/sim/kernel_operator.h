// Ascend C for one vector core, on the host: a functional model of the API subset the kernels use,
// for Atlas A2.
//
// Kernels include this file by the name the vendor's tool chain gives it, and compile unchanged for
// both.
//
// Two builds from one source. The fast one (default) runs plain loops. The checked one
// (ASCENDC_SIM_STRICT=1) computes the same bits and throws sim::Error at the first broken rule:
// alignment, ranges, use of memory nothing wrote, a missing flag or barrier, queue discipline,
// modes left on. The device compiler inserts some synchronisation by itself; the checked build
// behaves as if it inserted none.
//
// What it cannot show:
//   - time: pipes do not overlap here, and there are no bank conflicts, caches or fetches;
//   - what the device compiler refuses (stack, address spaces, language), except element types;
//   - the last bits of Exp, Ln, Div and Sqrt, which are correctly rounded here, and of the fused
//     multiply-add forms, which round twice here; Reciprocal and Rsqrt are off on purpose, by the
//     order of their documented error;
//   - int16 and int32 overflow, which wraps here; float to int32 saturates and maps NaN to 0;
//   - what Max, Min, Maxs and Mins make of a NaN: here the second operand wins;
//   - coherence of the scalar data cache between launches, and cache lines shared by cores.
#pragma once

#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define GM_ADDR __gm__ uint8_t*

#define ASCEND_IS_AIV constexpr(true)
#define ASCEND_IS_AIC constexpr(false)
#define KERNEL_TASK_TYPE_DEFAULT(type) \
    static_assert((type) == KERNEL_TYPE_AIV_ONLY, "only kernels for vector cores are modelled")

#include "cast.h"
#include "copy.h"
#include "pipe.h"
#include "reduce.h"
#include "tensor.h"
#include "types.h"
#include "vector.h"

enum KernelType { KERNEL_TYPE_AIV_ONLY };
