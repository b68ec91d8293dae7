#include "tiling.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace pyrerank
{
namespace
{

constexpr int64_t kMaxWidth =
    8192;  // a row of float32 is then 32 KiB, what the kernels' UB plans hold
constexpr int64_t kWidthStep = 16;          // 16 elements of 2 bytes are one 32-byte block of UB
constexpr int64_t kMaxBlocks = 65535;       // of one launch
constexpr int64_t kMaxTileElements = 8192;  // of fused_pool, see its UB plan
constexpr int64_t kMaxTileTokens = 8;

[[noreturn]] void Reject(const std::string& argument, const std::string& got,
                         const std::string& wanted)
{
    throw std::invalid_argument(argument + ": got " + got + ", wanted " + wanted);
}

void CheckRange(const char* argument, int64_t got, int64_t low, int64_t high)
{
    if (got < low || got > high) {
        Reject(argument, std::to_string(got), std::to_string(low) + " to " + std::to_string(high));
    }
}

void CheckRows(const Rows& hidden)
{
    CheckRange("T (tokens of hidden)", hidden.tokens, 0, INT32_MAX);
    CheckRange("H (elements of a row of hidden)", hidden.width, kWidthStep, kMaxWidth);
    if (hidden.width % kWidthStep != 0) {
        Reject("H (elements of a row of hidden)", std::to_string(hidden.width),
               "a multiple of " + std::to_string(kWidthStep));
    }
    // A copy of several rows states the gap between them in 32 bits of bytes.
    const int64_t largest = (static_cast<int64_t>(UINT32_MAX) + 1) / SizeOf(hidden.dtype);
    CheckRange("row_stride (elements between rows of hidden)", hidden.row_stride, hidden.width,
               largest);
}

float CheckEps(double eps)
{
    const float value = static_cast<float>(eps);
    if (!(value > 0.0f) || !std::isfinite(value))
        Reject("eps", std::to_string(eps), "a positive float32");
    return value;
}

}  // namespace

DType ParseDType(const char* argument, const std::string& name)
{
    if (name == "bfloat16") return DType::kBfloat16;
    if (name == "float16") return DType::kFloat16;
    if (name == "float32") return DType::kFloat32;
    Reject(argument, name, "bfloat16, float16 or float32");
}

uint32_t ParsePoolMode(const std::string& name)
{
    if (name == "last") return POOL_LAST;
    if (name == "mean") return POOL_MEAN;
    if (name == "cls") return POOL_CLS;
    Reject("mode", name, "last, mean or cls");
}

uint32_t SizeOf(DType dtype)
{
    return dtype == DType::kFloat32 ? 4 : 2;
}

uint32_t NanBits(DType dtype)
{
    if (dtype == DType::kBfloat16) return 0x7fc0;
    return dtype == DType::kFloat16 ? 0x7e00 : 0x7fc00000;
}

uint64_t Rows::Bytes() const
{
    return tokens == 0 ? 0
                       : static_cast<uint64_t>((tokens - 1) * row_stride + width) * SizeOf(dtype);
}

Split SplitItems(int64_t count, int64_t cores)
{
    CheckRange("B (items)", count, 1, INT32_MAX);
    CheckRange("cores", cores, 1, INT32_MAX);
    const int64_t blocks = std::min({count, cores, kMaxBlocks});
    return {static_cast<uint32_t>(blocks), static_cast<uint32_t>(count / blocks),
            static_cast<uint32_t>(count % blocks)};
}

LastTokenGatherTiling TileLastTokenGather(const Rows& hidden, const Split& split,
                                          bool ids_are_cu_seqlens)
{
    CheckRows(hidden);
    LastTokenGatherTiling tiling{};
    tiling.row_stride = static_cast<uint64_t>(hidden.row_stride);
    tiling.tokens = static_cast<uint32_t>(hidden.tokens);
    tiling.hidden = static_cast<uint32_t>(hidden.width);
    tiling.items_per_block = split.items_per_block;
    tiling.extra_items = split.extra_items;
    tiling.ids_are_cu_seqlens = ids_are_cu_seqlens;
    tiling.nan_bits = NanBits(hidden.dtype);
    return tiling;
}

ScoreHeadTiling TileScoreHead(const Rows& hidden, const Split& split, DType norm_dtype, double eps,
                              double bias)
{
    CheckRows(hidden);
    ScoreHeadTiling tiling{};
    tiling.row_stride = static_cast<uint64_t>(hidden.row_stride);
    tiling.tokens = static_cast<uint32_t>(hidden.tokens);
    tiling.hidden = static_cast<uint32_t>(hidden.width);
    tiling.items_per_block = split.items_per_block;
    tiling.extra_items = split.extra_items;
    tiling.norm_is_float = norm_dtype == DType::kFloat32;
    tiling.mean_scale = 1.0f / static_cast<float>(hidden.width);
    tiling.eps = CheckEps(eps);
    tiling.bias = static_cast<float>(bias);
    return tiling;
}

FusedPoolTiling TileFusedPool(const Rows& hidden, const Split& split, const PoolOptions& options)
{
    CheckRows(hidden);
    CheckRange("dim", options.dim, 1, hidden.width);
    // Without a norm nothing beyond dim is needed; whole 32-byte blocks keep a tile free of filler.
    const int64_t block = 32 / SizeOf(hidden.dtype);
    const int64_t width =
        options.has_norm ? hidden.width : (options.dim + block - 1) / block * block;
    FusedPoolTiling tiling{};
    tiling.row_stride = static_cast<uint64_t>(hidden.row_stride);
    tiling.tokens = static_cast<uint32_t>(hidden.tokens);
    tiling.hidden = static_cast<uint32_t>(hidden.width);
    tiling.width = static_cast<uint32_t>(width);
    tiling.dim = static_cast<uint32_t>(options.dim);
    tiling.tokens_per_tile = static_cast<uint32_t>(
        options.mode == POOL_MEAN ? std::clamp<int64_t>(kMaxTileElements / width, 1, kMaxTileTokens)
                                  : 1);
    tiling.items_per_block = split.items_per_block;
    tiling.extra_items = split.extra_items;
    tiling.mode = options.mode;
    tiling.has_norm = options.has_norm;
    tiling.norm_is_float = options.norm_dtype == DType::kFloat32;
    tiling.normalize = options.normalize;
    tiling.nan_bits = NanBits(hidden.dtype);
    tiling.mean_scale = 1.0f / static_cast<float>(hidden.width);
    tiling.eps = options.has_norm ? CheckEps(options.eps) : 0.0f;
    return tiling;
}

}  // namespace pyrerank
