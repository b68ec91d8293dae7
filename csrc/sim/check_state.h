// What the parts of the checker share: all it knows about the launch and the block that runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "shadow.h"

namespace sim::check {

struct Range {
    uintptr_t begin, end;  // offsets in UB, addresses in GM
};

struct Access {
    const char* operand;
    bool gm;
    bool reads;
    bool writes;
    bool undefined;
    std::vector<Range> ranges;
};

struct Flag {
    bool up = false;
    uint32_t known[kPipes] = {};
};

// Everything the checker knows: about the launch, and about the block that runs.
struct State {
    std::string kernel;
    std::vector<Region> regions;
    Shadow gm;

    Shadow ub;
    uint32_t n[kPipes];
    uint32_t known[kPipes][kPipes];
    Flag flags[kEventPairs][kEventIds];
    std::vector<const char*> posted[kPipes];  // API names, by instruction number
    std::vector<Instruction> trace;
    std::string at_end;                       // what the TPipe destructor found
};

extern std::unique_ptr<State> state;

std::string Prefix();  // "kernel, block 3: "

[[noreturn]] void FailOperand(const char* api, const char* operand, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// Posts one instruction on a pipe, whose accesses must be in order with all earlier ones.
void Commit(pipe_t pipe, const char* api, const std::vector<Access>& accesses);

}  // namespace sim::check
