// Arithmetic, comparison, copies, constants, reductions.
#include <algorithm>

#include "opapi.h"

using namespace cannsim;
using at::Tensor;

// One operator in a line: the result is converted to the dtype of `out`, or `self` changes.
#define OUT(NAME, LIST, VALUE) \
    ACLNN(NAME, LIST)          \
    {                          \
        out.copy_(VALUE);      \
    }
#define INPLACE(NAME, LIST, STATEMENT) \
    ACLNN(NAME, LIST)                  \
    {                                  \
        STATEMENT;                     \
    }

// ---- arithmetic
OUT(aclnnAdd, (T, self)(T, other)(S, alpha)(T, out), at::add(self, other, alpha))
OUT(aclnnAdds, (T, self)(S, other)(S, alpha)(T, out), at::add(self, other, alpha))
OUT(aclnnSub, (T, self)(T, other)(S, alpha)(T, out), at::sub(self, other, alpha))
OUT(aclnnSubs, (T, self)(S, other)(S, alpha)(T, out), at::sub(self, other, alpha))
OUT(aclnnRsubs, (T, self)(S, other)(S, alpha)(T, out), at::rsub(self, other, alpha))
OUT(aclnnMul, (T, self)(T, other)(T, out), at::mul(self, other))
OUT(aclnnMuls, (T, self)(S, other)(T, out), at::mul(self, other))
OUT(aclnnDiv, (T, self)(T, other)(T, out), at::div(self, other))
OUT(aclnnDivs, (T, self)(S, other)(T, out), at::div(self, other))
OUT(aclnnPowTensorScalar, (T, self)(S, exponent)(T, out), at::pow(self, exponent))
OUT(aclnnPowScalarTensor, (S, self)(T, exponent)(T, out), at::pow(self, exponent))
OUT(aclnnPowTensorTensor, (T, self)(T, exponent)(T, out), at::pow(self, exponent))
OUT(aclnnMaximum, (T, self)(T, other)(T, out), at::maximum(self, other))
OUT(aclnnMinimum, (T, self)(T, other)(T, out), at::minimum(self, other))
OUT(aclnnClamp, (T, self)(OS, low)(OS, high)(T, out), at::clamp(self, low, high))
OUT(aclnnClampMin, (T, self)(S, low)(T, out), at::clamp_min(self, low))
OUT(aclnnClampMax, (T, self)(S, high)(T, out), at::clamp_max(self, high))
INPLACE(aclnnInplaceAdd, (T, self)(T, other)(S, alpha), self.add_(other, alpha))
INPLACE(aclnnInplaceAdds, (T, self)(S, other)(S, alpha), self.add_(other, alpha))
INPLACE(aclnnInplaceSub, (T, self)(T, other)(S, alpha), self.sub_(other, alpha))
INPLACE(aclnnInplaceSubs, (T, self)(S, other)(S, alpha), self.sub_(other, alpha))
INPLACE(aclnnInplaceMul, (T, self)(T, other), self.mul_(other))
INPLACE(aclnnInplaceMuls, (T, self)(S, other), self.mul_(other))
INPLACE(aclnnInplaceDiv, (T, self)(T, other), self.div_(other))
INPLACE(aclnnInplaceDivs, (T, self)(S, other), self.div_(other))
INPLACE(aclnnInplaceClampMin, (T, self)(S, low), self.clamp_min_(low))

// ---- one tensor to one tensor
#define UNARY(NAME, FUNCTION) OUT(NAME, (T, self)(T, out), FUNCTION(self))
UNARY(aclnnNeg, at::neg)
UNARY(aclnnAbs, at::abs)
UNARY(aclnnExp, at::exp)
UNARY(aclnnLog, at::log)
UNARY(aclnnSqrt, at::sqrt)
UNARY(aclnnRsqrt, at::rsqrt)
UNARY(aclnnReciprocal, at::reciprocal)
UNARY(aclnnCeil, at::ceil)
UNARY(aclnnSin, at::sin)
UNARY(aclnnCos, at::cos)
UNARY(aclnnIsFinite, at::isfinite)
UNARY(aclnnLogicalNot, at::logical_not)
UNARY(aclnnBitwiseNot, at::bitwise_not)

