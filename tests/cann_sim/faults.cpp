// Injected faults: what fails, when, and with which code.
#include <cstdlib>

#include "runtime.h"

namespace cannsim {
namespace {

struct Fault {
    std::string what;
    int after, times, code;
};

std::vector<Fault>& Faults()
{
    static auto* faults = new std::vector<Fault>;
    return *faults;
}

// The failure CANN documents for what is made to fail.
int DefaultCode(const std::string& what)
{
    static const std::map<std::string, int> codes{
        {"malloc", ACL_ERROR_RT_MEMORY_ALLOCATION},
        {"create_stream", ACL_ERROR_RT_NO_STREAM_RESOURCE},
        {"capture_begin", ACL_ERROR_RT_NO_STREAM_RESOURCE},
        {"capture_end", ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED},
        {"capture_stuck", ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED},  // and it goes on
        {"replay", ACL_ERROR_RT_MODEL_EXECUTE},
        {"update", ACL_ERROR_RT_MODEL_UPDATE_FAILED},
        {"memcpy_h2d", ACL_ERROR_RT_COPY_DATA},
        {"memcpy_d2h", ACL_ERROR_RT_COPY_DATA},
        {"memcpy_d2d", ACL_ERROR_RT_COPY_DATA},
    };
    const auto found = codes.find(what);
    if (found != codes.end()) return found->second;
    if (what.rfind("launch:", 0) == 0) return ACL_ERROR_RT_INTERNAL_ERROR;
    // Our own kernels are vector kernels, operators count as the cube's.
    return what.rfind("aclnn", 0) == 0 ? ACL_ERROR_RT_AICORE_EXCEPTION
                                       : ACL_ERROR_RT_VECTOR_CORE_EXCEPTION;
}

}  // namespace

void Inject(const std::string& what, int after, int times, int code, Lock&)
{
    Faults().push_back({what, after, times, code ? code : DefaultCode(what)});
}

// CANN_SIM_FAULT="what:after:times:code,...": the numbers may be left out from the right, and what
// may itself hold a colon ("launch:aclnnAdd").
void InjectFromEnvironment(Lock& lock)
{
    std::string all = Text("CANN_SIM_FAULT", "");
    while (!all.empty()) {
        const size_t comma = all.find(',');
        std::string one = all.substr(0, comma);
        all = comma == std::string::npos ? "" : all.substr(comma + 1);
        std::vector<int> numbers;
        for (size_t colon = one.rfind(':'); colon != std::string::npos && numbers.size() < 3;
             colon = one.rfind(':')) {
            const std::string last = one.substr(colon + 1);
            if (last.empty() || last.find_first_not_of("0123456789") != std::string::npos) break;
            numbers.insert(numbers.begin(), std::atoi(last.c_str()));
            one.resize(colon);
        }
        numbers.resize(3, -1);
        Inject(one, std::max(numbers[0], 0), numbers[1] < 0 ? 1 : numbers[1],
               std::max(numbers[2], 0), lock);
    }
}

void ForgetFaults(Lock&)
{
    Faults().clear();
}

int FailByFault(const std::string& what, Lock&)
{
    int code = 0;
    auto& faults = Faults();
    for (auto fault = faults.begin(); fault != faults.end();) {
        const bool due = fault->what == what && fault->after-- <= 0;
        if (due) code = fault->code;
        fault = due && --fault->times <= 0 ? faults.erase(fault) : fault + 1;
    }
    return code ? Fail(code, "%s: an injected fault", what.c_str()) : 0;
}

}  // namespace cannsim
