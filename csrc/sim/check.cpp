// Where an operand may lie and what it may hold, and what must be clean at the end of a kernel.
#include "check.h"

#if ASCENDC_SIM_STRICT

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>

#include "check_state.h"
#include "lanes.h"

namespace sim::check {

std::unique_ptr<State> state;

namespace {
std::vector<Instruction> last_trace;
}  // namespace

std::string Prefix()
{
    return state->kernel + ", block " + std::to_string(ThisCore().block_idx) + ": ";
}

namespace {

std::string Format(const char* format, va_list arguments)
{
    char text[512];
    std::vsnprintf(text, sizeof text, format, arguments);
    return text;
}

uintptr_t UbOffset(const void* address)
{
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(ThisCore().ub);
}

void CheckLive(const char* api, const char* operand, const Buffer* buffer, uint32_t generation)
{
    if (buffer == nullptr) FailOperand(api, operand, "the tensor was never allocated");
    if (buffer->state == BufferState::kFree) FailOperand(api, operand, "used after FreeTensor");
    if (buffer->generation != generation) {
        FailOperand(api, operand, "used after FreeTensor: the buffer was handed out again");
    }
    if (buffer->state == BufferState::kQueued)
        FailOperand(api, operand, "used between EnQue and DeQue");
}

// A range in UB must lie in its tensor and in the tensor's buffer.
void CheckUbRange(const char* api, const char* operand, const Buffer& buffer, uintptr_t tensor_end,
                  const Range& r)
{
    uintptr_t end = std::min<uintptr_t>(tensor_end, buffer.addr + buffer.bytes);
    if (r.end > end) {
        FailOperand(api, operand, "touches UB bytes [%zu, %zu), past the end of the tensor at %zu",
                    static_cast<size_t>(r.begin), static_cast<size_t>(r.end),
                    static_cast<size_t>(end));
    }
}

void CheckGmRange(const char* api, const Bytes& b, const Range& r)
{
    uintptr_t begin = reinterpret_cast<uintptr_t>(b.begin),
              end = reinterpret_cast<uintptr_t>(b.end);
    if (r.begin < begin || (end != 0 && r.end > end)) {
        FailOperand(api, b.name, "touches bytes [%lld, %lld) of a global tensor of %lld bytes",
                    static_cast<long long>(r.begin - begin), static_cast<long long>(r.end - begin),
                    static_cast<long long>(end - begin));
    }
    const Region* nearest = nullptr;
    for (const Region& region : state->regions) {
        uintptr_t base = reinterpret_cast<uintptr_t>(region.base);
        if (r.begin < base || r.begin > base + region.bytes) continue;
        if (nearest == nullptr || region.writable || r.end <= base + region.bytes)
            nearest = &region;
        if (r.end <= base + region.bytes && (region.writable || !b.writes)) return;
    }
    if (nearest == nullptr) {
        FailOperand(api, b.name, "address %p lies in none of the launch's regions",
                    reinterpret_cast<void*>(r.begin));
    }
    uintptr_t base = reinterpret_cast<uintptr_t>(nearest->base);
    if (r.end > base + nearest->bytes) {
        FailOperand(api, b.name, "touches bytes [%zu, %zu) of region '%s', which has %zu",
                    static_cast<size_t>(r.begin - base), static_cast<size_t>(r.end - base),
                    nearest->name, nearest->bytes);
    }
    FailOperand(api, b.name, "writes to region '%s', which is read only", nearest->name);
}

void Append(std::vector<Range>& ranges, Range r)
{
    if (r.begin == r.end) return;
    if (!ranges.empty() && ranges.back().end == r.begin) {
        ranges.back().end = r.end;
    } else {
        ranges.push_back(r);
    }
}

Access Resolve(const char* api, pipe_t pipe, const Bytes& b)
{
    Access a{b.name, b.buffer == nullptr && b.begin != nullptr, !b.writes, b.writes, b.undefined,
             {}};
    if (b.begin == nullptr) FailOperand(api, b.name, "the tensor was never allocated");
    if (!a.gm) CheckLive(api, b.name, b.buffer, b.generation);
    if (b.size == 0) return a;
    uintptr_t start = a.gm ? reinterpret_cast<uintptr_t>(b.address) : UbOffset(b.address);
    for (uint32_t i = 0; i < b.blocks; ++i) {
        Range r{start + i * b.stride, start + i * b.stride + b.size};
        if (a.gm) {
            CheckGmRange(api, b, r);
        } else {
            uintptr_t end = UbOffset(b.end);  // a DMA fills up the last 32 bytes
            CheckUbRange(api, b.name, *b.buffer, pipe == PIPE_MTE2 ? (end + 31) / 32 * 32 : end, r);
        }
        Append(a.ranges, r);
    }
    return a;
}

Access Resolve(const char* api, const Lanes& lanes, const Operand& op)
{
    Access a{op.name, false, op.reads, op.writes, false, {}};
    CheckLive(api, op.name, op.buffer, op.generation);
    if (reinterpret_cast<uintptr_t>(op.address) % op.align != 0) {
        FailOperand(api, op.name, "starts at UB byte %zu, which is not a multiple of %u",
                    static_cast<size_t>(UbOffset(op.address)), op.align);
    }
    uintptr_t start = UbOffset(op.address), end = UbOffset(op.end);
    auto add = [&](uintptr_t offset, uint64_t bytes) {
        Range r{start + offset, start + offset + bytes};
        CheckUbRange(api, op.name, *op.buffer, end, r);
        Append(a.ranges, r);
    };
    if (lanes.contiguous) {
        add(0, lanes.total * op.element);
        return a;
    }
    uint32_t chunk = op.block_stride == 1 ? lanes.per_repeat : kBlockBytes / op.element;
    ForEachRun(lanes, 0, chunk, [&](uint32_t repeat, uint32_t lane, uint32_t n) {
        add(LaneOffset(op.element, op.block_stride, op.repeat_stride, repeat, lane),
            n * op.element);
    });
    return a;
}

bool Intersect(std::vector<Range> a, std::vector<Range> b)
{
    auto by_begin = [](const Range& x, const Range& y) { return x.begin < y.begin; };
    std::sort(a.begin(), a.end(), by_begin);
    std::sort(b.begin(), b.end(), by_begin);
    for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
        if (a[i].begin < b[j].end && b[j].begin < a[i].end) return true;
        if (a[i].end < b[j].end) ++i;
        else ++j;
    }
    return false;
}

// A source may be the destination, lane for lane; any other overlap has no defined result.
bool SameLanes(const Lanes& lanes, const Operand& a, const Operand& b)
{
    if (a.address != b.address || a.element != b.element) return false;
    if (lanes.contiguous) return true;
    return a.block_stride == b.block_stride &&
           (lanes.repeats == 1 || a.repeat_stride == b.repeat_stride);
}

}  // namespace

