// Attention over packed sequences.
//
// A task is a chunk of one sequence's queries and one key head. Its keys and values are packed once
// for tile.h; blocks of queries then go over blocks of keys with a running maximum and sum (Dao et
// al., FlashAttention, 2022). Blocks of keys begin at the first key of the sequence, so that a
// query's result has the same bits whichever queries are computed with it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "kernels.h"
#include "tile.h"

namespace pyrerank::cpu
{
namespace
{

constexpr int64_t kRowBlock = 48;
constexpr int64_t kKeyBlock = 512;
constexpr int64_t kChunk = 512;  // queries that share what was packed

int64_t RoundUp(int64_t count, int64_t multiple)
{
    return (count + multiple - 1) / multiple * multiple;
}

struct Task
{
    int64_t row, rows;  // of query and out
    int64_t key, keys;  // place in kv_rows, or row; how many the last query sees
    int64_t kv_head;
};

// What a thread needs for a task; grows, and is kept for the next one.
template <typename First>
struct Workspace
{
    using P = Product<First>;
    using Second = typename P::Second;

    std::vector<Second> keys;    // [panel][head_dim / kDepth][kPanel]
    std::vector<Second> values;  // [key / kDepth][head_dim, rounded up to vectors]
    std::vector<First> query;    // [kRowBlock][head_dim], where the rows are of another type
    std::vector<float> scores = std::vector<float>(kRowBlock * kKeyBlock);
    std::vector<First> shares = std::vector<First>(kRowBlock * kKeyBlock);
    std::vector<float> mixed;  // [kRowBlock][head_dim, rounded up]

    // Takes all the memory that a task of so many keys needs.
    void Reserve(int64_t most_keys, int64_t head_dim)
    {
        keys.reserve(KeyElements(most_keys, head_dim));
        values.reserve(ValueElements(most_keys, head_dim));
        query.reserve(kRowBlock * head_dim);
        mixed.reserve(kRowBlock * RoundUp(head_dim, kLanes));
    }

    static int64_t KeyElements(int64_t keys, int64_t head_dim)
    {
        return RoundUp(keys, kPanel) * (head_dim / P::kDepth);
    }
    static int64_t ValueElements(int64_t keys, int64_t head_dim)
    {
        return RoundUp(keys, P::kDepth) / P::kDepth * RoundUp(head_dim, kLanes);
    }
};

// First is what T is multiplied as.
template <typename T, typename First>
class Job
{
public:
    using P = Product<First>;
    using Second = typename P::Second;

    Packed<T> query, key, value;
    const int32_t* kv_rows;
    bool causal;
    T* out;
    int64_t head_dim;

    void Run(const Task& task, Workspace<First>& space) const
    {
        Pack(task, space);
        const int64_t group = query.heads / key.heads;
        for (int64_t start = 0; start < task.rows; start += kRowBlock) {
            const int64_t rows = std::min(kRowBlock, task.rows - start);
            const int64_t keys = causal ? task.keys - (task.rows - start - rows) : task.keys;
            for (int64_t head = 0; head < group; ++head)
                Block(task.row + start, rows, task.kv_head * group + head, keys, space);
        }
    }

private:
    const T* Row(const Packed<T>& packed, const Task& task, int64_t k) const
    {
        const int64_t row = kv_rows == nullptr ? task.key + k : kv_rows[task.key + k];
        return packed.data + row * packed.row_stride + task.kv_head * head_dim;
    }

    void Pack(const Task& task, Workspace<First>& space) const
    {
        const int64_t steps = head_dim / P::kDepth;
        const int64_t width = RoundUp(head_dim, kLanes);
        space.keys.assign(space.KeyElements(task.keys, head_dim), Second{});
        for (int64_t k = 0; k < task.keys; ++k) {
            const T* from = Row(key, task, k);
            Second* to = space.keys.data() + k / kPanel * steps * kPanel + k % kPanel;
            for (int64_t i = 0; i < steps; ++i) to[i * kPanel] = P::Pack(from + i * P::kDepth);
        }
        space.values.assign(space.ValueElements(task.keys, head_dim), Second{});
        const T none[kMaxHeadDim] = {};
        for (int64_t k = 0; k < task.keys; k += P::kDepth) {
            Second* to = space.values.data() + k / P::kDepth * width;
            const T* first = Row(value, task, k);
            const T* second = k + 1 < task.keys ? Row(value, task, k + 1) : none;
            for (int64_t i = 0; i < head_dim; ++i) {
                const T column[] = {first[i], second[i]};
                to[i] = P::Pack(column);
            }
        }
    }

