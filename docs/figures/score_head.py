"""Draws what the instructions of `score_head` on one core wait for: `score_head.svg`.

    python docs/figures/score_head.py

The order is that of the checked simulation: for each instruction it knows which earlier ones, of
its own pipe and of others, must have ended, by the kernel's flags, queues and barriers.  How long
one takes is the estimate of `pyrerank.bench.kernels`, which nobody has measured.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pyrerank.bench.kernels import BARRIER_CYCLES, COPY_BYTES_PER_CYCLE

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[1] / "tests/support"))
from drawing import DARK, GREY, LIGHT, OTHER, OURS, frame, line, picture, rect, text  # noqa: E402
from strict_build import load_strict  # noqa: E402

PIPES = ("S", "V", "MTE2", "MTE3")
LANES = {"MTE2": "copies in", "V": "vector unit", "MTE3": "copies out"}
ROWS, WIDTH = 4, 4096
REPEAT_BYTES = 256


@dataclass(frozen=True)
class Step:
    """An instruction in time.

    Attributes:
        pipe, api: what runs where.
        part: "weights", a row's number, or "results".
        start, end: cycles.
    """

    pipe: str
    api: str
    part: str
    start: int
    end: int


def trace(kernels: ModuleType) -> list[dict[str, Any]]:
    """What one core does for ROWS rows of bfloat16."""
    hidden, norm_weight = torch.ones(ROWS, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
    index = torch.arange(ROWS, dtype=torch.int32)
    w, score, logit = torch.ones(WIDTH), torch.empty(ROWS), torch.empty(ROWS)
    tensors = (hidden, index, norm_weight, w, score, logit)
    kernels.score_head(
        *(tensor.data_ptr() for tensor in tensors),
        **{"T": ROWS, "H": WIDTH, "row_stride": WIDTH, "B": ROWS},
        **{"dtype": "bfloat16", "norm_dtype": "bfloat16", "eps": 1e-6, "bias": 0.0},
        **{"threads": 1, "stream": 0},
    )
    instructions: list[dict[str, Any]] = kernels.last_trace()
    return instructions


def schedule(instructions: list[dict[str, Any]]) -> list[Step]:
    """Each as early as those allow that it waits for; one at a time on each pipe."""
    ends: dict[str, list[int]] = {pipe: [0] for pipe in PIPES}  # of the first n instructions
    steps = []
    rows = 0
    part = "weights"
    for i in instructions:
        if i["pipe"] == "MTE2" and i["region"] == "hidden":
            part, rows = str(rows), rows + 1
        elif i["api"] == "BlockReduceSum":
            part = "results"
        others = [(p, n) for p, n in zip(PIPES, i["after"], strict=True) if p != i["pipe"]]
        start = max(ends[i["pipe"]][-1], *(ends[pipe][n] for pipe, n in others))
        end = start + cycles(i)
        ends[i["pipe"]].append(end)
        if end > start:
            steps.append(Step(i["pipe"], i["api"], part, start, end))
    return steps


def cycles(instruction: dict[str, Any]) -> int:
    if instruction["pipe"] == "S":
        return 0
    if instruction["api"] == "PipeBarrier":
        return BARRIER_CYCLES
    speed = REPEAT_BYTES if instruction["pipe"] == "V" else COPY_BYTES_PER_CYCLE
    return -(-instruction["bytes"] // speed)


def draw(steps: list[Step]) -> str:
    left, right, height, width = 96, 12, 30, 760
    scale = (width - left - right) / max(step.end for step in steps)
    tops = {pipe: 62 + 54 * n for n, pipe in enumerate(LANES)}
    parts = [
        text(0, 14, f"score_head on one core: {ROWS} rows of {WIDTH} in bfloat16"),
        text(0, 31, "Order simulated, lengths estimated, nothing measured: a cycle for"),
        text(
            0,
            48,
            f"{COPY_BYTES_PER_CYCLE} bytes of a copy, for {REPEAT_BYTES} in V, and "
            f"{BARRIER_CYCLES} for a barrier (thin line)",
        ),
    ]
    for pipe, what in LANES.items():
        parts += [text(0, tops[pipe] + 13, pipe), text(0, tops[pipe] + 27, what)]
    for step in steps:
        x, length = left + scale * step.start, scale * (step.end - step.start)
        if step.api == "PipeBarrier":
            middle = tops[step.pipe] + height / 2
            parts.append(line(x, middle, x + length, middle))
            continue
        colour = {"weights": GREY, "results": OTHER}.get(step.part, OURS)
        odd = step.part.isdigit() and int(step.part) % 2
        parts.append(rect(x, tops[step.pipe], length, height, colour, LIGHT if odd else DARK))
        parts.append(frame(x, tops[step.pipe], length, height))
    for pipe, part in dict.fromkeys((step.pipe, step.part) for step in steps):
        own = [step for step in steps if (step.pipe, step.part) == (pipe, part)]
        name = f"row {part}" if part.isdigit() else part
        middle = left + scale * (own[0].start + own[-1].end) / 2
        if pipe == "MTE3":
            parts.append(text(middle - 6, tops[pipe] + 19, name, "end"))
        else:
            parts.append(text(middle, tops[pipe] + height + 14, name, "middle"))
    axis = tops["MTE3"] + height + 18
    last = max(step.end for step in steps)
    parts.append(line(left, axis, width - right, axis))
    for cycle in range(0, last, 500):
        x = left + scale * cycle
        parts += [line(x, axis, x, axis + 4), text(x, axis + 17, cycle, "middle")]
    parts.append(text(0, axis + 5, "cycles"))
    return picture(width, int(axis + 24), "Instructions of score_head over time, by pipe", parts)


if __name__ == "__main__":
    (FOLDER / "score_head.svg").write_text(draw(schedule(trace(load_strict()))))