void FailOperand(const char* api, const char* operand, const char* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::string text = Format(format, arguments);
    va_end(arguments);
    throw Error(Prefix() + api + "(" + operand + "): " + text);
}

void Fail(const char* api, const char* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::string text = Format(format, arguments);
    va_end(arguments);
    throw Error(Prefix() + api + ": " + text);
}

void BeginLaunch(const char* kernel, std::initializer_list<Region> regions)
{
    state = std::make_unique<State>();
    state->kernel = kernel;
    state->regions = regions;
}

void EndLaunch() { state.reset(); }

void BeginBlock()
{
    State& s = *state;
    s.ub.Clear();
    std::memset(ThisCore().ub, 0xff, kUbBytes);  // NaN in every floating type
    std::fill_n(s.n, kPipes, 0);
    std::fill_n(&s.known[0][0], kPipes * kPipes, 0);
    for (auto& pair : s.flags) std::fill_n(pair, kEventIds, Flag{});
    for (auto& names : s.posted) names.clear();
    s.trace.clear();
    s.at_end.clear();
    ThisCore().ResetModes();
    ThisCore().pipe = nullptr;
}

void EndPipe()
{
    if (std::uncaught_exceptions() > 0) return;
    State& s = *state;
    Core& core = ThisCore();
    for (int i = 0; i < core.buffer_count; ++i) {
        Buffer& b = core.buffers[i];
        if (b.state == BufferState::kOccupied || b.state == BufferState::kDequeued) {
            s.at_end = "AllocTensor: buffer " + std::to_string(i) + " was never freed";
        }
        if (b.state == BufferState::kQueued) {
            s.at_end = "EnQue: buffer " + std::to_string(i) +
                       " was left in its queue: never taken out by DeQue";
        }
        if (b.free_event >= 0) s.flags[static_cast<int>(b.free_flag)][b.free_event].up = false;
    }
    for (auto& known : s.known) std::copy_n(s.n, kPipes, known);
}