// ---- comparison and selection
#define COMPARE(NAME, FUNCTION)                                               \
    OUT(NAME##Tensor, (T, self)(T, other)(T, out), FUNCTION(self, other))     \
    OUT(NAME##Scalar, (T, self)(S, other)(T, out), FUNCTION(self, other))
COMPARE(aclnnEq, at::eq)
COMPARE(aclnnNe, at::ne)
COMPARE(aclnnGt, at::gt)
COMPARE(aclnnGe, at::ge)
COMPARE(aclnnLt, at::lt)
COMPARE(aclnnLe, at::le)
OUT(aclnnLogicalAnd, (T, self)(T, other)(T, out), at::logical_and(self, other))
OUT(aclnnLogicalOr, (T, self)(T, other)(T, out), at::logical_or(self, other))
// `x & y` leaves the aclnn route unless the whole family is there.
#define BITWISE(NAME, FUNCTION)                                                              \
    OUT(aclnn##NAME##Tensor, (T, self)(T, other)(T, out), FUNCTION(self, other))             \
    OUT(aclnn##NAME##Scalar, (T, self)(S, other)(T, out), FUNCTION(self, other))             \
    INPLACE(aclnnInplace##NAME##Tensor, (T, self)(T, other), self.copy_(FUNCTION(self, other))) \
    INPLACE(aclnnInplace##NAME##Scalar, (T, self)(S, other), self.copy_(FUNCTION(self, other)))
BITWISE(BitwiseAnd, at::bitwise_and)
BITWISE(BitwiseOr, at::bitwise_or)
OUT(aclnnSWhere, (T, condition)(T, self)(T, other)(T, out), at::where(condition, self, other))
INPLACE(aclnnInplaceMaskedFillScalar, (T, self)(T, mask)(S, value), self.masked_fill_(mask, value))
INPLACE(aclnnInplaceMaskedFillTensor, (T, self)(T, mask)(T, value), self.masked_fill_(mask, value))

// ---- copies and constants
INPLACE(aclnnInplaceCopy, (T, self)(T, source), self.copy_(source))
OUT(aclnnCast, (T, self)(DT, dtype)(T, out), self.to(dtype))
INPLACE(aclnnInplaceFillScalar, (T, self)(S, value), self.fill_(value))
INPLACE(aclnnInplaceFillTensor, (T, self)(T, value), self.fill_(value))
INPLACE(aclnnInplaceZero, (T, self), self.zero_())
INPLACE(aclnnInplaceOne, (T, self), self.fill_(1))
OUT(aclnnArange, (S, start)(S, end)(S, step)(T, out),
    at::arange(start, end, step, out.options()).slice(0, 0, out.numel()))
OUT(aclnnTriu, (T, self)(I64, diagonal)(T, out), at::triu(self, diagonal))
OUT(aclnnTril, (T, self)(I64, diagonal)(T, out), at::tril(self, diagonal))

// ---- reductions
OUT(aclnnReduceSum, (T, self)(IA, dims)(B, keep)(DT, dtype)(T, out),
    at::sum(self, dims, keep, dtype))
OUT(aclnnMean, (T, self)(IA, dims)(B, keep)(DT, dtype)(T, out), at::mean(self, dims, keep, dtype))
OUT(aclnnMeanV2, (T, self)(IA, dims)(B, keep)(B, noop)(T, out),
    at::mean(self, dims, keep))
OUT(aclnnCumsum, (T, self)(I64, dim)(DT, dtype)(T, out), at::cumsum(self, dim, dtype))
ACLNN(aclnnCumsumV2, (T, self)(I64, dim)(B, exclusive)(B, reverse)(T, out))
{
    TORCH_CHECK(!exclusive && !reverse, "an exclusive or reverse cumsum is not simulated");
    out.copy_(at::cumsum(self, dim));
}
OUT(aclnnAmax, (T, self)(IA, dims)(B, keep)(T, out), at::amax(self, dims, keep))
OUT(aclnnAmin, (T, self)(IA, dims)(B, keep)(T, out), at::amin(self, dims, keep))
OUT(aclnnMax, (T, self)(T, out), at::max(self))
OUT(aclnnMin, (T, self)(T, out), at::min(self))
#define WITH_INDEX(NAME, FUNCTION)                                                \
    ACLNN(NAME, (T, self)(I64, dim)(B, keep)(T, out)(T, indices))                 \
    {                                                                             \
        const auto [values, where] = FUNCTION(self, dim, keep);                   \
        out.copy_(values);                                                        \
        indices.copy_(where);                                                     \
    }
WITH_INDEX(aclnnMaxDim, at::max)
WITH_INDEX(aclnnMinDim, at::min)
#define OVER_DIMS(NAME, METHOD)                                              \
    ACLNN(NAME, (T, self)(IA, dims)(B, keep)(T, out))                        \
    {                                                                        \
        Tensor result = self.to(at::kBool);                                  \
        std::sort(dims.rbegin(), dims.rend());                               \
        for (int64_t dim : dims) result = result.METHOD(dim, keep);          \
        out.copy_(dims.empty() ? result.METHOD() : result);                  \
    }
OVER_DIMS(aclnnAll, all)
OVER_DIMS(aclnnAny, any)
OUT(aclnnNorm, (T, self)(OS, p)(IA, dims)(B, keep)(T, out), at::norm(self, p, dims, keep))
OUT(aclnnLinalgVectorNorm, (T, self)(S, order)(IA, dims)(B, keep)(DT, dtype)(T, out),
    at::linalg_vector_norm(self.to(dtype), order, at::OptionalIntArrayRef(dims), keep))
