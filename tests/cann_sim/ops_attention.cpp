// Fused attention: the inference operator with its limits, and the one that training uses too.
#include <limits>

#include "opapi.h"

using namespace cannsim;
using at::Tensor;

namespace {

using Lengths = std::optional<std::vector<int64_t>>;
constexpr int64_t kNoLimit = std::numeric_limits<int32_t>::max();  // of the tokens before and after
constexpr int64_t kMaskSide = 2048;                                // of the compressed mask
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Attention {
    std::string layout;
    int64_t heads, kv_heads, sparse, before, after;
    double scale;
    Tensor mask;  // 1 hides
};

Tensor Wide(const Tensor& t)
{
    return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat);
}

// Modes 2, 3 and 4 read nothing but one triangle, whatever the lengths are.
void CheckMaskShape(const Attention& a)
{
    TORCH_CHECK(a.sparse >= 0 && a.sparse <= 4, "sparse_mode ", a.sparse, " is not simulated");
    TORCH_CHECK(a.sparse != 1 || a.mask.defined(), "sparse_mode 1 needs a mask");
    if (a.sparse < 2) return;
    TORCH_CHECK(a.mask.defined(), "sparse_mode ", a.sparse, " needs the 2048 x 2048 mask");
    const int64_t dims = a.mask.dim();
    TORCH_CHECK(dims >= 2 && a.mask.size(dims - 1) == kMaskSide &&
                    a.mask.size(dims - 2) == kMaskSide && a.mask.numel() == kMaskSide * kMaskSide,
                "sparse_mode ", a.sparse, " needs a 2048 x 2048 mask, got ", a.mask.sizes());
}

// A look at some rows: the mask is data, so this waits until the operator runs.
void CheckMaskContent(const Attention& a)
{
    if (a.sparse < 2) return;
    const Tensor mask = a.mask.reshape({kMaskSide, kMaskSide}).to(at::kBool);
    for (int64_t row : {0, 1, 63, 64, 1000, 2046}) {
        const int64_t hidden = mask[row].slice(0, row + 1).sum().item<int64_t>();
        TORCH_CHECK(hidden == kMaskSide - row - 1 && mask[row].sum().item<int64_t>() == hidden,
                    "the compressed mask must be triu(ones(2048, 2048), 1)");
    }
}

// What one sequence hides, as [..., queries, keys]; undefined: nothing.
Tensor Hidden(const Attention& a, int64_t queries, int64_t keys, int64_t sequence)
{
    const Tensor rows = at::arange(queries).unsqueeze(1), columns = at::arange(keys).unsqueeze(0);
    const auto outside_band = [&](int64_t diagonal) {
        const Tensor distance = columns - rows - diagonal;
        return at::logical_or(distance > a.after, distance < -a.before);
    };
    switch (a.sparse) {
        case 2: return columns > rows;
        case 3: return columns > rows + (keys - queries);
        case 4: return outside_band(keys - queries);
    }
    if (!a.mask.defined()) return {};
    Tensor mask = a.mask.to(at::kBool);
    if (mask.dim() > 2) mask = mask[mask.size(0) == 1 ? 0 : sequence];
    TORCH_CHECK(mask.size(-2) >= queries && mask.size(-1) >= keys, "a mask of ", a.mask.sizes(),
                " is too small for ", queries, " x ", keys);
    mask = mask.slice(-2, 0, queries).slice(-1, 0, keys);
    const bool limited = a.sparse == 0 && (a.before < kNoLimit || a.after < kNoLimit);
    return limited ? at::logical_or(mask, outside_band(0)) : mask;
}

struct Result {
    Tensor out, max, sum;  // [heads, queries, width], and [heads, queries, 1] twice
};

// q is [heads, queries, width], k and v are [kv heads, keys, width].
Result Attend(const Attention& a, const Tensor& q, Tensor k, Tensor v, int64_t sequence)
{
    const int64_t group = q.size(0) / k.size(0);
    k = Wide(k).repeat_interleave(group, 0);
    v = Wide(v).repeat_interleave(group, 0);
    Tensor scores = at::matmul(Wide(q), k.transpose(1, 2)) * a.scale;
    const Tensor hidden = Hidden(a, q.size(1), k.size(1), sequence);
    if (hidden.defined()) scores = scores.masked_fill(hidden, -kInfinity);
    // A row that sees nothing gives zeros.
    const Tensor max = scores.amax(-1, true).nan_to_num(0, 0, 0);
    const Tensor weights = at::exp(scores - max), sum = weights.sum(-1, true);
    return {at::matmul(weights / sum.masked_fill(sum == 0, 1), v), max, sum};
}

