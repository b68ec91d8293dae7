"""Checks what pictures need: the operators of the vision tower, the tower, and whole scores.

As in `checks.operators`, each against the same in float32 on the CPU, and through the engine's own
functions where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from checks import Bench, Check, Comparison, Figure, Skip, Wrong, record
from checks.engine import DTYPES, bound, model
from checks.operators import EPS, NAMES, UNIT, attention_inputs, moved, normal, slack
from pyrerank import Reranker
from pyrerank.devices.select import resolve
from pyrerank.model.vision import VisionTower
from pyrerank.weights.checkpoint import open_checkpoint

# hidden_size and intermediate_size of the towers of 2B and 8B; their 16 heads are of 64 and 72
TOWERS = [(1024, 4096), (1152, 4304)]
ROWS = [4, 1024]
PATCHES = {
    "one picture": [[1024], [4]],
    "several pictures": [[256, 4, 64, 1024], [252] * 9],
    "many pictures": [[16] * 300],
    "a large picture": [[7200]],
}
SHAPE = "tiny-VL"


# ---- operators ----------------------------------------------------------------------------------


def layer_norm(bench: Bench, dtype: torch.dtype) -> Figure:
    """LayerNorm of each patch, and of blocks of four."""
    comparison = Comparison()
    for width in [w for hidden, _ in TOWERS for w in (hidden, 4 * hidden)]:
        weight, bias = 1 + 0.2 * normal(width, dtype=dtype), normal(width, dtype=dtype)
        for rows in ROWS:
            x = 3 * normal(rows, width, dtype=dtype) + 1
            there = [tensor.to(bench.device) for tensor in (x, weight, bias)]
            got = F.layer_norm(there[0], (width,), there[1], there[2], EPS)
            x = x.float() - x.float().mean(-1, keepdim=True)
            scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.float()
            size = scaled.abs() + bias.float().abs()
            tolerance = (3 * size + 8 * slack(dtype)) * UNIT[dtype] + 1e-6
            comparison.add(f"{rows} x {width}", got, scaled + bias.float(), tolerance)
    return comparison.figure()


def gelu(bench: Bench, dtype: torch.dtype, approximate: str) -> Figure:
    """The two forms differ by up to 5e-4, and by the most where x is about 2."""
    comparison = Comparison()
    for _, width in TOWERS:
        x = 3 * normal(129, width, dtype=dtype)
        got = bench.on.gelu(x.to(bench.device), approximate)
        want = F.gelu(x.double(), approximate=approximate)
        tolerance = 2 * UNIT[dtype] * want.abs() + (4e-6 if dtype == torch.float32 else 1e-4)
        comparison.add(f"129 x {width}", got, want, tolerance)
    return comparison.figure()


def linear(bench: Bench, dtype: torch.dtype) -> Figure:
    """Products with a bias use another operator than the decoder's."""
    comparison = Comparison()
    for inner, width in TOWERS:
        sizes = ((7, inner), (width, inner), (width,))
        x, weight, bias = (normal(*size, dtype=dtype) for size in sizes)
        got = F.linear(*(tensor.to(bench.device) for tensor in (x, weight, bias)))
        x, weight, bias = x.double(), weight.double(), bias.double()
        want, size = x @ weight.T + bias, x.abs() @ weight.abs().T + bias.abs()
        # the product and the sum are rounded
        tolerance = UNIT[dtype] * (2 * want.abs() + bias.abs()) + 2e-6 * size
        comparison.add(f"7 x {inner} x {width}", got, want, tolerance)
    return comparison.figure()


