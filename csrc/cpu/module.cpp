#include "module.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace pyrerank::cpu
{
namespace
{

template <typename T>
T* At(uint64_t address)
{
    return reinterpret_cast<T*>(address);
}

template <typename Function>
void ForDType(const std::string& dtype, Function function)
{
    if (dtype == "float32") return function(float{});
    if (dtype == "bfloat16") return function(Bfloat16{});
    throw std::invalid_argument("dtype must be float32 or bfloat16, got " + dtype);
}

void BindAddRmsNorm(uint64_t x, uint64_t y, uint64_t weight, uint64_t total, uint64_t normed,
                    int64_t rows, int64_t width, const std::string& dtype,
                    const std::string& sum_dtype, float eps, int threads)
{
    ForDType(dtype, [=](auto number) {
        using T = decltype(number);
        const auto run = [=](auto sum) {
            using S = decltype(sum);
            AddRmsNorm(At<S>(x), At<T>(y), At<T>(weight), At<S>(total), At<T>(normed), rows, width,
                       eps, threads);
        };
        sum_dtype == dtype ? run(T{}) : run(float{});
    });
}

void CheckHeadDim(int64_t head_dim)
{
    if (head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2)
        throw std::invalid_argument("head_dim must be even and at most " +
                                    std::to_string(kMaxHeadDim) + ", got " +
                                    std::to_string(head_dim));
}

void BindNormRotate(uint64_t x, uint64_t weight, uint64_t cos, uint64_t sin, int64_t rows,
                    int64_t row_stride, int64_t heads, int64_t head_dim, const std::string& dtype,
                    const std::string& angle_dtype, float eps, int threads)
{
    CheckHeadDim(head_dim);
    ForDType(dtype, [=](auto number) {
        using T = decltype(number);
        const auto run = [=](auto angle) {
            using A = decltype(angle);
            NormRotate(At<T>(x), row_stride, At<T>(weight), eps, At<A>(cos), At<A>(sin), rows,
                       heads, head_dim, threads);
        };
        angle_dtype == dtype ? run(T{}) : run(float{});
    });
}

void BindSwiGlu(uint64_t x, uint64_t out, int64_t rows, int64_t width, const std::string& dtype,
                int threads)
{
    ForDType(dtype, [=](auto number) {
        using T = decltype(number);
        SwiGlu(At<T>(x), At<T>(out), rows, width, threads);
    });
}

void BindGelu(uint64_t x, uint64_t out, int64_t rows, int64_t width, const std::string& dtype,
              int threads)
{
    ForDType(dtype, [=](auto number) {
        using T = decltype(number);
        Gelu(At<T>(x), At<T>(out), rows, width, threads);
    });
}

using Address = std::tuple<uint64_t, int64_t, int64_t>;  // of rows, their stride, heads

template <typename T>
Packed<T> Unpack(const Address& packed)
{
    const auto& [data, row_stride, heads] = packed;
    return {At<T>(data), row_stride, heads};
}

void BindAttention(const Address& query, const Address& key, const Address& value, uint64_t out,
                   const std::vector<int64_t>& lengths, const std::vector<int64_t>& kv_lengths,
                   uint64_t kv_rows, int64_t head_dim, bool causal, const std::string& dtype,
                   int threads)
{
    CheckHeadDim(head_dim);
    ForDType(dtype, [&](auto number) {
        using T = decltype(number);
        Attention(Unpack<T>(query), Unpack<T>(key), Unpack<T>(value), lengths, At<int32_t>(kv_rows),
                  kv_lengths, causal, At<T>(out), head_dim, threads);
    });
}

}  // namespace

void Bind(pybind11::module_& m)
{
    using namespace pybind11::literals;
    using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
    const pybind11::kw_only kw;

    m.attr("max_head_dim") = kMaxHeadDim;
    m.def("add_rms_norm", &BindAddRmsNorm, "x"_a, "y"_a, "weight"_a, "total"_a, "normed"_a, kw,
          "rows"_a, "width"_a, "dtype"_a, "sum_dtype"_a, "eps"_a, "threads"_a, Unlocked());
    m.def("norm_rotate", &BindNormRotate, "x"_a, "weight"_a, "cos"_a, "sin"_a, kw, "rows"_a,
          "row_stride"_a, "heads"_a, "head_dim"_a, "dtype"_a, "angle_dtype"_a, "eps"_a, "threads"_a,
          Unlocked());
    m.def("swiglu", &BindSwiGlu, "x"_a, "out"_a, kw, "rows"_a, "width"_a, "dtype"_a, "threads"_a,
          Unlocked());
    m.def("gelu", &BindGelu, "x"_a, "out"_a, kw, "rows"_a, "width"_a, "dtype"_a, "threads"_a,
          Unlocked());
    m.def("attention", &BindAttention, "query"_a, "key"_a, "value"_a, "out"_a, kw, "lengths"_a,
          "kv_lengths"_a, "kv_rows"_a, "head_dim"_a, "causal"_a, "dtype"_a, "threads"_a,
          Unlocked());
}

}  // namespace pyrerank::cpu
