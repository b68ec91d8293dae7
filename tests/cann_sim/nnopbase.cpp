// libnnopbase.so: creation and destruction of aclnn objects.
#include "nnopbase.h"

#include <cstring>

namespace {

size_t ScalarSize(aclDataType type)
{
    switch (type) {
        case ACL_BOOL:
        case ACL_INT8:
        case ACL_UINT8: return 1;
        case ACL_FLOAT16:
        case ACL_BF16:
        case ACL_INT16:
        case ACL_UINT16: return 2;
        case ACL_DOUBLE:
        case ACL_INT64:
        case ACL_UINT64:
        case ACL_COMPLEX64: return 8;
        case ACL_COMPLEX128: return 16;
        default: return 4;
    }
}

}  // namespace

extern "C" {

aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, aclDataType dtype,
                           const int64_t* strides, int64_t offset, aclFormat format, const int64_t*,
                           uint64_t, void* data)
{
    auto* tensor = new aclTensor;
    tensor->sizes.assign(sizes, sizes + dims);
    tensor->strides.assign(strides, strides + dims);
    tensor->offset = offset;
    tensor->dtype = dtype;
    tensor->format = format;
    tensor->data = data;
    return tensor;
}

aclScalar* aclCreateScalar(void* value, aclDataType dtype)
{
    auto* scalar = new aclScalar{};
    scalar->dtype = dtype;
    std::memcpy(scalar->bytes, value, ScalarSize(dtype));
    return scalar;
}

#define ACLNN_ARRAY(kind, element)                                    \
    acl##kind* aclCreate##kind(const element* values, uint64_t count) \
    {                                                                 \
        return new acl##kind{{values, values + count}};               \
    }                                                                 \
    int aclDestroy##kind(const acl##kind* array)                      \
    {                                                                 \
        delete array;                                                 \
        return 0;                                                     \
    }
ACLNN_ARRAY(IntArray, int64_t)
ACLNN_ARRAY(FloatArray, float)
ACLNN_ARRAY(BoolArray, bool)

// A list owns its members.
#define ACLNN_LIST(kind)                                                                   \
    acl##kind##List* aclCreate##kind##List(const acl##kind* const* values, uint64_t count) \
    {                                                                                      \
        return new acl##kind##List{{values, values + count}};                              \
    }                                                                                      \
    int aclDestroy##kind(const acl##kind* value)                                           \
    {                                                                                      \
        delete value;                                                                      \
        return 0;                                                                          \
    }                                                                                      \
    int aclDestroy##kind##List(const acl##kind##List* list)                                \
    {                                                                                      \
        if (list)                                                                          \
            for (const auto* value : list->values) delete value;                           \
        delete list;                                                                       \
        return 0;                                                                          \
    }
ACLNN_LIST(Tensor)
ACLNN_LIST(Scalar)

int aclDestroyAclOpExecutor(aclOpExecutor* executor)
{
    delete executor;
    return 0;
}

// The caller frees the sizes with delete[].
int aclGetViewShape(const aclTensor* tensor, int64_t** sizes, uint64_t* dims)
{
    *dims = tensor->sizes.size();
    *sizes = new int64_t[*dims + 1];
    std::memcpy(*sizes, tensor->sizes.data(), *dims * sizeof(int64_t));
    return 0;
}

int aclGetDataType(const aclTensor* tensor, aclDataType* dtype)
{
    *dtype = tensor->dtype;
    return 0;
}

int aclGetFormat(const aclTensor* tensor, aclFormat* format)
{
    *format = tensor->format;
    return 0;
}

}  // extern "C"
