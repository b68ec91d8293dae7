// Matrix products, activations, normalisation, rotary positions.
#include "opapi.h"

using namespace cannsim;
using at::Tensor;

// 16-bit operands are widened, so that sums are taken in float and rounded once, like the device's.
static Tensor Wide(const Tensor& t)
{
    return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16 ? t.to(at::kFloat) : t;
}
static std::optional<Tensor> WideIfAny(const Tensor& t)
{
    return t.defined() ? std::optional(Wide(t)) : std::nullopt;
}
// Statistics the caller may not want.
static void Put(const Tensor& out, const Tensor& value)
{
    if (out.defined() && out.numel()) out.copy_(value.reshape(out.sizes()));
}

// ---- matrix products
ACLNN(aclnnMatmul, (T, self)(T, other)(T, out)(I8, cube_math_type))
{
    out.copy_(at::matmul(Wide(self), Wide(other)));
}
ACLNN(aclnnMm, (T, self)(T, other)(T, out)(I8, cube_math_type))
{
    out.copy_(at::mm(Wide(self), Wide(other)));
}
ACLNN(aclnnMv, (T, self)(T, vector)(T, out)(I8, cube_math_type))
{
    out.copy_(at::mv(Wide(self), Wide(vector)));
}
ACLNN(aclnnDot, (T, self)(T, other)(T, out))
{
    out.copy_(at::dot(Wide(self), Wide(other)));
}
ACLNN(aclnnBatchMatMul, (T, self)(T, other)(T, out)(I8, cube_math_type))
{
    out.copy_(at::bmm(Wide(self), Wide(other)));
}
ACLNN(aclnnAddmm, (T, self)(T, a)(T, b)(S, beta)(S, alpha)(T, out)(I8, cube_math_type))
{
    out.copy_(at::addmm(Wide(self), Wide(a), Wide(b), beta, alpha));
}
ACLNN(aclnnBaddbmm, (T, self)(T, a)(T, b)(S, beta)(S, alpha)(T, out)(I8, cube_math_type))
{
    out.copy_(at::baddbmm(Wide(self), Wide(a), Wide(b), beta, alpha));
}

// ---- activations
#define ACTIVATION(NAME, VALUE)      \
    ACLNN(NAME, (T, self)(T, out))   \
    {                                \
        out.copy_(VALUE);            \
    }
ACTIVATION(aclnnSigmoid, at::sigmoid(self))
ACTIVATION(aclnnSilu, at::silu(self))
ACTIVATION(aclnnTanh, at::tanh(self))
ACTIVATION(aclnnGelu, at::gelu(self, "tanh"))  // as documented, see README.md
ACLNN(aclnnGeluV2, (T, self)(I64, approximate)(T, out))
{
    out.copy_(at::gelu(self, approximate ? "tanh" : "none"));
}
ACLNN(aclnnSwiGlu, (T, self)(I64, dim)(T, out))
{
    const auto halves = Wide(self).chunk(2, dim);
    out.copy_(at::silu(halves[0]) * halves[1]);
}
ACLNN(aclnnSoftmax, (T, self)(I64, dim)(T, out))
{
    out.copy_(at::softmax(Wide(self), dim));
}

// ---- normalisation
static void RmsNorm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out,
                    const Tensor& rstd)
{
    std::vector<int64_t> dims;
    for (int64_t i = x.dim() - weight.dim(); i < x.dim(); ++i) dims.push_back(i);
    const Tensor wide = Wide(x), scale = at::rsqrt(wide.pow(2).mean(dims, true) + eps);
    out.copy_(wide * scale * Wide(weight));
    Put(rstd, scale);
}
ACLNN(aclnnRmsNorm, (T, x)(T, weight)(F64, eps)(T, out)(T, rstd))
{
    RmsNorm(x, weight, eps, out, rstd);
}
ACLNN(aclnnAddRmsNorm, (T, a)(T, b)(T, weight)(F64, eps)(T, out)(T, rstd)(T, sum))
{
    sum.copy_(Wide(a) + Wide(b));
    RmsNorm(sum, weight, eps, out, rstd);
}
ACLNN(aclnnLayerNorm, (T, x)(IA, shape)(T, weight)(T, bias)(F64, eps)(T, out)(T, mean)(T, rstd))
{
    const auto [y, mu, scale] =
        at::native_layer_norm(Wide(x), shape, WideIfAny(weight), WideIfAny(bias), eps);
    out.copy_(y);
    Put(mean, mu);
    Put(rstd, scale);
}

// ---- rotary positions
ACLNN(aclnnRotaryPositionEmbedding, (T, x)(T, cos)(T, sin)(I64, mode)(T, out))
{
    TORCH_CHECK(mode == 0 || mode == 1, "rotary mode ", mode, " is not simulated");
    const Tensor wide = Wide(x);
    Tensor turned;
    if (mode == 0) {  // halves
        const auto halves = wide.chunk(2, -1);
        turned = at::cat({-halves[1], halves[0]}, -1);
    } else {  // neighbours
        const auto pairs = wide.unflatten(-1, {-1, 2}).unbind(-1);
        turned = at::stack({-pairs[1], pairs[0]}, -1).flatten(-2);
    }
    out.copy_(wide * Wide(cos) + turned * Wide(sin));
}