    // One head of `rows` queries, of which the last sees `keys` keys.
    void Block(int64_t row, int64_t rows, int64_t head, int64_t keys, Workspace<First>& space) const
    {
        const float scale = kLog2E / std::sqrt(static_cast<float>(head_dim));
        const int64_t steps = head_dim / P::kDepth;
        const int64_t width = RoundUp(head_dim, kLanes);
        const auto [q, stride] = Queries(row, rows, head, space);
        float highest[kRowBlock], total[kRowBlock];
        std::fill_n(highest, rows, -std::numeric_limits<float>::infinity());
        std::fill_n(total, rows, 0.0f);
        space.mixed.assign(kRowBlock * width, 0.0f);
        for (int64_t start = 0; start < keys; start += kKeyBlock) {
            const int64_t count = std::min(kKeyBlock, keys - start);
            Multiply(q, stride, rows, space.keys.data() + start * steps, kPanel, steps * kPanel,
                     RoundUp(count, kLanes) / kLanes, steps, space.scores.data(), kKeyBlock, false);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t sees = causal ? keys - (rows - 1 - i) - start : count;
                First* shares = space.shares.data() + i * kKeyBlock;
                std::fill(shares, shares + RoundUp(count, P::kDepth), First{});
                Softmax(space.scores.data() + i * kKeyBlock, scale, std::min(sees, count), shares,
                        space.mixed.data() + i * width, width, highest[i], total[i]);
            }
            Multiply(space.shares.data(), kKeyBlock, rows,
                     space.values.data() + start / P::kDepth * width, width, int64_t{kPanel},
                     width / kLanes, RoundUp(count, P::kDepth) / P::kDepth, space.mixed.data(),
                     width, true);
        }
        for (int64_t i = 0; i < rows; ++i) {
            T* to = out + ((row + i) * query.heads + head) * head_dim;
            const float* from = space.mixed.data() + i * width;
            for (int64_t k = 0; k < head_dim; ++k) Store(to + k, from[k] / total[i]);
        }
    }

    // Rows of queries, and how far they lie apart.
    std::pair<const First*, int64_t> Queries(int64_t row, int64_t rows, int64_t head,
                                             Workspace<First>& space) const
    {
        const T* from = query.data + row * query.row_stride + head * head_dim;
        if constexpr (std::is_same_v<T, First>) return {from, query.row_stride};
        space.query.resize(kRowBlock * head_dim);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = 0; k < head_dim; ++k)
                space.query[i * head_dim + k] = ToFloat(from[i * query.row_stride + k]);
        return {space.query.data(), head_dim};
    }

    // Shares of the first `sees` keys; what was mixed so far, and its total, are scaled to the new
    // maximum.
    static void Softmax(const float* scores, float scale, int64_t sees, First* shares, float* mixed,
                        int64_t width, float& highest, float& total)
    {
        if (sees <= 0) return;
        float top = highest;
#pragma omp simd reduction(max : top)
        for (int64_t k = 0; k < sees; ++k) top = std::max(top, scores[k] * scale);
        float sums[16] = {};
        int64_t k = 0;
        for (; k + 16 <= sees; k += 16)
            for (int i = 0; i < 16; ++i) {
                const float share = Exp2(scores[k + i] * scale - top);
                sums[i] += share;
                Store(shares + k + i, share);
            }
        for (; k < sees; ++k) {
            const float share = Exp2(scores[k] * scale - top);
            sums[k % 16] += share;
            Store(shares + k, share);
        }
        const float fade = Exp2(highest - top);  // 0 in the first block
        total = total * fade + std::accumulate(sums, sums + 16, 0.0f);
        highest = top;
        if (fade != 1.0f)
            for (int64_t i = 0; i < width; ++i) mixed[i] *= fade;
    }
};

}  // namespace

template <typename T>
void Attention(Packed<T> query, Packed<T> key, Packed<T> value, const std::vector<int64_t>& lengths,
               const int32_t* kv_rows, const std::vector<int64_t>& kv_lengths, bool causal, T* out,
               int64_t head_dim, int threads)
{
    using First = std::conditional_t<std::is_same_v<T, Bfloat16>, Bfloat16Operand, T>;
    std::vector<Task> tasks;
    int64_t row = 0, first = 0, most_keys = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
        for (int64_t start = 0; start < lengths[b]; start += kChunk) {
            const int64_t rows = std::min(kChunk, lengths[b] - start);
            const int64_t after = causal ? lengths[b] - start - rows : 0;
            for (int64_t head = 0; head < key.heads; ++head)
                tasks.push_back({row + start, rows, first, kv_lengths[b] - after, head});
        }
        row += lengths[b];
        first += kv_lengths[b];
        most_keys = std::max(most_keys, kv_lengths[b]);
    }
    const Job<T, First> job{query, key, value, kv_rows, causal, out, head_dim};
    // Memory is taken here: where there is too little, an exception could not leave the threads.
    thread_local std::vector<Workspace<First>> kept;
    if (kept.size() < static_cast<size_t>(threads)) kept.resize(threads);
    for (int thread = 0; thread < threads; ++thread) kept[thread].Reserve(most_keys, head_dim);
    Workspace<First>* const spaces = kept.data();
    std::atomic<size_t> next{0};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread)
        for (size_t i; (i = next.fetch_add(1)) < tasks.size();) job.Run(tasks[i], spaces[thread]);
}

template void Attention(Packed<float>, Packed<float>, Packed<float>, const std::vector<int64_t>&,
                        const int32_t*, const std::vector<int64_t>&, bool, float*, int64_t, int);
template void Attention(Packed<Bfloat16>, Packed<Bfloat16>, Packed<Bfloat16>,
                        const std::vector<int64_t>&, const int32_t*, const std::vector<int64_t>&,
                        bool, Bfloat16*, int64_t, int);

}  // namespace pyrerank::cpu
