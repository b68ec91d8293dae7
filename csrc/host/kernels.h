// The kernels as csrc/host launches them. With CANN they are launch functions, which its generator
// (CANN 8) or launch.asc (CANN 9) writes: they take the number of blocks, the stream, the buffers
// and a pointer to the tiling, which they copy. Without, they are the kernels themselves.
#pragma once

#include <cstdint>

#include "../ascendc/tiling.h"

#if PYRERANK_NPU

#include <acl/acl.h>

using GatherKernel = uint32_t(uint32_t blocks, aclrtStream stream, void* hidden, void* ids,
                              void* out, LastTokenGatherTiling* tiling);
using ScoreKernel = uint32_t(uint32_t blocks, aclrtStream stream, void* hidden, void* index,
                             void* norm_weight, void* w, void* score, void* logit,
                             ScoreHeadTiling* tiling);
using PoolKernel = uint32_t(uint32_t blocks, aclrtStream stream, void* hidden, void* cu_seqlens,
                            void* norm_weight, void* out, FusedPoolTiling* tiling);
#define PYRERANK_KERNEL(name) aclrtlaunch_##name

#else

using Gm = uint8_t*;
using GatherKernel = void(Gm hidden, Gm ids, Gm out, LastTokenGatherTiling tiling);
using ScoreKernel = void(Gm hidden, Gm index, Gm norm_weight, Gm w, Gm score, Gm logit,
                         ScoreHeadTiling tiling);
using PoolKernel = void(Gm hidden, Gm cu_seqlens, Gm norm_weight, Gm out, FusedPoolTiling tiling);
#define PYRERANK_KERNEL(name) name

#endif

extern "C" {
GatherKernel PYRERANK_KERNEL(last_token_gather_16bit);
GatherKernel PYRERANK_KERNEL(last_token_gather_32bit);
ScoreKernel PYRERANK_KERNEL(score_head_bfloat16);
ScoreKernel PYRERANK_KERNEL(score_head_float16);
ScoreKernel PYRERANK_KERNEL(score_head_float32);
PoolKernel PYRERANK_KERNEL(fused_pool_bfloat16);
PoolKernel PYRERANK_KERNEL(fused_pool_float16);
PoolKernel PYRERANK_KERNEL(fused_pool_float32);
}
