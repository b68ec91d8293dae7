// libopapi.so, the shared part: views of device memory, and phase two.
#include "opapi.h"

#include <cstdio>
#include <cstring>

namespace cannsim {
namespace {

using Touched = std::vector<std::pair<const void*, size_t>>;
thread_local Touched touched;

// Device memory may have been freed since phase one, above all before a replay.
int DeviceOfAll(const aclOpExecutor& executor)
{
    int device = -1;
    for (const auto& [p, bytes] : executor.touched) {
        const int here = cannsim_device_of(p, bytes);
        TORCH_CHECK(here >= 0, "device memory at ", p, " was freed");
        TORCH_CHECK(device < 0 || here == device, "tensors on device ", device, " and device ",
                    here);
        device = here;
    }
    return device;
}

int Run(void* item)
{
    auto* executor = static_cast<aclOpExecutor*>(item);
    try {
        // Straight to the kernels of the CPU, whatever modes the calling thread has on.
        c10::impl::ExcludeDispatchKeyGuard guard(
            c10::autograd_dispatch_keyset_with_ADInplaceOrView |
            c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                                 c10::DispatchKey::AutocastCPU,
                                 c10::DispatchKey::AutocastPrivateUse1,
                                 c10::DispatchKey::Functionalize}));
        DeviceOfAll(*executor);
        if (executor->scratch) std::memset(executor->scratch, 0xCD, executor->workspace);
        executor->run();
        return 0;
    } catch (const std::exception& error) {
        return Report(executor->name, error.what(), kExecution);
    }
}

}  // namespace

Touched TakeTouched()
{
    return std::exchange(touched, {});
}

at::ScalarType TypeOf(aclDataType type)
{
    switch (type) {
        case ACL_FLOAT: return at::kFloat;
        case ACL_FLOAT16: return at::kHalf;
        case ACL_BF16: return at::kBFloat16;
        case ACL_DOUBLE: return at::kDouble;
        case ACL_INT8: return at::kChar;
        case ACL_UINT8: return at::kByte;
        case ACL_INT16: return at::kShort;
        case ACL_INT32: return at::kInt;
        case ACL_INT64: return at::kLong;
        case ACL_BOOL: return at::kBool;
        default: TORCH_CHECK(false, "aclDataType ", static_cast<int>(type), " is not simulated");
    }
}

at::Tensor ViewOf(const aclTensor* tensor)
{
    if (!tensor) return {};
    switch (tensor->format) {
        case ACL_FORMAT_ND:
        case ACL_FORMAT_NCHW:  // torch_npu's names for plain tensors of three to five dimensions
        case ACL_FORMAT_NHWC:
        case ACL_FORMAT_NCDHW:
        case ACL_FORMAT_NCL: break;
        default:
            TORCH_CHECK(false, "private memory format ", static_cast<int>(tensor->format),
                        " is not simulated");
    }
    const at::ScalarType type = TypeOf(tensor->dtype);
    const auto options = at::TensorOptions().dtype(type).device(at::kCPU);
    int64_t count = 1, last = 0;
    for (size_t i = 0; i < tensor->sizes.size(); ++i) {
        count *= tensor->sizes[i];
        last += (tensor->sizes[i] - 1) * tensor->strides[i];
    }
    if (count == 0) return at::empty(tensor->sizes, options);
    const int64_t item = static_cast<int64_t>(c10::elementSize(type));
    char* p = static_cast<char*>(tensor->data) + tensor->offset * item;
    const size_t bytes = static_cast<size_t>((last + 1) * item);
    TORCH_CHECK(cannsim_device_of(p, bytes) >= 0, "a tensor of shape ",
                at::IntArrayRef(tensor->sizes), " at ", static_cast<void*>(p),
                " is not in device memory");
    touched.emplace_back(p, bytes);
    return at::from_blob(p, tensor->sizes, tensor->strides, options);
}

at::Scalar ScalarOf(const aclScalar* scalar)
{
    const auto as = [&](auto value) {
        std::memcpy(&value, scalar->bytes, sizeof value);
        return value;
    };
    switch (scalar->dtype) {
        case ACL_BOOL: return as(uint8_t{}) != 0;
        case ACL_FLOAT: return as(float{});
        case ACL_DOUBLE: return as(double{});
        case ACL_INT8: return as(int8_t{});
        case ACL_UINT8: return as(uint8_t{});
        case ACL_INT16: return as(int16_t{});
        case ACL_INT32: return as(int32_t{});
        case ACL_INT64: return as(int64_t{});
        case ACL_FLOAT16: return static_cast<float>(as(at::Half{}));
        case ACL_BF16: return static_cast<float>(as(at::BFloat16{}));
        default:
            TORCH_CHECK(false, "a scalar of aclDataType ", static_cast<int>(scalar->dtype),
                        " is not simulated");
    }
}

int Report(const std::string& name, std::string what, int code)
{
    what = name + ": " + what.substr(0, what.find("\nException raised from"));
    std::fprintf(stderr, "[cannsim] error %d: %s\n", code, what.c_str());
    cannsim_set_error(what.c_str());
    return code;
}

int Execute(aclOpExecutor* executor, void* workspace, uint64_t bytes, void* stream)
{
    const std::string name = executor->name;
    try {
        if (executor->workspace) {
            TORCH_CHECK(bytes >= executor->workspace, "a workspace of ", bytes, " bytes, needs ",
                        executor->workspace);
            executor->touched.emplace_back(workspace, executor->workspace);
            executor->scratch = workspace;
        }
        const int memory = DeviceOfAll(*executor), device = cannsim_stream_device(stream);
        TORCH_CHECK(memory < 0 || memory == device, "tensors on device ", memory,
                    ", the stream belongs to device ", device);
    } catch (const std::exception& error) {
        delete executor;
        return Report(name, error.what(), kInvalidArgument);
    }
    return cannsim_launch(stream, name.c_str(), Run, executor,
                          [](void* item) { delete static_cast<aclOpExecutor*>(item); });
}

}  // namespace cannsim
