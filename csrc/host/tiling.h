// Turns the arguments of an operator into the struct that its kernel reads. This is arithmetic
// only: it touches no device and no memory.
//
// Every function may throw std::invalid_argument, which names the argument, what it got and what it
// wanted.
#pragma once

#include <cstdint>
#include <string>

#include "../ascendc/tiling.h"

namespace pyrerank
{

enum class DType { kBfloat16, kFloat16, kFloat32 };

DType ParseDType(const char* argument,
                 const std::string& name);        // "bfloat16", "float16", "float32"
uint32_t ParsePoolMode(const std::string& name);  // "last", "mean", "cls"
uint32_t SizeOf(DType dtype);
uint32_t NanBits(DType dtype);

// The argument `hidden`: `tokens` rows of `width` elements, whose starts lie `row_stride` apart.
struct Rows {
    int64_t tokens;
    int64_t width;
    int64_t row_stride;
    DType dtype;

    uint64_t Bytes() const;  // from the first element to the end of the last
};

// Says how items are divided into contiguous slices, one for each of `blocks` blocks: each has
// `items_per_block` items, and the first `extra_items` blocks have one more.
struct Split {
    uint32_t blocks;
    uint32_t items_per_block;
    uint32_t extra_items;
};

Split SplitItems(int64_t count, int64_t cores);

LastTokenGatherTiling TileLastTokenGather(const Rows& hidden, const Split& split,
                                          bool ids_are_cu_seqlens);
ScoreHeadTiling TileScoreHead(const Rows& hidden, const Split& split, DType norm_dtype, double eps,
                              double bias);

struct PoolOptions {
    int64_t dim;
    uint32_t mode;
    bool has_norm;
    DType norm_dtype;
    double eps;
    bool normalize;
};
FusedPoolTiling TileFusedPool(const Rows& hidden, const Split& split, const PoolOptions& options);

}  // namespace pyrerank
