"""Checks what the engine assumes of torch_npu's operators, against float32 on the CPU.

The simulated CANN of the tests makes the same assumptions; here they meet the real one. Operators
are called through the engine's own functions, so that what is checked is what is used. A tolerance
is a few roundings of the result's dtype, relative to the magnitudes that went into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from checks import Bench, Check, Comparison, Figure, Skip, Wrong, record
from pyrerank.devices.ascend import FusedInfer, cumulative
from pyrerank.engine.batch import Batch

UNIT = {torch.bfloat16: 2**-8, torch.float32: 2**-23}  # at least what one rounding changes
NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
EPS = 1e-6
# hidden_size and intermediate_size of 0.6B, VL-2B, 4B and 8B
WIDTHS = [(1024, 3072), (2048, 6144), (2560, 9728), (4096, 12288)]
ROWS = [1, 7, 129]


def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator).to(dtype)


def slack(dtype: torch.dtype) -> float:
    """The difference that arithmetic may make where the result's rounding does not cover it."""
    return 1e-5 if dtype == torch.float32 else 1e-3


# ---- norms, SwiGLU, rotary positions ------------------------------------------------------------


def norm_want(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.float()


def rms_norm(bench: Bench, dtype: torch.dtype) -> Figure:
    comparison = Comparison()
    for width, _ in WIDTHS:
        weight = 1 + 0.2 * normal(width, dtype=dtype)
        for rows in ROWS:
            x = normal(rows, width, dtype=dtype)
            got = bench.on.rms_norm(x.to(bench.device), weight.to(bench.device), EPS)
            want = norm_want(x, weight)
            tolerance = 2 * UNIT[dtype] * want.abs() + slack(dtype) * UNIT[dtype]
            comparison.add(f"{rows} x {width}", got, want, tolerance)
    return comparison.figure()


def head_norm(bench: Bench, dtype: torch.dtype) -> Figure:
    """Each head of a query is normed, which is a part of a wider tensor and not contiguous."""
    comparison = Comparison()
    weight = 1 + 0.2 * normal(128, dtype=dtype)
    for heads, kv_heads in ((16, 8), (32, 8), (2, 1)):
        qkv = normal(37, heads + 2 * kv_heads, 128, dtype=dtype)
        parts = (heads, kv_heads, kv_heads)
        there = qkv.to(bench.device).split(parts, dim=1)
        for name, part, here in zip("qk", there, qkv.split(parts, dim=1), strict=False):
            got = bench.on.rms_norm(part, weight.to(bench.device), EPS)
            want = norm_want(here, weight)
            tolerance = 2 * UNIT[dtype] * want.abs() + slack(dtype) * UNIT[dtype]
            comparison.add(f"{name} of {heads} and {kv_heads} heads", got, want, tolerance)
    return comparison.figure()


def norm_of_zeros(bench: Bench, dtype: torch.dtype) -> Figure:
    x = torch.zeros(3, 1024, dtype=dtype, device=bench.device)
    comparison = Comparison()
    comparison.add("3 x 1024", bench.on.rms_norm(x, x[0] + 1, EPS), torch.zeros(3, 1024), 0.0)
    return comparison.figure()


def add_rms_norm(bench: Bench, dtype: torch.dtype) -> Figure:
    """The sum, rounded to its dtype, and the norm of the sum, rounded before or after."""
    comparison = Comparison()
    for width, _ in WIDTHS:
        weight = 1 + 0.2 * normal(width, dtype=dtype)
        for rows in ROWS:
            x, y = normal(rows, width, dtype=dtype), 3 * normal(rows + 1, width, dtype=dtype)[1:]
            there = [tensor.to(bench.device) for tensor in (x, y, weight)]
            total, normed = bench.on.add_rms_norm(there[0], there[1], there[2], EPS)
            case = f"{rows} x {width}"
            want = x.float() + y.float()
            comparison.add(f"{case}, sum", total, want, UNIT[dtype] * want.abs() + 1e-9)
            want = norm_want(want, weight)
            tolerance = 3 * UNIT[dtype] * want.abs() + slack(dtype) * UNIT[dtype]
            comparison.add(f"{case}, norm", normed, want, tolerance)
    return comparison.figure()


def swiglu(bench: Bench, dtype: torch.dtype) -> Figure:
    """silu(first half) * second half."""
    comparison = Comparison()
    for _, width in WIDTHS:
        for rows in ROWS:
            x = 3 * normal(rows, 2 * width, dtype=dtype)
            gate, up = x.float().chunk(2, -1)
            want = F.silu(gate) * up
            tolerance = 3 * UNIT[dtype] * want.abs() + slack(dtype) * UNIT[dtype]
            got = bench.on.swiglu(x.to(bench.device))
            comparison.add(f"{rows} x {width}", got, want, tolerance)
    return comparison.figure()


def rotary(bench: Bench, dtype: torch.dtype) -> Figure:
    """Pairs (i, i + half), angles up to 10,240 positions, several numbers of heads."""
    comparison = Comparison()
    for heads in (1, 2, 8, 16, 32):
        for rows in ROWS:
            x = normal(rows, heads, 128, dtype=dtype)
            position = torch.linspace(0, 10240, rows).floor()
            angle = position[:, None] * 1e6 ** (-torch.arange(0, 128, 2) / 128)
            angle = torch.cat((angle, angle), -1)[:, None]
            cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
            a, b = x.float().chunk(2, -1)
            turned = torch.cat((-b, a), -1)
            want = x.float() * cos.float() + turned * sin.float()
            size = x.float().abs() * cos.float().abs() + turned.abs() * sin.float().abs()
            got = bench.on.rotate(*(tensor.to(bench.device) for tensor in (x, cos, sin)))
            tolerance = 3 * UNIT[dtype] * size + slack(dtype) * UNIT[dtype]
            comparison.add(f"{rows} tokens, {heads} heads", got, want, tolerance)
    return comparison.figure()


# ---- matrix products, embedding -----------------------------------------------------------------


def linear(bench: Bench, dtype: torch.dtype) -> Figure:
    """Accumulates in float32, and multiplies float32 as float32, not in fewer bits."""
    comparison = Comparison()
    for width, inner in WIDTHS[:2] if bench.quick else WIDTHS:
        x, weight = normal(7, inner, dtype=dtype), normal(width, inner, dtype=dtype)
        x64, w64 = x.double(), weight.double()
        want, size = x64 @ w64.T, x64.abs() @ w64.abs().T
        got = F.linear(x.to(bench.device), weight.to(bench.device))
        # twice the result's rounding; products of 10-bit fractions would be 1e-5 of size off
        comparison.add(f"7 x {inner} x {width}", got, want, UNIT[dtype] * want.abs() + 2e-6 * size)
    return comparison.figure()


def embedding(bench: Bench, dtype: torch.dtype) -> Figure:
    """Rows are looked up by int32 ids, the first and the last among them."""
    table = normal(4096, 1024, dtype=dtype)
    ids = torch.tensor([0, 4095, 17, 17, 2048], dtype=torch.int32)
    got = F.embedding(ids.to(bench.device), table.to(bench.device))
    comparison = Comparison()
    comparison.add("5 ids", got, table[ids.long()], 0.0)
    return comparison.figure()


# ---- attention ----------------------------------------------------------------------------------

Inputs = tuple[Tensor, Tensor, Tensor]  # query, key, value
HEADS = [(16, 8), (32, 8), (2, 1), (4, 4)]
LENGTHS = {
    "one sequence": [[129], [1], [128], [2048], [2049]],
    "several sequences": [[3, 129, 1, 64], [1, 1, 1], [200] * 9],
    "empty sequences in the middle": [[5, 0, 7], [64, 0, 0, 129, 0, 1]],
    "empty sequences at the end": [[5, 7, 0], [129, 0, 0, 0]],
    "empty sequences first": [[0, 6], [0, 0, 129]],
    "many sequences": [[2] * 257, [40] * 64 + [0] * 192 + [88]],
    "a long sequence": [[4200, 3]],
}


def batch_of(lengths: Sequence[int], kv_lengths: Sequence[int] = ()) -> Batch:
    numbers = [0] * 4 * sum(lengths) + [*accumulate(lengths, initial=0)]
    numbers += [*accumulate(kv_lengths or lengths, initial=0), *range(sum(kv_lengths))]
    data = torch.tensor(numbers, dtype=torch.int32)
    return Batch(data, list(lengths), list(kv_lengths or lengths))


def there(bench: Bench, batch: Batch) -> Batch:
    return batch.moved(bench.on.upload(batch.data))


def attention_inputs(tokens: int, heads: int, kv_heads: int, head_dim: int) -> Inputs:
    sizes = ((tokens, h, head_dim) for h in (heads, kv_heads, kv_heads))
    q, k, v = (normal(*size, dtype=torch.bfloat16) for size in sizes)
    return q, k.flip(0), v  # without the flip, key and value of a shape are the same numbers


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    q, k, v = (tensor.to(device) for tensor in inputs)
    return q, k, v


def attention_want(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention is causal within each sequence."""
    pieces = []
    for piece in zip(*(t.float().split(list(lengths)) for t in (q, k, v)), strict=True):
        q_, k_, v_ = (t.transpose(0, 1)[None] for t in piece)
        out = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True, enable_gqa=True)
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


def attention_tolerance(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """The tolerance: four roundings of bfloat16 of the weighted magnitudes of the values."""
    return 4 * UNIT[torch.bfloat16] * attention_want(q, k, v.abs(), lengths)


def attention(bench: Bench, name: str) -> Figure:
    comparison = Comparison()
    attend = bench.on.attention(torch.bfloat16, captured=False)
    for lengths in LENGTHS[name]:
        # The CPU must compute the same, and takes long for a long sequence.
        few = HEADS[2:3] if bench.quick or sum(lengths) > 4000 else HEADS
        for heads, kv_heads in few:
            inputs = attention_inputs(sum(lengths), heads, kv_heads, 128)
            batch = batch_of(lengths)
            got = attend(*moved(inputs, bench.device), there(bench, batch))
            want = attention_want(*inputs, lengths)
            shown = str(lengths) if len(lengths) < 9 else f"{len(lengths)} sequences"
            case = f"{shown}, {heads} and {kv_heads} heads"
            comparison.add(case, got, want, attention_tolerance(*inputs, lengths))
    return comparison.figure()


def attention_head_sizes(bench: Bench) -> Figure:
    """Sizes that the operator does not take are padded with zeros."""
    comparison = Comparison()
    attend = bench.on.attention(torch.bfloat16, captured=False)
    lengths = [9, 0, 40]
    for head_dim in (32, 64, 80, 96, 128, 192):
        inputs = attention_inputs(49, 4, 2, head_dim)
        batch = there(bench, batch_of(lengths))
        got = attend(*moved(inputs, bench.device), batch)
        tolerance = attention_tolerance(*inputs, lengths)
        comparison.add(f"head size {head_dim}", got, attention_want(*inputs, lengths), tolerance)
    return comparison.figure()


def attention_neighbours(bench: Bench) -> Figure:
    """The other sequences of a batch change nothing of a sequence beyond rounding."""
    attend = bench.on.attention(torch.bfloat16, captured=False)
    lengths = [40, 129, 17]
    q, k, v = moved(attention_inputs(186, 4, 2, 128), bench.device)
    together = attend(q, k, v, there(bench, batch_of(lengths)))
    part = slice(40, 169)
    alone = attend(q[part], k[part], v[part], there(bench, batch_of([129])))
    tolerance = 4 * UNIT[torch.bfloat16] * alone.float().abs().cpu() + 1e-3
    comparison = Comparison()
    comparison.add("129 of 186 tokens", together[part], alone, tolerance)
    same = "same bits" if torch.equal(together[part].cpu(), alone.cpu()) else "not the same bits"
    return f"{comparison.figure()}; {same}"


def attention_of_parts(bench: Bench) -> Figure:
    """Attention goes on after a prefix, which another pass has computed."""
    attend = bench.on.attention(torch.bfloat16, captured=False)
    # One sequence has no query, as those that a graph's pass lacks.
    own, whole = [5, 1, 0, 40, 130], [30, 77, 9, 40, 2500]
    inputs = attention_inputs(sum(whole), 4, 2, 128)
    parts = torch.arange(sum(whole)).split(whole)
    rows = torch.cat([part[len(part) - n :] for part, n in zip(parts, own, strict=True)])
    q, k, v = moved(inputs, bench.device)
    got = attend(q[rows], k, v, there(bench, batch_of(own, whole)))
    comparison = Comparison()
    tolerance = attention_tolerance(*inputs, whole)[rows]
    comparison.add("parts of 5 sequences", got, attention_want(*inputs, whole)[rows], tolerance)
    return comparison.figure()


def graph_attention(bench: Bench) -> tuple[Comparison, Inputs, Any, Tensor]:
    """Captures two calls in one graph, with lengths that no replay will have."""
    if bench.device.type != "npu":
        raise Skip("graphs of an NPU")
    attend = FusedInfer(bench.device)
    inputs = attention_inputs(200, 4, 2, 128)
    q, k, v = moved(inputs, bench.device)
    batch = there(bench, batch_of([0, 0, 0, 200]))

    def twice() -> Tensor:
        attend(q, v, k, batch)
        return attend(q, k, v, batch)

    graph, out = record(bench, twice, update=True)
    return Comparison(), inputs, graph, out


def replays(lengths: Sequence[Sequence[int]], comparison: Comparison, inputs: Inputs,
            out: Tensor) -> Iterator[list[int]]:  # fmt: skip
    """Yields lists of lengths, and compares the result after the caller has replayed each."""
    for chosen in lengths:
        out.fill_(torch.nan)
        yield list(chosen)
        want = attention_want(*inputs, chosen)
        comparison.add(str(chosen), out, want, attention_tolerance(*inputs, chosen))


def last_call_of_its_own(bench: Bench) -> Figure:
    """A graph with two calls does what they do outside: all tokens after a prefix, then the last of
    each sequence, with lengths of their own."""
    if bench.device.type != "npu":
        raise Skip("graphs of an NPU")
    attend = FusedInfer(bench.device)
    q, k, v = moved(attention_inputs(200, 4, 2, 128), bench.device)

    def both(own: list[int], keys: list[int]) -> list[Batch]:
        return [there(bench, batch_of(queries, keys)) for queries in (own, [1] * 4)]

    def calls(batches: list[Batch]) -> list[Tensor]:
        return [attend(q[: batch.tokens], k, v, batch) for batch in batches]

    captured = both([0, 0, 0, 80], [1, 1, 1, 197])  # the graph reads its tensors
    graph, outs = record(bench, partial(calls, captured), update=True)
    comparison = Comparison()
    for own, keys in (([30, 0, 49, 1], [60, 1, 89, 50]), ([80, 0, 0, 0], [90, 1, 1, 108])):
        for out in outs:
            out.fill_(torch.nan)
        graph.update(cpu_update_input=[cumulative(n, keys) for n in (own, [1] * 4)])
        graph.replay()
        for name, out, want in zip(("all", "last"), outs, calls(both(own, keys)), strict=True):
            tolerance = 4 * UNIT[torch.bfloat16] * want.float().abs().cpu() + 1e-3
            comparison.add(f"{name} of {own}, {keys}", out, want, tolerance)
    return comparison.figure()


NEW_LENGTHS = [[50, 50, 50, 50], [1, 198, 1, 0], [0, 0, 200, 0], [70, 0, 60, 70], [0, 0, 0, 200]]


def update_then_replay(bench: Bench) -> Figure:
    comparison, inputs, graph, out = graph_attention(bench)
    for lengths in replays(NEW_LENGTHS, comparison, inputs, out):
        graph.update(cpu_update_input=[cumulative(lengths, lengths)])
        graph.replay()
    return comparison.figure()


def replay_then_update(bench: Bench) -> Figure:
    comparison, inputs, graph, out = graph_attention(bench)
    for lengths in replays(NEW_LENGTHS, comparison, inputs, out):
        graph.replay()
        graph.update(cpu_update_input=[cumulative(lengths, lengths)])
    return comparison.figure()


def graphs_share_memory(bench: Bench) -> Figure:
    """Two graphs of one memory pool are replayed in turn, with inputs from pinned memory."""
    if bench.device.type != "npu":
        raise Skip("graphs of an NPU")
    module = torch.npu  # type: ignore[attr-defined]
    pool, stream = module.graph_pool_handle(), module.Stream()
    weight = normal(512, 512).to(bench.device)
    source = torch.zeros(64, 512, device=bench.device)
    recorded = []
    for rows in (64, 16):  # the larger one is captured first, as in the engine
        source[:rows] @ weight @ weight
        module.synchronize()
        graph = module.NPUGraph()
        with module.stream(stream):
            graph.capture_begin(pool=pool)
            out = source[:rows] @ weight @ weight
            graph.capture_end()
        recorded.append((rows, graph, out))
    comparison = Comparison()
    for turn in range(6):
        rows, graph, out = recorded[turn % 2]
        x = normal(rows + turn, 512)[turn:]
        out.fill_(torch.nan)
        source[:rows].copy_(x.pin_memory(), non_blocking=True)
        graph.replay()
        want = x @ weight.cpu() @ weight.cpu()
        comparison.add(f"turn {turn}, {rows} rows", out, want, 1e-3 * want.abs().amax())
    return comparison.figure()


def replay_allocates_nothing(bench: Bench) -> Figure:
    comparison, inputs, graph, out = graph_attention(bench)
    module = torch.npu  # type: ignore[attr-defined]
    before = None
    for lengths in replays(NEW_LENGTHS, comparison, inputs, out):
        graph.update(cpu_update_input=[cumulative(lengths, lengths)])
        graph.replay()
        module.synchronize()
        reserved = module.memory_reserved()
        if before not in (None, reserved):
            raise Wrong(f"{reserved - before} bytes more after a replay")
        before = reserved
    return f"{len(NEW_LENGTHS)} replays"


def lost_work_is_noticed(bench: Bench) -> Figure:
    """Values cross to the device and back, changed there."""
    x = torch.arange(100_003, dtype=torch.int32)
    there = x.pin_memory().to(bench.device, non_blocking=True) if bench.device.type != "cpu" else x
    back = torch.full_like(x, -1).copy_(there + 1)
    comparison = Comparison()
    comparison.add("100,003 numbers", back, x + 1, 0.0)
    return comparison.figure()


CHECKS: dict[str, Check] = {
    "copy to the device and back": lost_work_is_noticed,
    **{
        f"{name}, {NAMES[dtype]}": partial(check, dtype=dtype)
        for name, check in {
            "rms_norm": rms_norm,
            "rms_norm of each head, not contiguous": head_norm,
            "rms_norm of zeros": norm_of_zeros,
            "add_rms_norm": add_rms_norm,
            "swiglu": swiglu,
            "rotary positions": rotary,
            "matrix product": linear,
            "embedding by int32 ids": embedding,
        }.items()
        for dtype in UNIT
    },
    **{f"attention, {name}": partial(attention, name=name) for name in LENGTHS},
    "attention, head sizes": attention_head_sizes,
    "attention, alone and in a batch": attention_neighbours,
    "attention, parts of sequences": attention_of_parts,
    "graph, lengths updated before the replay": update_then_replay,
    "graph, lengths updated after the replay": replay_then_update,
    "graph, other lengths in the last call": last_call_of_its_own,
    "graph, a replay allocates nothing": replay_allocates_nothing,
    "graph, two in one memory pool": graphs_share_memory,
}
