// What the host computes and a kernel reads: plain structs, passed by value.
//
// They stand outside any namespace and hold nothing but fixed-width members because CANN's legacy
// build copies their text into the launch stub it generates.
#pragma once

#include <stdint.h>

// Work is cut into contiguous slices: `items_per_block` items for each block, one more for the
// first `extra_items` blocks.

struct LastTokenGatherTiling {
    uint64_t row_stride;  // elements between the starts of two rows of hidden
    uint32_t tokens;      // rows of hidden
    uint32_t hidden;      // elements of a row
    uint32_t items_per_block;
    uint32_t extra_items;
    uint32_t ids_are_cu_seqlens;  // 1: B + 1 offsets, the last row of each span; 0: B row indices
    uint32_t nan_bits;            // a NaN of hidden's dtype, for an id out of range
};
static_assert(sizeof(LastTokenGatherTiling) == 32, "host and device must agree on the layout");

struct ScoreHeadTiling {
    uint64_t row_stride;
    uint32_t tokens;
    uint32_t hidden;
    uint32_t items_per_block;
    uint32_t extra_items;
    uint32_t norm_is_float;  // norm_weight is float32; else it has hidden's dtype
    float mean_scale;        // 1 / hidden
    float eps;
    float bias;
};
static_assert(sizeof(ScoreHeadTiling) == 40, "host and device must agree on the layout");

struct FusedPoolTiling {
    uint64_t row_stride;
    uint32_t tokens;
    uint32_t hidden;
    uint32_t width;  // elements read of a row: hidden with a norm, else what the result needs
    uint32_t dim;    // elements of a result
    uint32_t tokens_per_tile;
    uint32_t items_per_block;
    uint32_t extra_items;
    uint32_t mode;  // a PoolMode
    uint32_t has_norm;
    uint32_t norm_is_float;
    uint32_t normalize;
    uint32_t nan_bits;
    float mean_scale;
    float eps;
};
static_assert(sizeof(FusedPoolTiling) == 64, "host and device must agree on the layout");

enum PoolMode : uint32_t { POOL_LAST = 0, POOL_MEAN = 1, POOL_CLS = 2 };
