// Start, devices, contexts, versions.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "runtime.h"

using namespace cannsim;

namespace {

thread_local int current_device = -1;

int NoDevice(const char* call)
{
    return Fail(ACL_ERROR_RT_DRV_INTERNAL_ERROR, "%s: this host has no NPU (CANN_SIM_DEVICES=0)",
                call);
}

const char* Version()
{
    return Text("CANN_SIM_VERSION", "8.5.0");
}

}  // namespace

namespace cannsim {

// A thread that set none is on device 0: torch_npu's acl_default.json asks for that default.
Device& CurrentDevice()
{
    return *TheState().devices.at(current_device < 0 ? 0 : static_cast<size_t>(current_device));
}

}  // namespace cannsim

extern "C" {

aclError aclInit(const char*)
{
    static bool done = false;
    if (done) return ACL_ERROR_REPEAT_INITIALIZE;
    done = true;
    return ACL_SUCCESS;
}

aclError aclFinalize()
{
    return ACL_SUCCESS;
}

const char* aclGetRecentErrMsg()
{
    return RecentError().c_str();
}

aclError aclrtGetDeviceCount(uint32_t* count)
{
    *count = static_cast<uint32_t>(TheState().devices.size());
    return *count ? ACL_SUCCESS : NoDevice("aclrtGetDeviceCount");
}

aclError aclrtSetDevice(int32_t device)
{
    const int count = static_cast<int>(TheState().devices.size());
    if (count == 0) return NoDevice("aclrtSetDevice");
    if (device < 0 || device >= count)
        return Fail(ACL_ERROR_RT_INVALID_DEVICEID, "device %d of %d", device, count);
    current_device = device;
    CurrentDevice().used = true;
    return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* device)
{
    if (current_device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
    *device = current_device;
    return ACL_SUCCESS;
}

aclError aclrtGetCurrentContext(aclrtContext* context)
{
    if (current_device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
    *context = &CurrentDevice();
    return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context)
{
    current_device = static_cast<Device*>(context)->id;
    return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active)
{
    if (flags) *flags = 0;
    *active = TheState().devices.at(static_cast<size_t>(device))->used;
    return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t)
{
    *can = 0;
    return ACL_SUCCESS;
}

const char* aclrtGetSocName()
{
    return Text("CANN_SIM_SOC", "Ascend910B3");
}

aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion* version)
{
    std::memset(version, 0, sizeof *version);
    std::snprintf(version->version, sizeof version->version, "%s",
                  name == ACL_PKG_NAME_DRIVER ? "25.5.0" : Version());
    return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char*, char* version)
{
    std::strcpy(version, Version());
    return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo what, int64_t* value)
{
    *value = what == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? 40
             : what == ACL_DEVICE_INFO_L2_SIZE       ? 192 << 20
                                                     : 20;
    return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total)
{
    Lock lock = Locked();
    const uint64_t taken = CurrentDevice().stats.bytes_now;
    *total = TheState().memory_bytes;
    *free = *total > taken ? *total - taken : 0;
    return ACL_SUCCESS;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt, int64_t* value)
{
    *value = 0;
    return ACL_SUCCESS;
}

}  // extern "C"