void EndBlock()
{
    const Core& core = ThisCore();
    last_trace = std::move(state->trace);
    if (!state->at_end.empty()) throw Error(Prefix() + state->at_end);
    for (int pair = 0; pair < kEventPairs; ++pair) {
        for (int id = 0; id < kEventIds; ++id) {
            if (state->flags[pair][id].up) {
                Fail("SetFlag",
                     "flag %d of %s is left up at the end of the kernel: a WaitFlag is missing", id,
                     EventName(static_cast<HardEvent>(pair)));
            }
        }
    }
    if (core.atomic != AtomicType::kNone)
        Fail("SetAtomicAdd", "atomic mode is left on at the end of the kernel");
    if (core.mask.counter)
        Fail("SetMaskCount", "mask mode is left at counter at the end of the kernel");
    if (core.pipe != nullptr) Fail("TPipe", "not destroyed at the end of the kernel");
}

void Vector(const char* api, const Lanes& lanes, std::initializer_list<Operand> operands,
            std::initializer_list<Bytes> results)
{
    std::vector<Access> accesses;
    for (const Operand& op : operands) accesses.push_back(Resolve(api, lanes, op));
    const Operand* ops = operands.begin();
    for (size_t d = 0; d < operands.size(); ++d) {
        for (size_t s = 0; s < operands.size() && ops[d].writes; ++s) {
            if (s == d || SameLanes(lanes, ops[d], ops[s])) continue;
            if (!Intersect(accesses[d].ranges, accesses[s].ranges)) continue;
            FailOperand(
                api, ops[d].name,
                ops[d].element == ops[s].element
                    ? "overlaps %s without being the same lanes"
                    : "overlaps %s, whose elements have another width: no in-place conversion",
                ops[s].name);
        }
    }
    for (const Bytes& result : results) {
        accesses.push_back(Resolve(api, PIPE_V, result));
        // In place, a sum lands at or before the repeat it comes from.
        if (result.address != ops[0].address &&
            Intersect(accesses.back().ranges, accesses[0].ranges)) {
            FailOperand(api, result.name, "overlaps %s without starting at the same address",
                        ops[0].name);
        }
    }
    Commit(PIPE_V, api, accesses);
}

void Touch(pipe_t pipe, const char* api, std::initializer_list<Bytes> list)
{
    std::vector<Access> accesses;
    for (const Bytes& b : list) accesses.push_back(Resolve(api, pipe, b));
    if (pipe == PIPE_V && accesses.size() == 2 &&
        Intersect(accesses[0].ranges, accesses[1].ranges)) {
        FailOperand(api, accesses[1].operand, "overlaps %s", accesses[0].operand);
    }
    Commit(pipe, api, accesses);
}

}  // namespace sim::check

namespace sim {

const std::vector<Instruction>& LastTrace() { return check::last_trace; }

}  // namespace sim

#endif
