// Functions torch_npu links or calls whose arguments do not matter here: no acl header is included,
// and the prototypes are not theirs. What returns something through a pointer stands elsewhere.
#include <cstdint>

#include "cann_sim.h"

#define ACCEPTED(name)         \
    extern "C" uint64_t name() \
    {                          \
        return 0;              \
    }
#define REFUSED(name)                                  \
    extern "C" int name()                              \
    {                                                  \
        cannsim_set_error(#name " is not simulated");  \
        return 207000; /* the feature is unsupported */ \
    }

ACCEPTED(aclrtResetDevice)
ACCEPTED(aclrtGetLastError)
ACCEPTED(aclrtPeekAtLastError)
ACCEPTED(aclrtSetDeviceSatMode)
ACCEPTED(aclrtSetOpExecuteTimeOut)
ACCEPTED(aclrtSetOpWaitTimeout)
ACCEPTED(aclrtCtxSetSysParamOpt)
ACCEPTED(aclrtSetSysParamOpt)
ACCEPTED(aclrtProcessReport)
ACCEPTED(aclrtSubscribeReport)
ACCEPTED(aclrtUnSubscribeReport)
ACCEPTED(aclrtSetStreamFailureMode)
ACCEPTED(aclrtSetStreamOverflowSwitch)
ACCEPTED(aclrtSetStreamAttribute)
ACCEPTED(aclmdlInitDump)
ACCEPTED(aclmdlSetDump)
ACCEPTED(aclmdlFinalizeDump)
ACCEPTED(aclSetCompileopt)
ACCEPTED(aclSetTensorDescName)
ACCEPTED(aclSetTensorFormat)
ACCEPTED(aclSetTensorShape)
ACCEPTED(aclSetTensorPlaceMent)
ACCEPTED(aclopSetAttrBool)
ACCEPTED(aclopSetAttrInt)
ACCEPTED(aclopSetAttrFloat)
ACCEPTED(aclopSetAttrString)
ACCEPTED(aclopSetAttrDataType)
ACCEPTED(aclopSetAttrListBool)
ACCEPTED(aclopSetAttrListInt)
ACCEPTED(aclopSetAttrListFloat)
ACCEPTED(aclopSetAttrListListInt)
ACCEPTED(MsprofGetHashId)
ACCEPTED(MsprofRegisterCallback)
ACCEPTED(MsprofReportAdditionalInfo)
ACCEPTED(MsprofReportApi)
ACCEPTED(MsprofReportCompactInfo)
ACCEPTED(MsprofSysCycleTime)

REFUSED(aclrtDeviceEnablePeerAccess)
REFUSED(aclrtDeviceGetBareTgid)
REFUSED(aclrtReserveMemAddress)
REFUSED(aclrtReleaseMemAddress)
REFUSED(aclrtMallocPhysical)
REFUSED(aclrtFreePhysical)
REFUSED(aclrtMapMem)
REFUSED(aclrtUnmapMem)
REFUSED(aclrtMemExportToShareableHandle)
REFUSED(aclrtMemImportFromShareableHandle)
REFUSED(aclrtMemSetPidToShareableHandle)
REFUSED(aclrtBinaryLoadFromData)
REFUSED(aclrtBinaryGetFunction)
REFUSED(aclrtGetFunctionAddr)
REFUSED(rtDevBinaryRegister)
REFUSED(rtFunctionRegister)
REFUSED(rtKernelLaunch)
REFUSED(rtGetC2cCtrlAddr)
