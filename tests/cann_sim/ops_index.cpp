// Shapes, gathers and scatters.
#include "opapi.h"

using namespace cannsim;
using at::Tensor;

ACLNN(aclnnConstantPadNd, (T, self)(IA, pad)(S, value)(T, out))
{
    out.copy_(at::constant_pad_nd(self, pad, value));
}
ACLNN(aclnnCat, (TL, tensors)(I64, dim)(T, out))
{
    out.copy_(at::cat(tensors, dim));
}
ACLNN(aclnnStack, (TL, tensors)(I64, dim)(T, out))
{
    out.copy_(at::stack(tensors, dim));
}
ACLNN(aclnnSplitTensor, (T, self)(I64, size)(I64, dim)(TL, out))
{
    const auto parts = self.split(size, dim);
    for (size_t i = 0; i < parts.size(); ++i) out[i].copy_(parts[i]);
}
ACLNN(aclnnRepeat, (T, self)(IA, repeats)(T, out))
{
    out.copy_(self.repeat(repeats));
}
ACLNN(aclnnRepeatInterleave, (T, self)(T, repeats)(I64, size)(T, out))
{
    out.copy_(at::repeat_interleave(self.flatten(), repeats, 0, size));
}
ACLNN(aclnnRepeatInterleaveWithDim, (T, self)(T, repeats)(I64, dim)(I64, size)(T, out))
{
    out.copy_(at::repeat_interleave(self, repeats, dim, size));
}
ACLNN(aclnnRepeatInterleaveInt, (T, self)(I64, repeats)(I64, size)(T, out))
{
    out.copy_(at::repeat_interleave(self.flatten(), repeats, 0, size));
}
ACLNN(aclnnRepeatInterleaveIntWithDim, (T, self)(I64, repeats)(I64, dim)(I64, size)(T, out))
{
    out.copy_(at::repeat_interleave(self, repeats, dim, size));
}
ACLNN(aclnnRepeatInterleaveTensor, (T, repeats)(I64, size)(T, out))
{
    out.copy_(at::repeat_interleave(repeats, size));
}

// ---- gather
ACLNN(aclnnEmbedding, (T, weight)(T, indices)(T, out))
{
    out.copy_(at::embedding(weight, indices));
}
ACLNN(aclnnIndexSelect, (T, self)(I64, dim)(T, index)(T, out))
{
    out.copy_(at::index_select(self, dim, index));
}
ACLNN(aclnnGather, (T, self)(I64, dim)(T, index)(T, out))
{
    out.copy_(at::gather(self, dim, index.to(at::kLong)));
}
// Also takes a dimension without an index, which arrives as a tensor of no elements.
static c10::List<std::optional<Tensor>> IndexList(const std::vector<Tensor>& tensors)
{
    c10::List<std::optional<Tensor>> list;
    for (const Tensor& t : tensors) {
        const bool absent = !t.defined() || (t.numel() == 0 && t.dim() <= 1);
        list.push_back(absent ? std::nullopt : std::optional(t));
    }
    return list;
}
ACLNN(aclnnIndex, (T, self)(TL, indices)(T, out))
{
    out.copy_(at::index(self, IndexList(indices)));
}
// Their shapes depend on data: torch_npu waits for them, which no capture allows.
ACLNN(aclnnMaskedSelect, (T, self)(T, mask)(DYN, out))
{
    out.Set(at::masked_select(self, mask));
}
ACLNN(aclnnNonzero, (T, self)(DYN, out))
{
    out.Set(at::nonzero(self));
}
ACLNN(aclnnNonzeroV2, (T, self)(DYN, out))
{
    out.Set(at::nonzero(self).t());
}
ACLNN(aclnnSearchSorted, (T, sorted)(T, self)(B, int32)(B, right)(T, sorter)(T, out))
{
    out.copy_(at::searchsorted(sorted, self, int32, right, std::nullopt,
                               sorter.defined() ? std::optional(sorter) : std::nullopt));
}

// ---- scatter
ACLNN(aclnnIndexPutImpl, (T, self)(TL, indices)(T, values)(B, accumulate)(B, unsafe))
{
    self.index_put_(IndexList(indices), values, accumulate);
}
ACLNN(aclnnIndexAdd, (T, self)(I64, dim)(T, index)(T, source)(S, alpha)(T, out))
{
    out.copy_(at::index_add(self, dim, index, source, alpha));
}
// With equal indices, the device does not say which source row stays.
static void CheckIndexCopy(const Tensor& self, const Tensor& index, const Tensor& source)
{
    TORCH_CHECK(index.scalar_type() == at::kLong || index.scalar_type() == at::kInt,
                "index dtype ", index.scalar_type());
    TORCH_CHECK(source.scalar_type() == self.scalar_type(), "self is ", self.scalar_type(),
                ", source is ", source.scalar_type());
}
ACLNN_CHECKED(aclnnIndexCopy, 0, (T, self)(I64, dim)(T, index)(T, source)(T, out))
{
    out.copy_(at::index_copy(self, dim, index.to(at::kLong), source));
}
void aclnnIndexCopyOp::Check() const
{
    CheckIndexCopy(self, index, source);
}
ACLNN_CHECKED(aclnnInplaceIndexCopy, 0, (T, self)(I64, dim)(T, index)(T, source))
{
    self.index_copy_(dim, index.to(at::kLong), source);
}
void aclnnInplaceIndexCopyOp::Check() const
{
    CheckIndexCopy(self, index, source);
}
static Tensor Scatter(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
                      int64_t reduce)
{
    TORCH_CHECK(reduce == 0, "scatter with a reduction is not simulated");
    return at::scatter(self, dim, index.to(at::kLong), source);
}
ACLNN(aclnnScatter, (T, self)(I64, dim)(T, index)(T, source)(I64, reduce)(T, out))
{
    out.copy_(Scatter(self, dim, index, source, reduce));
}
ACLNN(aclnnInplaceScatter, (T, self)(I64, dim)(T, index)(T, source)(I64, reduce))
{
    self.copy_(Scatter(self, dim, index, source, reduce));
}
ACLNN(aclnnInplaceScatterValue, (T, self)(I64, dim)(T, index)(S, value)(I64, reduce))
{
    self.copy_(Scatter(self, dim, index, at::full(index.sizes(), value, self.options()), reduce));
}
