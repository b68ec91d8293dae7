// The objects behind the opaque pointers of the aclnn interface.
#pragma once

#include <acl/acl_base.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct aclTensor {
    std::vector<int64_t> sizes, strides;
    int64_t offset = 0;  // in elements
    aclDataType dtype = ACL_DT_UNDEFINED;
    aclFormat format = ACL_FORMAT_ND;
    void* data = nullptr;
};
struct aclScalar {
    aclDataType dtype;
    unsigned char bytes[16];
};
struct aclIntArray {
    std::vector<int64_t> values;
};
struct aclFloatArray {
    std::vector<float> values;
};
struct aclBoolArray {
    std::vector<char> values;
};
struct aclTensorList {
    std::vector<const aclTensor*> values;
};
struct aclScalarList {
    std::vector<const aclScalar*> values;
};
// Phase one of an operator makes this, phase two launches and consumes it.
struct aclOpExecutor {
    std::string name;
    std::function<void()> run;
    std::vector<std::pair<const void*, size_t>> touched;  // device memory of its tensors
    uint64_t workspace = 0;                               // bytes promised by phase one
    void* scratch = nullptr;
};
