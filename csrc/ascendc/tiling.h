// The structs that the host computes and the kernels read. They are passed by value.
//
// They stand outside any namespace and have members of fixed width only, because the build of CANN
// 8 copies their text into the launch functions that it generates.
#pragma once

#include <stdint.h>

// Work is divided into contiguous slices: each block has `items_per_block` items, and the first
// `extra_items` blocks have one more.

struct LastTokenGatherTiling {
    uint64_t row_stride;  // elements between the starts of two rows of hidden
    uint32_t tokens;      // rows of hidden
    uint32_t hidden;      // elements of a row
    uint32_t items_per_block;
    uint32_t extra_items;
    uint32_t ids_are_cu_seqlens;  // 1: ids are B + 1 offsets of sequences; 0: B indices of rows
    uint32_t nan_bits;            // a NaN in hidden's dtype, for ids that are out of range
};
static_assert(sizeof(LastTokenGatherTiling) == 32, "host and device must agree on the layout");

struct ScoreHeadTiling {
    uint64_t row_stride;
    uint32_t tokens;
    uint32_t hidden;
    uint32_t items_per_block;
    uint32_t extra_items;
    uint32_t norm_is_float;  // 1: norm_weight is float32; 0: it has hidden's dtype
    float mean_scale;        // 1 / hidden
    float eps;
    float bias;
};
static_assert(sizeof(ScoreHeadTiling) == 40, "host and device must agree on the layout");

struct FusedPoolTiling {
    uint64_t row_stride;
    uint32_t tokens;
    uint32_t hidden;
    uint32_t width;  // elements that are read of a row: with a norm all, else what results need
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
