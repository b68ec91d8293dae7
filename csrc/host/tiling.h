// From an op's arguments to the struct its kernel reads. Pure arithmetic: no device, no memory.
//
// Every function throws std::invalid_argument, naming the argument, what it got and what it wanted.
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

// hidden: `tokens` rows of `width` elements, `row_stride` apart.
struct Rows {
    int64_t tokens;
    int64_t width;
    int64_t row_stride;
    DType dtype;

    uint64_t Bytes() const;  // from the first element to the end of the last
};

// `count` items cut into contiguous slices, one for each of `blocks` blocks.
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