def rotary(bench: Bench) -> Figure:
    """Rotation in float32 of a part of a wider tensor, for heads of 64 and 72."""
    comparison = Comparison()
    for width in (64, 72):
        qkv = normal(129, 48, width)
        angle = normal(129, width // 2) * 10
        angle = torch.cat((angle, angle), -1)[:, None]
        x, cos, sin = qkv[:, 16:32], angle.cos(), angle.sin()
        a, b = x.chunk(2, -1)
        want = x * cos + torch.cat((-b, a), -1) * sin
        part = qkv.to(bench.device)[:, 16:32]
        got = bench.on.rotate(part, cos.to(bench.device), sin.to(bench.device))
        comparison.add(f"heads of {width}", got, want, 4 * 2**-23 * x.abs().amax())
    return comparison.figure()


def full_attention(bench: Bench, name: str, head_dim: int) -> Figure:
    """Every patch attends to all of its picture, with all pictures in one call."""
    comparison = Comparison()
    for lengths in PATCHES[name]:
        heads = 2 if bench.quick or sum(lengths) > 4000 else 16
        if bench.quick:
            lengths = [min(length, 1800) for length in lengths]
        inputs = attention_inputs(sum(lengths), heads, heads, head_dim)
        got = bench.on.full_attention(*moved(inputs, bench.device), list(lengths))
        want, size = pictures_want(*inputs, lengths)
        shown = str(lengths) if len(lengths) < 9 else f"{len(lengths)} pictures"
        comparison.add(f"{shown}, {heads} heads", got, want, 4 * UNIT[torch.bfloat16] * size)
    return comparison.figure()


def pictures_want(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attention on the CPU, and the same of the values' magnitudes."""
    pieces: list[list[Tensor]] = [[], []]
    for piece in zip(*(t.float().split(list(lengths)) for t in (q, k, v)), strict=True):
        q_, k_, v_ = (t.transpose(0, 1)[None] for t in piece)
        for out, values in zip(pieces, (v_, v_.abs()), strict=True):
            mixed = F.scaled_dot_product_attention(q_, k_, values)
            out.append(mixed[0].transpose(0, 1))
    return torch.cat(pieces[0]), torch.cat(pieces[1])


INDEX = [[7, 0, 63, 20], [5, 6, 5, 5], [9] * 4]  # padding repeats the first entry


def index_copy(bench: Bench, dtype: torch.dtype) -> Figure:
    """Rows are written by an int64 index; those with an equal place are equal."""
    comparison = Comparison()
    for index in INDEX:
        x, rows = normal(64, 1024, dtype=dtype), normal(len(index), 1024, dtype=dtype)
        rows = rows[[index.index(place) for place in index]]
        there = torch.tensor(index, dtype=torch.int32).to(bench.device).long()
        got = x.to(bench.device).index_copy_(0, there, rows.to(bench.device))
        want = x.clone()
        want[index] = rows
        comparison.add(str(index), got, want, 0.0)
    return comparison.figure()


def index_copy_in_a_graph(bench: Bench, dtype: torch.dtype) -> Figure:
    """A graph adds rows as a decoder layer does, with another index and other rows each time."""
    x = normal(64, 1024, dtype=dtype)
    there, rows = x.to(bench.device), torch.zeros(4, 1024, dtype=dtype, device=bench.device)
    index = torch.zeros(4, dtype=torch.int32, device=bench.device)

    def step() -> Tensor:
        places = index.long()
        delta = there + 0
        return delta.index_copy_(0, places, delta.index_select(0, places).add_(rows))

    graph, out = record(bench, step)
    comparison = Comparison()
    for number, places in enumerate(INDEX):
        new = normal(4 + number, 1024, dtype=dtype)[number:]
        new = new[[places.index(place) for place in places]]
        index.copy_(torch.tensor(places, dtype=torch.int32))
        rows.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        want = x.double()
        want[places] += new.double()
        comparison.add(str(places), out, want, 1.01 * UNIT[dtype] * want.abs())
    return comparison.figure()


# ---- the tower and whole scores -----------------------------------------------------------------


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tower(bench: Bench, dtype: torch.dtype) -> Figure:
    """One pass makes the features of pictures of several sizes and of a video."""
    checkpoint = open_checkpoint(model(bench, SHAPE))
    grids = [(1, 4, 6), (1, 2, 2), (3, 8, 6), (1, 20, 14)]
    x = normal(sum(t * h * w for t, h, w in grids), 1536, dtype=torch.bfloat16)
    on_cpu = partial(VisionTower.load, checkpoint, resolve("cpu"), torch.float32)
    want = kept(bench, f"{SHAPE}-features.pt", lambda: on_cpu()(x, grids))
    got = VisionTower.load(checkpoint, bench.on, dtype)(x, grids)
    comparison = Comparison()
    # features have a deviation of about 1
    comparison.add("4 pictures", got, want, 0.1 if dtype == torch.bfloat16 else 1e-4)
    return comparison.figure()


def kept(bench: Bench, name: str, make: Callable[[], Tensor]) -> Tensor:
    """A reference of the CPU in float32, which is made once for all processes."""
    file = bench.work / name
    if not file.is_file():
        torch.save(make(), file)
    return torch.load(file)


QUERY = "Which picture shows this?"
DOCUMENTS: list[Any] = [
    {"image": picture(1, 64, 96)},
    "words alone",
    {"image": picture(2, 128, 96), "text": "noise"},
    {"video": [picture(seed, 64, 64) for seed in range(3, 8)]},
    {"image": [picture(8, 64, 64), picture(9, 96, 224)], "text": "two of them"},
]


def scores(engine: Reranker) -> Tensor:
    """Scores the documents, then their pictures alone in another order."""
    twice = engine.score(QUERY, DOCUMENTS) + engine.score({"image": picture(1, 64, 96)}, DOCUMENTS)
    return torch.tensor(twice + engine.score(QUERY, DOCUMENTS[:3][::-1]))


def against_cpu(bench: Bench, dtype: str, graph: bool) -> Figure:
    if graph and bench.device.type == "cpu":
        raise Skip("graphs of an NPU")
    folder = model(bench, SHAPE)
    options: dict[str, Any] = {"graph": graph, "token_budget": 512}
    on_cpu = partial(Reranker, folder, device="cpu", dtype="float32")
    want = kept(bench, f"{SHAPE}-scores.pt", lambda: scores(on_cpu()))
    engine = Reranker(folder, device=bench.device, dtype=dtype, **options)
    comparison = Comparison()
    for turn in range(2):  # the second finds every graph captured and every picture encoded
        comparison.add(f"turn {turn + 1}", scores(engine), want, bound(SHAPE, dtype))
    if engine.core.features is None or engine.core.features.encoded != 5:
        raise Wrong("pictures were not encoded once each")
    if not graph:
        return comparison.figure()
    graphs = engine.core.graphs
    if graphs is None:
        raise Wrong("the engine gave up its graphs, and says why in a warning")
    return f"{comparison.figure()}; {graphs.captures} graphs, {graphs.replays} replays"


CHECKS: dict[str, Check] = {
    **{
        f"{name}, {NAMES[dtype]}": partial(check, dtype=dtype)
        for name, check in {
            "layer_norm": layer_norm,
            "gelu": partial(gelu, approximate="none"),
            "gelu in its tanh form": partial(gelu, approximate="tanh"),
            "matrix product with a bias": linear,
            "index_copy_": index_copy,
            "index_copy_ in a graph": index_copy_in_a_graph,
        }.items()
        for dtype in UNIT
    },
    "rotary positions of the tower, float32": rotary,
    **{
        f"attention of {name}, heads of {head_dim}": partial(
            full_attention, name=name, head_dim=head_dim
        )
        for name in PATCHES
        for head_dim in (64, 72)
    },
    **{f"a tower's pass, {NAMES[dtype]}": partial(tower, dtype=dtype) for dtype in UNIT},
    **{
        f"{SHAPE}, {dtype}, {'replayed' if graph else 'eager'}, against the CPU": partial(
            against_cpu, dtype=dtype, graph=graph
        )
        for dtype in DTYPES
        for graph in (False, True)
    },
}
