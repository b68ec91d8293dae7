// The race detector: flags, barriers, and what each pipe may know.
//
// Instructions run in program order, but on the device only a flag, a barrier or the scalar unit's
// own progress tells one pipe that another has finished. For each pipe P we keep how many
// instructions were posted on it, n[P], and up to which instruction of each pipe Q it knows
// completion, known[P][Q]. An access by P is legal if P knows the completion of the last write to
// every byte, and for a write also of every last read. Blocks of one launch are not ordered at all.
#include "check.h"

#if ASCENDC_SIM_STRICT

#include <algorithm>

#include "check_state.h"

namespace sim::check {
namespace {

constexpr pipe_t kProducer[kEventPairs] = {PIPE_MTE2, PIPE_V,    PIPE_MTE3, PIPE_V,
                                           PIPE_MTE3, PIPE_MTE2, PIPE_S,    PIPE_V,
                                           PIPE_S,    PIPE_MTE2, PIPE_S,    PIPE_MTE3};
constexpr pipe_t kConsumer[kEventPairs] = {PIPE_V,    PIPE_MTE2, PIPE_V,    PIPE_MTE3,
                                           PIPE_MTE2, PIPE_MTE3, PIPE_V,    PIPE_S,
                                           PIPE_MTE2, PIPE_S,    PIPE_MTE3, PIPE_S};
constexpr const char* kEventNames[kEventPairs] = {"MTE2_V",    "V_MTE2",    "MTE3_V", "V_MTE3",
                                                  "MTE3_MTE2", "MTE2_MTE3", "S_V",    "V_S",
                                                  "S_MTE2",    "MTE2_S",    "S_MTE3", "MTE3_S"};
constexpr const char* kPipeNames[kPipes] = {"S", "V", "MTE2", "MTE3"};

std::string Remedy(int from, int to)
{
    if (from == to) return std::string("PipeBarrier<PIPE_") + kPipeNames[from] + ">()";
    std::string event = std::string("HardEvent::") + kPipeNames[from] + "_" + kPipeNames[to];
    return "SetFlag and WaitFlag<" + event +
           ">, or the queue's EnQue/DeQue or FreeTensor/AllocTensor";
}

uint32_t Post(pipe_t pipe, const char* api)
{
    uint32_t k = ++state->n[pipe];
    state->posted[pipe].push_back(api);
    uint32_t* known = state->known[pipe];
    for (int q : {PIPE_V, PIPE_MTE2, PIPE_MTE3})
        known[q] = std::max(known[q], state->known[PIPE_S][q]);
    if (pipe == PIPE_S) known[PIPE_S] = k;
    Instruction instruction{kPipeNames[pipe], api, nullptr, 0, {}};
    std::copy_n(known, kPipes, instruction.after.begin());
    state->trace.push_back(instruction);
    return k;
}

// The region that an address of global memory lies in; nullptr: none.
const Region* RegionOf(uintptr_t address)
{
    for (const Region& region : state->regions) {
        uintptr_t base = reinterpret_cast<uintptr_t>(region.base);
        if (address >= base && address < base + region.bytes) return &region;
    }
    return nullptr;
}

// Ranges in UB are told by offset, those in GM by region and offset.
std::string Where(const Access& a, uintptr_t begin, uintptr_t end)
{
    std::string place = a.gm ? "GM" : "UB";
    if (const Region* region = a.gm ? RegionOf(begin) : nullptr) {
        place = std::string("'") + region->name + "'";
        begin -= reinterpret_cast<uintptr_t>(region->base);
        end -= reinterpret_cast<uintptr_t>(region->base);
    }
    return place + " bytes [" + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

void CheckOrder(pipe_t pipe, const char* api, const Access& a, int other, uint32_t k,
                const char* did, uintptr_t begin, uintptr_t end)
{
    if (k == 0 || state->known[pipe][other] >= k) return;
    FailOperand(api, a.operand, "%s %s before %s on pipe %s has %s them; needs %s",
                a.writes ? "writes" : "reads", Where(a, begin, end).c_str(),
                state->posted[other][k - 1], kPipeNames[other], did, Remedy(other, pipe).c_str());
}

void CheckRecord(pipe_t pipe, const char* api, const Access& a, const Record& r, uintptr_t begin,
                 uintptr_t end)
{
    int32_t block = static_cast<int32_t>(ThisCore().block_idx);
    if (a.gm) {
        bool both_add = a.writes && r.atomic && ThisCore().atomic != AtomicType::kNone;
        if (r.write_block >= 0 && r.write_block != block && !both_add) {
            FailOperand(api, a.operand, "%s %s, which block %d writes: blocks are not ordered",
                        a.writes ? "writes" : "reads", Where(a, begin, end).c_str(), r.write_block);
        }
        if (a.writes && r.read_block != -1 && r.read_block != block) {
            FailOperand(api, a.operand, "writes %s, which %s: blocks are not ordered",
                        Where(a, begin, end).c_str(),
                        r.read_block == Record::kSeveral
                            ? "other blocks read"
                            : ("block " + std::to_string(r.read_block) + " reads").c_str());
        }
        if (pipe == PIPE_S && r.write_block == block) {
            FailOperand(
                api, a.operand,
                "reads %s, which this launch wrote by DMA: the scalar data cache may be stale",
                Where(a, begin, end).c_str());
        }
    } else if (a.reads && r.value != Record::Value::kDefined) {
        FailOperand(api, a.operand, "reads %s, %s", Where(a, begin, end).c_str(),
                    r.value == Record::Value::kNever
                        ? "which nothing wrote"
                        : "filler of DataCopyPad, which is undefined without isPad");
    }
    // Reads come after the write they saw: to wait for them is the remedy for both.
    if (a.writes && (!a.gm || r.read_block == block)) {
        for (int q = 0; q < kPipes; ++q) CheckOrder(pipe, api, a, q, r.read[q], "read", begin, end);
    }
    if (r.writer >= 0 && (!a.gm || r.write_block == block)) {
        CheckOrder(pipe, api, a, r.writer, r.written, "written", begin, end);
    }
}

}  // namespace

void Commit(pipe_t pipe, const char* api, const std::vector<Access>& accesses)
{
    uint32_t k = Post(pipe, api);
    int32_t block = static_cast<int32_t>(ThisCore().block_idx);
    for (const Access& a : accesses) {
        uint64_t bytes = 0;
        for (const Range& range : a.ranges) bytes += range.end - range.begin;
        Instruction& instruction = state->trace.back();
        instruction.bytes = std::max(instruction.bytes, bytes);
        if (const Region* region = a.gm && bytes > 0 ? RegionOf(a.ranges[0].begin) : nullptr)
            instruction.region = region->name;
    }
    // What is read first: that error is the nearer to the cause.
    for (bool writes : {false, true}) {
        for (const Access& a : accesses) {
            if (a.writes != writes) continue;
            for (const Range& range : a.ranges) {
                const Shadow& shadow = a.gm ? state->gm : state->ub;
                shadow.Visit(range.begin, range.end,
                             [&](uintptr_t begin, uintptr_t end, const Record& r) {
                                 CheckRecord(pipe, api, a, r, begin, end);
                             });
            }
        }
    }
    for (const Access& a : accesses) {
        if (!a.reads) continue;
        for (const Range& range : a.ranges) {
            (a.gm ? state->gm : state->ub).Update(range.begin, range.end, [&](Record& r) {
                if (a.gm && r.read_block != block) {
                    r.read_block = r.read_block == -1 ? block : Record::kSeveral;
                    std::fill_n(r.read, kPipes, 0);
                }
                r.read[pipe] = k;
            });
        }
    }
    for (const Access& a : accesses) {
        if (!a.writes) continue;
        Record fresh;
        fresh.value = a.undefined ? Record::Value::kUndefined : Record::Value::kDefined;
        fresh.atomic = a.gm && ThisCore().atomic != AtomicType::kNone;
        fresh.writer = static_cast<int8_t>(pipe);
        fresh.written = k;
        fresh.write_block = a.gm ? block : -1;
        for (const Range& range : a.ranges) {
            (a.gm ? state->gm : state->ub).Update(range.begin, range.end, [&](Record& r) {
                r = fresh;
            });
        }
    }
}

void Barrier(pipe_t pipe)
{
    State& s = *state;
    if (pipe == PIPE_ALL) {
        for (auto& known : s.known) std::copy_n(s.n, kPipes, known);
        return;
    }
    Post(pipe, "PipeBarrier");
    s.known[pipe][pipe] = s.n[pipe];
}

const char* EventName(HardEvent event) { return kEventNames[static_cast<int>(event)]; }

void SetFlag(HardEvent event, int32_t id)
{
    if (id < 0 || id >= kEventIds)
        Fail("SetFlag", "id %d of %s is outside 0..7", id, EventName(event));
    int pair = static_cast<int>(event);
    Flag& flag = state->flags[pair][id];
    if (flag.up)
        Fail("SetFlag", "flag %d of %s is up already: set twice without a WaitFlag", id,
             EventName(event));
    pipe_t pipe = kProducer[pair];
    Post(pipe, "SetFlag");
    flag.up = true;
    std::copy_n(state->known[pipe], kPipes, flag.known);
    flag.known[pipe] = state->n[pipe];
}

void WaitFlag(HardEvent event, int32_t id)
{
    if (id < 0 || id >= kEventIds)
        Fail("WaitFlag", "id %d of %s is outside 0..7", id, EventName(event));
    int pair = static_cast<int>(event);
    Flag& flag = state->flags[pair][id];
    if (!flag.up)
        Fail("WaitFlag", "flag %d of %s was not set: the core would hang", id, EventName(event));
    pipe_t pipe = kConsumer[pair];
    Post(pipe, "WaitFlag");
    for (int q = 0; q < kPipes; ++q)
        state->known[pipe][q] = std::max(state->known[pipe][q], flag.known[q]);
    flag.up = false;
}

}  // namespace sim::check

#endif
