// Shadow memory of the checked build: for every byte who wrote and read it last, kept as a map of
// intervals.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

namespace sim::check {

constexpr int kPipes = 4;  // PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3

struct Record {
    enum class Value : uint8_t { kNever, kDefined, kUndefined };

    Value value = Value::kNever;
    bool atomic = false;         // the last write was an atomic addition
    int8_t writer = -1;          // pipe
    uint32_t written = 0;        // the writer's instruction number
    uint32_t read[kPipes] = {};  // the last instruction of each pipe that read since
    int32_t write_block = -1;    // GM: the block that wrote
    int32_t read_block = -1;     // GM: the one block that read, or kSeveral

    static constexpr int32_t kSeveral = -2;

    bool operator==(const Record& o) const
    {
        for (int p = 0; p < kPipes; ++p) {
            if (read[p] != o.read[p]) return false;
        }
        return value == o.value && atomic == o.atomic && writer == o.writer &&
               written == o.written && write_block == o.write_block && read_block == o.read_block;
    }
};

class Shadow {
public:
    Shadow() { Clear(); }

    void Clear()
    {
        records_.clear();
        records_.emplace(0, Record{});
    }

    // Calls f(begin, end, record) for the parts of [begin, end), in order, without changing them.
    template <class F>
    void Visit(uintptr_t begin, uintptr_t end, F f) const
    {
        auto it = std::prev(records_.upper_bound(begin));
        for (; begin < end; ++it) {
            auto next = std::next(it);
            uintptr_t stop = next == records_.end() || next->first > end ? end : next->first;
            f(begin, stop, it->second);
            begin = stop;
        }
    }

    // Lets f(record) change the records of [begin, end), and joins neighbours that have become
    // equal.
    template <class F>
    void Update(uintptr_t begin, uintptr_t end, F f)
    {
        if (begin >= end) return;
        auto it = Split(begin), last = Split(end);
        for (auto i = it; i != last; ++i) f(i->second);
        if (it != records_.begin()) --it;
        while (it != last && std::next(it) != records_.end()) {
            auto next = std::next(it);
            bool at_end = next == last;
            if (next->second == it->second) {
                records_.erase(next);
            } else {
                it = next;
            }
            if (at_end) break;
        }
    }

private:
    std::map<uintptr_t, Record>::iterator Split(uintptr_t at)
    {
        auto it = std::prev(records_.upper_bound(at));
        return it->first == at ? it : records_.emplace_hint(std::next(it), at, it->second);
    }

    std::map<uintptr_t, Record> records_;
};

}  // namespace sim::check
