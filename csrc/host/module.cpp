// pyrerank._C and pyrerank._C_npu: the kernels as Python functions over addresses, sizes, scalars and
// a stream handle. They know no torch: tensors and the values in them are checked by
// pyrerank/kernels/calls.py, sizes and scalars in tiling.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launch.h"
#include "tiling.h"
#if !PYRERANK_NPU
#include "module.h"
#endif

namespace py = pybind11;

namespace pyrerank
{
namespace
{

constexpr uint64_t kIdBytes = sizeof(int32_t);

void LastTokenGather(uint64_t hidden, uint64_t ids, uint64_t out, int64_t tokens, int64_t width,
                     int64_t row_stride, int64_t count, const std::string& dtype,
                     bool ids_are_cu_seqlens, int threads, uint64_t stream)
{
    if (count == 0) return;
    const Rows rows{tokens, width, row_stride, ParseDType("dtype", dtype)};
    const Target target{threads, stream};
    const Split split = SplitItems(count, Cores(target));
    const auto tiling = TileLastTokenGather(rows, split, ids_are_cu_seqlens);
    const uint64_t items = static_cast<uint64_t>(count);
    const uint64_t out_bytes = items * tiling.hidden * SizeOf(rows.dtype);
    const std::array<Buffer, 3> buffers{
        {{"hidden", hidden, rows.Bytes(), false},
         {"ids", ids, (items + tiling.ids_are_cu_seqlens) * kIdBytes, false},
         {"out", out, out_bytes, true}}};
    const bool wide = rows.dtype == DType::kFloat32;
    Launch(
        wide ? "last_token_gather_32bit" : "last_token_gather_16bit",
        wide ? PYRERANK_KERNEL(last_token_gather_32bit) : PYRERANK_KERNEL(last_token_gather_16bit),
        split.blocks, target, buffers, tiling);
}

void ScoreHead(uint64_t hidden, uint64_t index, uint64_t norm_weight, uint64_t w, uint64_t score,
               uint64_t logit, int64_t tokens, int64_t width, int64_t row_stride, int64_t count,
               const std::string& dtype, const std::string& norm_dtype, double eps, double bias,
               int threads, uint64_t stream)
{
    if (count == 0) return;
    const Rows rows{tokens, width, row_stride, ParseDType("dtype", dtype)};
    const DType norm = ParseDType("norm_dtype", norm_dtype);
    const Target target{threads, stream};
    const Split split = SplitItems(count, Cores(target));
    const auto tiling = TileScoreHead(rows, split, norm, eps, bias);
    const uint64_t items = static_cast<uint64_t>(count);
    const std::array<Buffer, 6> buffers{
        {{"hidden", hidden, rows.Bytes(), false},
         {"index", index, items * kIdBytes, false},
         {"norm_weight", norm_weight, tiling.hidden * uint64_t{SizeOf(norm)}, false},
         {"w", w, tiling.hidden * sizeof(float), false},
         {"score", score, items * sizeof(float), true},
         {"logit", logit, items * sizeof(float), true}}};
    switch (rows.dtype) {
        case DType::kBfloat16:
            return Launch("score_head_bfloat16", PYRERANK_KERNEL(score_head_bfloat16), split.blocks,
                          target, buffers, tiling);
        case DType::kFloat16:
            return Launch("score_head_float16", PYRERANK_KERNEL(score_head_float16), split.blocks,
                          target, buffers, tiling);
        case DType::kFloat32:
            return Launch("score_head_float32", PYRERANK_KERNEL(score_head_float32), split.blocks,
                          target, buffers, tiling);
    }
}

void FusedPool(uint64_t hidden, uint64_t cu_seqlens, uint64_t norm_weight, uint64_t out,
               int64_t tokens, int64_t width, int64_t row_stride, int64_t count, int64_t dim,
               const std::string& dtype, const std::string& norm_dtype, double eps,
               const std::string& mode, bool normalize, int threads, uint64_t stream)
{
    if (count == 0) return;
    const Rows rows{tokens, width, row_stride, ParseDType("dtype", dtype)};
    const DType norm = ParseDType("norm_dtype", norm_dtype);
    const Target target{threads, stream};
    const Split split = SplitItems(count, Cores(target));
    const auto tiling = TileFusedPool(
        rows, split, {dim, ParsePoolMode(mode), norm_weight != 0, norm, eps, normalize});
    const uint64_t items = static_cast<uint64_t>(count);
    const uint64_t norm_bytes = tiling.has_norm * tiling.hidden * uint64_t{SizeOf(norm)};
    const std::array<Buffer, 4> buffers{
        {{"hidden", hidden, rows.Bytes(), false},
         {"cu_seqlens", cu_seqlens, (items + 1) * kIdBytes, false},
         {"norm_weight", norm_weight, norm_bytes, false},
         {"out", out, items * tiling.dim * SizeOf(rows.dtype), true}}};
    switch (rows.dtype) {
        case DType::kBfloat16:
            return Launch("fused_pool_bfloat16", PYRERANK_KERNEL(fused_pool_bfloat16), split.blocks,
                          target, buffers, tiling);
        case DType::kFloat16:
            return Launch("fused_pool_float16", PYRERANK_KERNEL(fused_pool_float16), split.blocks,
                          target, buffers, tiling);
        case DType::kFloat32:
            return Launch("fused_pool_float32", PYRERANK_KERNEL(fused_pool_float32), split.blocks,
                          target, buffers, tiling);
    }
}

py::dict BuildInfo()
{
    py::dict info;
    info["target"] = kTarget;
    info["strict"] = kStrict;
    info["compiler"] = PYRERANK_COMPILER;
    info["flags"] = PYRERANK_FLAGS;
    info["soc"] = PYRERANK_SOC;
    info["cann"] = PYRERANK_CANN;  // its version
    info["flow"] = PYRERANK_FLOW;  // how it compiled the kernels: ascendc_library or asc
    info["kernels"] = py::make_tuple("last_token_gather", "score_head", "fused_pool");
    return info;
}

}  // namespace

PYBIND11_MODULE(PYRERANK_MODULE, m)
{
    using namespace py::literals;
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    const py::kw_only kw;

    m.def("last_token_gather", &LastTokenGather, "hidden"_a, "ids"_a, "out"_a, kw, "T"_a, "H"_a,
          "row_stride"_a, "B"_a, "dtype"_a, "ids_are_cu_seqlens"_a, "threads"_a, "stream"_a,
          Unlocked());
    m.def("score_head", &ScoreHead, "hidden"_a, "index"_a, "norm_weight"_a, "w"_a, "score"_a,
          "logit"_a, kw, "T"_a, "H"_a, "row_stride"_a, "B"_a, "dtype"_a, "norm_dtype"_a, "eps"_a,
          "bias"_a, "threads"_a, "stream"_a, Unlocked());
    m.def("fused_pool", &FusedPool, "hidden"_a, "cu_seqlens"_a, "norm_weight"_a, "out"_a, kw, "T"_a,
          "H"_a, "row_stride"_a, "B"_a, "D"_a, "dtype"_a, "norm_dtype"_a, "eps"_a, "mode"_a,
          "normalize"_a, "threads"_a, "stream"_a, Unlocked());
    m.def("counters", &ReadCounters);
    m.def("reset_counters", &ResetCounters);
    m.def("build_info", &BuildInfo);
#if !PYRERANK_NPU
    cpu::Bind(m);
#endif
#if ASCENDC_SIM_STRICT
    // A launch must not depend on the order of its blocks; tests turn it round.
    m.def("set_block_order", [](const std::string& order) {
        sim::SetBlockOrder(order == "reverse"    ? sim::BlockOrder::kReverse
                           : order == "shuffled" ? sim::BlockOrder::kShuffled
                                                 : sim::BlockOrder::kForward);
    });
    m.def("last_trace", [] {
        py::list trace;
        for (const sim::Instruction& i : sim::LastTrace()) {
            trace.append(py::dict("pipe"_a = i.pipe, "api"_a = i.api, "region"_a = i.region,
                                  "bytes"_a = i.bytes, "after"_a = i.after));
        }
        return trace;
    });
#endif
}

}  // namespace pyrerank
