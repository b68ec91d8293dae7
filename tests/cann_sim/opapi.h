// How an aclnn operator is written here:
//
//   ACLNN(aclnnAdd, (T, self)(T, other)(S, alpha)(T, out))
//   {
//       out.copy_(at::add(self, other, alpha));
//   }
//
// The list repeats the prototype of aclnnAddGetWorkspaceSize without its last two arguments. The
// macro exports both phases; the body runs when the stream reaches the operator, and again at every
// replay. The kinds of arguments (T, S ...) are below.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <vector>

#include "cann_sim.h"
#include "nnopbase.h"

namespace cannsim {

// A view of device memory; undefined for null. Throws for host memory and for private formats.
at::Tensor ViewOf(const aclTensor* tensor);
at::Scalar ScalarOf(const aclScalar* scalar);
at::ScalarType TypeOf(aclDataType type);
// What ViewOf has seen in this thread since the last call.
std::vector<std::pair<const void*, size_t>> TakeTouched();

constexpr int kInvalidArgument = 161002;  // ACLNN_ERR_PARAM_INVALID
constexpr int kExecution = 507015;        // ACL_ERROR_RT_AICORE_EXCEPTION
// Sets the error text to "name: what" and returns the code.
int Report(const std::string& name, std::string what, int code);
// Phase two of every operator.
int Execute(aclOpExecutor* executor, void* workspace, uint64_t bytes, void* stream);

// Kinds of arguments: Raw is what C passes, Own what the body sees.
struct T {  // tensor
    using Raw = const aclTensor*;
    using Own = at::Tensor;
    static Own Take(Raw raw) { return ViewOf(raw); }
};
// An output whose shape the operator finds: such operators run synchronously, and the caller asks
// the tensor object for its shape afterwards.
struct DYN {
    using Raw = aclTensor*;
    struct Own {
        aclTensor* object;
        at::Tensor buffer;
        void Set(const at::Tensor& value)
        {
            buffer.flatten().slice(0, 0, value.numel()).copy_(value.flatten());
            object->sizes = value.sizes().vec();
        }
    };
    static Own Take(Raw raw) { return {raw, ViewOf(raw)}; }
};
struct TL {  // list of tensors
    using Raw = const aclTensorList*;
    using Own = std::vector<at::Tensor>;
    static Own Take(Raw raw)
    {
        Own own;
        if (raw)
            for (const aclTensor* tensor : raw->values) own.push_back(ViewOf(tensor));
        return own;
    }
};
struct S {  // scalar
    using Raw = const aclScalar*;
    using Own = at::Scalar;
    static Own Take(Raw raw) { return ScalarOf(raw); }
};
struct OS {  // scalar that may be absent
    using Raw = const aclScalar*;
    using Own = std::optional<at::Scalar>;
    static Own Take(Raw raw) { return raw ? Own(ScalarOf(raw)) : Own(); }
};
struct IA {  // integers
    using Raw = const aclIntArray*;
    using Own = std::vector<int64_t>;
    static Own Take(Raw raw) { return raw ? raw->values : Own(); }
};
struct OIA {  // integers that may be absent
    using Raw = const aclIntArray*;
    using Own = std::optional<std::vector<int64_t>>;
    static Own Take(Raw raw) { return raw ? Own(raw->values) : Own(); }
};
struct DT {  // dtype
    using Raw = aclDataType;
    using Own = at::ScalarType;
    static Own Take(Raw raw) { return TypeOf(raw); }
};
struct STR {
    using Raw = const char*;
    using Own = std::string;
    static Own Take(Raw raw) { return raw ? raw : ""; }
};
template <class Value>
struct Plain {
    using Raw = Value;
    using Own = Value;
    static Own Take(Raw raw) { return raw; }
};
using I64 = Plain<int64_t>;
using I8 = Plain<int8_t>;
using F64 = Plain<double>;
using B = Plain<bool>;

// Phase one: looks at the arguments, and keeps them for the stream.
template <class Op>
int Prepare(const char* name, Op&& op, uint64_t workspace, uint64_t* bytes, aclOpExecutor** out)
{
    op.Check();
    *bytes = workspace;
    *out = new aclOpExecutor{name, [op]() mutable { op(); }, TakeTouched(), workspace, nullptr};
    return 0;
}

}  // namespace cannsim

// Walks a list of (kind, name) pairs; SIM_END pastes the stop mark on the last step.
#define SIM_END_(...) __VA_ARGS__##_END
#define SIM_END(...) SIM_END_(__VA_ARGS__)
#define SIM_MEMBER_A(kind, name) ::cannsim::kind::Own name; SIM_MEMBER_B
#define SIM_MEMBER_B(kind, name) ::cannsim::kind::Own name; SIM_MEMBER_A
#define SIM_MEMBER_A_END
#define SIM_MEMBER_B_END
#define SIM_PARAMETER_A(kind, name) ::cannsim::kind::Raw name, SIM_PARAMETER_B
#define SIM_PARAMETER_B(kind, name) ::cannsim::kind::Raw name, SIM_PARAMETER_A
#define SIM_PARAMETER_A_END
#define SIM_PARAMETER_B_END
#define SIM_TAKE_A(kind, name) ::cannsim::kind::Take(name), SIM_TAKE_B
#define SIM_TAKE_B(kind, name) ::cannsim::kind::Take(name), SIM_TAKE_A
#define SIM_TAKE_A_END
#define SIM_TAKE_B_END

#define SIM_PHASE_ONE(SYMBOL, NAME, WORKSPACE, LIST)                                              \
    extern "C" int SYMBOL(SIM_END(SIM_PARAMETER_A LIST) uint64_t* sim_bytes,                      \
                          aclOpExecutor** sim_out)                                                \
    {                                                                                             \
        ::cannsim::TakeTouched();                                                                 \
        try {                                                                                     \
            return ::cannsim::Prepare(#NAME, NAME##Op{SIM_END(SIM_TAKE_A LIST)}, WORKSPACE,       \
                                      sim_bytes, sim_out);                                        \
        } catch (const std::exception& error) {                                                   \
            return ::cannsim::Report(#NAME, error.what(), ::cannsim::kInvalidArgument);           \
        }                                                                                         \
    }
#define SIM_OPERATOR(NAME, WORKSPACE, LIST, CHECK)                                             \
    namespace {                                                                                \
    struct NAME##Op {                                                                          \
        SIM_END(SIM_MEMBER_A LIST)                                                             \
        void Check() const CHECK                                                               \
        void operator()();                                                                     \
    };                                                                                         \
    }                                                                                          \
    SIM_PHASE_ONE(NAME##GetWorkspaceSize, NAME, WORKSPACE, LIST)                               \
    extern "C" int NAME(void* workspace, uint64_t bytes, aclOpExecutor* executor, void* stream) \
    {                                                                                          \
        return ::cannsim::Execute(executor, workspace, bytes, stream);                         \
    }

#define ACLNN(NAME, LIST)           \
    SIM_OPERATOR(NAME, 0, LIST, {}) \
    void NAME##Op::operator()()

// With limits that phase one checks (NAMEOp::Check, to be defined), scratch memory that is
// overwritten at run time, so that a caller who passes memory in use is noticed, and the query for
// its upper bound on which updates of task groups rely.
#define ACLNN_CHECKED(NAME, WORKSPACE, LIST)                             \
    SIM_OPERATOR(NAME, WORKSPACE, LIST, ;)                               \
    SIM_PHASE_ONE(NAME##GetMaxWorkspaceSize, NAME, WORKSPACE, LIST)      \
    void NAME##Op::operator()()