// One [heads, length, width] view for each sequence.
std::vector<Tensor> Split(const Tensor& x, const std::string& layout, int64_t heads,
                          const Lengths& lengths, const char* what)
{
    std::vector<Tensor> parts;
    if (layout == "TND") {
        TORCH_CHECK(lengths && !lengths->empty(), "TND needs the lengths of ", what);
        int64_t from = 0;
        for (int64_t to : *lengths) {
            TORCH_CHECK(to >= from && to <= x.size(0), "cumulative lengths of ", what,
                        " must not fall and not pass ", x.size(0), ": ",
                        at::IntArrayRef(*lengths));
            parts.push_back(x.slice(0, from, to).transpose(0, 1));
            from = to;
        }
        return parts;
    }
    Tensor t = x;
    if (layout == "BSH") t = x.unflatten(2, {heads, -1}).transpose(1, 2);
    if (layout == "BSND") t = x.transpose(1, 2);
    for (int64_t b = 0; b < t.size(0); ++b) {
        int64_t length = t.size(2);
        if (lengths && !lengths->empty()) length = (*lengths)[lengths->size() == 1 ? 0 : b];
        TORCH_CHECK(length <= t.size(2), "length ", length, " of ", what, " passes ", t.size(2));
        parts.push_back(t[b].slice(1, 0, length));
    }
    return parts;
}

void CheckLayout(const std::string& layout)
{
    TORCH_CHECK(layout == "TND" || layout == "BSND" || layout == "BNSD" || layout == "BSH",
                "input layout ", layout, " is not simulated");
}

void Refuse(const char* what, const Tensor& tensor)
{
    TORCH_CHECK(!tensor.defined() || tensor.numel() == 0, what, " is not simulated");
}

// ---- inference

struct Inference {
    Attention a;
    Tensor query;
    std::vector<Tensor> keys, values;
    Lengths query_lengths, key_lengths;
    Tensor out, lse;
    bool wants_lse;

    void Check() const;
    void Run();
};

// The documented limits: see README.md.
void Inference::Check() const
{
    static const bool takes_float = std::getenv("CANN_SIM_FIA_FLOAT") != nullptr;
    const at::ScalarType type = query.scalar_type();
    TORCH_CHECK(takes_float || type == at::kHalf || type == at::kBFloat16, "query dtype ", type,
                " is not supported (float16 and bfloat16 are)");
    TORCH_CHECK(keys.size() == 1 && values.size() == 1, "lists of key tensors are not simulated");
    const Tensor &key = keys[0], &value = values[0];
    for (const Tensor& t : {query, key, value}) {
        TORCH_CHECK(t.is_contiguous(), "inputs must be contiguous, got strides ", t.strides(),
                    " for ", t.sizes());
        TORCH_CHECK(t.scalar_type() == type, "query, key and value differ in dtype");
    }
    if (a.mask.defined()) {
        const at::ScalarType kind = a.mask.scalar_type();
        TORCH_CHECK(kind == at::kBool || kind == at::kChar || kind == at::kByte, "mask dtype ",
                    kind);
    }
    TORCH_CHECK(a.heads % a.kv_heads == 0, a.heads, " heads over ", a.kv_heads, " key heads");
    CheckLayout(a.layout);
    CheckMaskShape(a);
    const int64_t width = query.size(-1), value_width = value.size(-1);
    if (a.layout != "TND") {
        TORCH_CHECK(a.layout == "BSH" || width % 16 == 0, "head size ", width,
                    " is not a multiple of 16");
        return;
    }
    const bool fits = (width == 128 && value_width == 128) ||
                      (width == 192 && (value_width == 128 || value_width == 192)) ||
                      (width == 64 && value_width == 64 && a.heads == a.kv_heads);
    TORCH_CHECK(fits,
                "TND takes head sizes 128, 192 or, with as many key heads as query heads, 64; got ",
                width, " and ", value_width);
    TORCH_CHECK(a.sparse == 3 || a.sparse == 4 || (a.sparse == 0 && !a.mask.defined()),
                "TND takes sparse_mode 0 without a mask, 3 or 4; got ", a.sparse);
    TORCH_CHECK(query_lengths && key_lengths && !query_lengths->empty(), "TND needs both lengths");
    TORCH_CHECK(query_lengths->size() == key_lengths->size(), query_lengths->size(),
                " query lengths, ", key_lengths->size(), " key lengths");
    TORCH_CHECK(query_lengths->size() <= 4096, "TND takes at most 4096 sequences, got ",
                query_lengths->size());
    TORCH_CHECK(query.size(0) <= 1 << 20, "TND takes at most 1048576 tokens, got ", query.size(0));
    TORCH_CHECK(query_lengths->back() == query.size(0), "query lengths end at ",
                query_lengths->back(), ", the tensor at ", query.size(0));
    TORCH_CHECK(key_lengths->back() == key.size(0), "key lengths end at ", key_lengths->back(),
                ", the tensor at ", key.size(0));
}

