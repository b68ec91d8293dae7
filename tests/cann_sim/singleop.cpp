// The path of single operators that came before aclnn. Nothing runs on it here: an operator that
// comes this way lacks its aclnn symbol, and the refusal says which.
#include <acl/acl_op_compiler.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "runtime.h"

using namespace cannsim;

struct aclTensorDesc {
    aclDataType type;
    aclFormat format;
    std::vector<int64_t> sizes;
};
struct aclDataBuffer {};
struct aclopAttr {};

namespace {

// Symbols torch_npu has looked for in vain since the last refusal, and those behind each refusal:
// it looks once and remembers, so a second call of an operator logs nothing.
auto& missing = *new std::set<std::string>;  // never freed: torch_npu logs to the end
auto& missing_of = *new std::map<std::string, std::string>;

}  // namespace

extern "C" {

// torch_npu's log, on at ASCEND_GLOBAL_LOG_LEVEL=2 or less: it tells which symbols it looked for.
void aclAppLog(aclLogLevel level, const char*, const char*, uint32_t, const char* format, ...)
{
    static const bool show = Switch("CANN_SIM_LOG");
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char* symbol = std::strstr(text, "dlsym aclnn");
    if (symbol && std::strstr(text, "libopapi.so")) {
        std::string name(symbol + std::strlen("dlsym "));
        name.resize(name.find(' '));
        const size_t phase = name.find("GetWorkspaceSize");
        if (phase != std::string::npos) name.resize(phase);
        Lock lock = Locked();
        missing.insert(name);
    }
    if (show) std::fprintf(stderr, "[torch_npu %d] %s\n", static_cast<int>(level), text);
}

aclError aclopCompileAndExecute(const char* name, int, const aclTensorDesc* const[],
                                const aclDataBuffer* const[], int, const aclTensorDesc* const[],
                                aclDataBuffer* const[], const aclopAttr*, aclopEngineType,
                                aclopCompileType, const char*, aclrtStream stream)
{
    Lock lock = Locked();
    std::string& names = missing_of[name];
    for (const std::string& symbol : missing) names += " " + symbol;
    missing.clear();
    if (names.empty()) names = " (unknown: set ASCEND_GLOBAL_LOG_LEVEL=2)";
    Fail(ACL_ERROR_OP_NOT_FOUND, "operator %s is not simulated; torch_npu looked for%s", name,
         names.c_str());
    Stop(*StreamOf(stream).device, ACL_ERROR_OP_NOT_FOUND);
    return ACL_ERROR_OP_NOT_FOUND;
}

aclTensorDesc* aclCreateTensorDesc(aclDataType type, int dims, const int64_t* sizes,
                                   aclFormat format)
{
    return new aclTensorDesc{type, format, std::vector<int64_t>(sizes, sizes + dims)};
}

void aclDestroyTensorDesc(const aclTensorDesc* desc)
{
    delete desc;
}

aclDataType aclGetTensorDescType(const aclTensorDesc* desc)
{
    return desc->type;
}

aclFormat aclGetTensorDescFormat(const aclTensorDesc* desc)
{
    return desc->format;
}

size_t aclGetTensorDescNumDims(const aclTensorDesc* desc)
{
    return desc->sizes.size();
}

aclError aclGetTensorDescDimV2(const aclTensorDesc* desc, size_t i, int64_t* size)
{
    *size = desc->sizes.at(i);
    return ACL_SUCCESS;
}

aclDataBuffer* aclCreateDataBuffer(void*, size_t)
{
    return new aclDataBuffer;
}

aclError aclDestroyDataBuffer(const aclDataBuffer* buffer)
{
    delete buffer;
    return ACL_SUCCESS;
}

aclopAttr* aclopCreateAttr()
{
    return new aclopAttr;
}

void aclopDestroyAttr(const aclopAttr* attr)
{
    delete attr;
}

size_t aclGetCompileoptSize(aclCompileOpt)
{
    return 1;
}

aclError aclGetCompileopt(aclCompileOpt, char* value, size_t size)
{
    if (size) *value = 0;
    return ACL_SUCCESS;
}

}  // extern "C"
