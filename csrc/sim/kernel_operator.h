// Ascend C for one vector core of Atlas A2, on the host: a functional model of those parts of the
// API that the kernels use.
//
// This file has the name that the vendor's tool chain gives it, so kernels include it and compile
// unchanged for both.
//
// One source makes two builds. The fast build (the default) runs plain loops. The checked build
// (ASCENDC_SIM_STRICT=1) computes the same bits, and throws sim::Error at the first broken rule,
// such as a wrong alignment or range, memory that is read before it is written, a missing flag or
// barrier, a queue that is used wrongly, or a mode that is left on. The device compiler inserts
// some synchronisation by itself; the checked build behaves as if it inserted none.
//
// The model cannot show
//   - time: pipes do not overlap here, and there are no bank conflicts, caches or fetches;
//   - what the device compiler refuses (stack, address spaces, language), except element types;
//   - the last bits of Exp, Ln, Div and Sqrt, which are correctly rounded here, and of fused
//     multiply-adds, which round twice here; Reciprocal and Rsqrt have an error on purpose, of the
//     documented order;
//   - overflow of int16 and int32, which wraps here, and of float to int32, which saturates here
//     and makes 0 of NaN;
//   - what Max, Min, Maxs and Mins make of a NaN; here the second operand wins;
//   - coherence of the scalar data cache between launches, and cache lines that cores share.
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