void Inference::Run()
{
    CheckMaskContent(a);
    const auto q = Split(query, a.layout, a.heads, query_lengths, "query");
    const auto k = Split(keys[0], a.layout, a.kv_heads, key_lengths, "key");
    const auto v = Split(values[0], a.layout, a.kv_heads, key_lengths, "value");
    const bool packed = a.layout == "TND";
    const auto o = Split(out, a.layout, a.heads, packed ? query_lengths : std::nullopt, "output");
    const bool fill_lse = wants_lse && lse.numel();
    if (fill_lse) lse.fill_(kInfinity);
    int64_t row = 0;
    for (size_t b = 0; b < q.size(); ++b) {
        const int64_t count = q[b].size(1);
        if (count == 0) continue;
        const Result r = Attend(a, q[b], k[b], v[b], static_cast<int64_t>(b));
        o[b].slice(1, 0, count).copy_(r.out);
        o[b].slice(1, count).zero_();
        if (fill_lse) {
            const Tensor value = r.max + at::log(r.sum);
            if (packed)
                lse.slice(0, row, row + count).copy_(value.transpose(0, 1));
            else
                lse[static_cast<int64_t>(b)].slice(1, 0, count).copy_(value);
        }
        row += count;
    }
}

}  // namespace

// The arguments that V3 and V4 share, most of them for what is refused here.
#define FIA_INPUTS                                                                              \
    (T, query)(TL, keys)(TL, values)(T, pse)(T, mask)(OIA, query_lengths)(OIA, key_lengths)     \
    (T, dequant1)(T, quant1)(T, dequant2)(T, quant2)(T, quant2_offset)(T, antiquant)            \
    (T, antiquant_offset)(T, block_table)(T, query_padding)(T, kv_padding)(T, key_antiquant)    \
    (T, key_antiquant_offset)(T, value_antiquant)(T, value_antiquant_offset)(T, key_prefix)     \
    (T, value_prefix)(OIA, prefix_length)(T, query_rope)(T, key_rope)(T, key_rope_antiquant)
#define FIA_ATTRIBUTES                                                                         \
    (I64, heads)(F64, scale)(I64, before)(I64, after)(STR, layout)(I64, kv_heads)(I64, sparse) \
    (I64, inner_precise)(I64, block_size)(I64, antiquant_mode)(B, wants_lse)                   \
    (I64, key_antiquant_mode)(I64, value_antiquant_mode)
#define FIA_INFERENCE                                                                            \
    Inference                                                                                    \
    {                                                                                            \
        {layout, heads, kv_heads ? kv_heads : heads, sparse, before, after, scale, mask}, query, \
            keys, values, query_lengths, key_lengths, out, lse, wants_lse                        \
    }
#define FIA_REFUSALS                               \
    Refuse("a position bias", pse);                \
    Refuse("quantised attention", quant1);         \
    Refuse("quantised output", quant2);            \
    Refuse("antiquantised key", key_antiquant);    \
    Refuse("antiquantised input", antiquant);      \
    Refuse("paged key/value", block_table);        \
    Refuse("query padding", query_padding);        \
    Refuse("key/value padding", kv_padding);       \
    Refuse("a shared prefix", key_prefix);         \
    Refuse("a separate rotary part", query_rope);

constexpr uint64_t kWorkspace = 16384;

ACLNN_CHECKED(aclnnFusedInferAttentionScoreV3, kWorkspace,
              FIA_INPUTS FIA_ATTRIBUTES (T, out)(T, lse))
{
    FIA_INFERENCE.Run();
}
void aclnnFusedInferAttentionScoreV3Op::Check() const
{
    FIA_REFUSALS
    FIA_INFERENCE.Check();
}

ACLNN_CHECKED(aclnnFusedInferAttentionScoreV4, kWorkspace,
              FIA_INPUTS (T, query_dequant)(T, sink) FIA_ATTRIBUTES
              (I64, query_quant_mode)(T, out)(T, lse))
{
    FIA_INFERENCE.Run();
}
void aclnnFusedInferAttentionScoreV4Op::Check() const
{
    FIA_REFUSALS
    Refuse("a quantised query", query_dequant);
    Refuse("an attention sink", sink);
    FIA_INFERENCE.Check();
}

// ---- the operator of training, which takes float32 as well

static void FlashAttention(Attention a, const Tensor& query, const Tensor& key, const Tensor& value,
                           const Lengths& query_lengths, const Lengths& key_lengths,
                           const Tensor& max, const Tensor& sum, const Tensor& out)
{
    CheckLayout(a.layout);
    CheckMaskShape(a);
    CheckMaskContent(a);
    a.kv_heads = a.layout == "BNSD"  ? key.size(1)
                 : a.layout == "BSH" ? key.size(2) / (query.size(2) / a.heads)
                                     : key.size(-2);
    const auto q = Split(query, a.layout, a.heads, query_lengths, "query");
    const auto k = Split(key, a.layout, a.kv_heads, key_lengths, "key");
    const auto v = Split(value, a.layout, a.kv_heads, key_lengths, "value");
    const auto o = Split(out, a.layout, a.heads, query_lengths, "output");
    TORCH_CHECK(q.size() == k.size(), q.size(), " query sequences, ", k.size(), " key sequences");
    int64_t row = 0;
    for (size_t b = 0; b < q.size(); ++b) {
        const int64_t count = q[b].size(1);
        if (count == 0) continue;
        const Result r = Attend(a, q[b], k[b], v[b], static_cast<int64_t>(b));
        o[b].copy_(r.out);
        // The statistics are stored eight times over.
        const auto put = [&](const Tensor& to, const Tensor& x) {
            if (!to.defined() || !to.numel()) return;
            if (a.layout == "TND")
                to.slice(0, row, row + count).copy_(x.transpose(0, 1));
            else
                to[static_cast<int64_t>(b)].copy_(x);
        };
        put(max, r.max);
        put(sum, r.sum);
        row += count;
    }
}

#define FLASH_INPUTS (T, query)(T, key)(T, value)(T, pse)(T, drop)(T, padding)(T, mask)(OIA, prefix)
#define FLASH_ATTRIBUTES                                                                 \
    (F64, scale)(F64, keep)(I64, before)(I64, after)(I64, heads)(STR, layout)            \
    (I64, inner_precise)(I64, sparse)(T, max)(T, sum)(T, softmax)(T, out)
#define FLASH_REFUSALS             \
    Refuse("a position bias", pse); \
    TORCH_CHECK(keep == 1.0, "dropout is not simulated");

ACLNN(aclnnFlashAttentionScore, FLASH_INPUTS FLASH_ATTRIBUTES)
{
    FLASH_REFUSALS
    FlashAttention({layout, heads, 0, sparse, before, after, scale, mask}, query, key, value,
                   std::nullopt, std::nullopt, max, sum, out);
}
ACLNN(aclnnFlashAttentionVarLenScore,
      FLASH_INPUTS (OIA, query_lengths)(OIA, key_lengths) FLASH_ATTRIBUTES)
{
    FLASH_REFUSALS
    FlashAttention({layout, heads, 0, sparse, before, after, scale, mask}, query, key, value,
                   query_lengths, key_lengths, max, sum, out);
}
