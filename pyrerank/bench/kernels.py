"""``pyrerank bench kernels``: the kernels against the same in plain torch, on one device.

A kernel, its twin in `ops` (a chain of torch operators: "eager") and a plain copy take turns in
every round, so that whatever else the machine does meets all three. Operands are in the cache, as
they are behind the layer that has just written them.

It also counts what the kernels do in simulation. From these counts alone comes an estimate for an
Ascend 910B3, which is no measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrerank.bench import machine
from pyrerank.bench import report as bench_report
from pyrerank.devices import select as device
from pyrerank.kernels import extension, ops
from pyrerank.kernels.checks import DTYPES

KERNELS = (
    "last_token_gather",
    "score_head",
    "fused_pool last",
    "fused_pool mean",
    "fused_pool cls",
)
WIDTHS = (1024, 2048, 2560, 4096)  # hidden_size of 0.6B, VL-2B, 4B and 8B
BATCHES = (1, 8, 32, 128)
WARM_UP = 3  # rounds that are not counted
SECONDS = 2e-3  # about what one measurement on a CPU takes
CALLS = 20  # of one measurement on a device, and in one graph
LEAST_COPY = 2**19  # bytes; the cost of the call itself does not show in copies of as many

# An Ascend 910B3. The first three are of the platform_config/Ascend910B3.ini that CANN installs
# (vector_core_cnt, cube_freq, ddr_rate), the fourth of the vendor's "L2 Cache Tiling",
# https://www.hiascend.com/document/detail/en/canncommercial/850/opdevg/Ascendcopdevg/atlas_ascendc_best_practices_10_0036.html
# the last is assumed: how long the vector unit stands still is published nowhere.
CORES = 40
CYCLES_PER_US = 1800
COPY_BYTES_PER_CYCLE = 32  # of one core, from memory
HBM_BYTES_PER_US = 1.6e6  # of all cores
BARRIER_CYCLES = 30
LANES = 64  # floats in a repeat of 256 bytes

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kernel on one size: ``batch`` sequences, of which "mean" reads all ``tokens``."""

    kernel: str
    batch: int
    width: int
    dtype: str
    tokens: int

    def least_bytes(self, cores: int = 1) -> int:
        """What has to be read and written: rows, ids and results once, weights once a core."""
        ids, floats, row = 4, 4, self.width * getattr(torch, self.dtype).itemsize
        if self.kernel == "last_token_gather":
            return self.batch * (2 * row + ids)
        cores = min(cores, self.batch)
        if self.kernel == "score_head":
            return self.batch * (row + ids + 2 * floats) + cores * (row + self.width * floats)
        rows = self.tokens if self.kernel == "fused_pool mean" else 1
        return self.batch * (rows + 1) * row + (self.batch + cores) * ids + cores * row

    def least_repeats(self) -> float:
        """Passes of the vector unit over rows of floats that cannot be saved, in its repeats."""
        if self.kernel == "last_token_gather":
            return 0
        cast = self.dtype != "float32"
        if self.kernel == "score_head":  # x * g and x * x of a row; g = norm_weight * w once
            passes = self.batch * (2 + cast) + 1 + cast
        else:  # squares; then norm_weight, squares, scale and the cast back
            row = 1 + cast
            if self.kernel == "fused_pool mean":  # and scale each token, add it to the first
                row = self.tokens * (3 + cast) - 1
            passes = self.batch * (row + 3 + cast) + cast
        return passes * self.width / LANES

    def calls(self, place: torch.device) -> tuple[Call, Call]:
        """The kernel and its twin, on operands of their own."""
        length = self.tokens if self.kernel == "fused_pool mean" else 2
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(self.batch * length, self.width, generator=generator).to(place, dtype)
        cu_seqlens = torch.arange(0, len(hidden) + 1, length, dtype=torch.int32).to(place)
        last = cu_seqlens[1:] - 1
        gain = (1 + 0.2 * torch.randn(self.width, generator=generator)).to(place, dtype)
        w = (torch.randn(self.width, generator=generator) / math.sqrt(self.width)).to(place)
        name, _, mode = self.kernel.partition(" ")
        kernel, twin = getattr(ops, name), getattr(ops, f"{name}_reference")
        if name == "last_token_gather":
            return partial(kernel, hidden, index=last), partial(twin, hidden, index=last)
        arguments: tuple[Any, ...] = (hidden, last, gain, 1e-6, w)
        if name == "fused_pool":
            arguments = (hidden, cu_seqlens, gain, 1e-6, mode)
        return partial(kernel, *arguments), partial(twin, *arguments)


# ---- time ---------------------------------------------------------------------------------------


def measure(case: Case, place: torch.device, rounds: int) -> dict[str, Any]:
    """Microseconds of a call of each, and what follows from them."""
    kernel, eager = case.calls(place)
    half = max(case.least_bytes(), LEAST_COPY) // 2
    source, target = (torch.zeros(half, dtype=torch.uint8, device=place) for _ in range(2))
    runs: dict[str, Call] = {
        "kernel": kernel,
        "eager": eager,
        "copy": partial(target.copy_, source),
    }
    calls = {name: _calls(run, place) for name, run in runs.items()}
    if place.type == "npu":  # the device alone: what a replayed pass pays
        for name in ("kernel", "eager"):
            runs[f"{name}_replayed"] = _captured(runs[name])
            calls[f"{name}_replayed"] = CALLS
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            replayed = name.endswith("_replayed")
            whole = _microseconds(runs[name], 1 if replayed else calls[name], place)
            taken[name].append(whole / calls[name])
    taken = {name: times[WARM_UP:] for name, times in taken.items()}

    least = case.least_bytes()
    floors = [least * time / (2 * half) for time in taken["copy"]]
    result: dict[str, Any] = {
        "least_bytes": least,
        "least_repeats": case.least_repeats(),
        "eager_operators": operators(eager),
        "copy_gb_per_s": 2e-3 * half / statistics.median(taken["copy"]),
        "floor_us": statistics.median(floors),
    }
    del taken["copy"]
    result |= {f"{name}_us": quartiles(times) for name, times in taken.items()}
    for suffix in ("", "_replayed") if place.type == "npu" else ("",):
        ours = taken[f"kernel{suffix}"]
        result |= {
            f"gb_per_s{suffix}": 1e-3 * least / statistics.median(ours),
            f"share_of_floor{suffix}": quartiles(_ratios(floors, ours)),
            f"eager_over_kernel{suffix}": quartiles(_ratios(taken[f"eager{suffix}"], ours)),
        }
    return result


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": low, "q3": high}


def clock() -> str:
    """Of a CPU: its time in this process where one thread computes, which no other can disturb."""
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def _calls(run: Call, place: torch.device) -> int:
    """How many a measurement takes."""
    if place.type != "cpu":
        return CALLS
    for _ in range(WARM_UP):
        run()
    return max(1, round(SECONDS * 1e6 / _microseconds(run, 1, place)))


def _microseconds(run: Call, calls: int, place: torch.device) -> float:
    """Of ``calls`` one after the other: until the last has returned, or the device has done it."""
    if place.type == "cpu":
        now = getattr(time, clock())
        start = now()
        for _ in range(calls):
            run()
        return 1e6 * (now() - start)
    begin, end = (device.runtime(place).Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def _captured(run: Call) -> Call:
    """Replays CALLS calls."""
    npu: Any = torch.npu  # type: ignore[attr-defined]
    run()  # whatever is set up at the first call is not for the graph
    npu.synchronize()
    graph = npu.NPUGraph()
    with npu.graph(graph):
        results = [run() for _ in range(CALLS)]
    return lambda: (graph.replay(), results)  # which the graph writes to: they must live


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and "empty" not in func.name()
        return func(*args, **(kwargs or {}))


def operators(run: Call) -> int:
    """Operators of torch in a call that compute or copy: a launch each on a device, or more."""
    with _Operators() as seen:
        run()
    return seen.count


# ---- counts, and what they would take -----------------------------------------------------------


def counts(case: Case) -> dict[str, int]:
    """What the simulation counts when one core runs the kernel."""
    threads = torch.get_num_threads()
    kernel, _ = case.calls(torch.device("cpu"))
    torch.set_num_threads(1)
    try:
        extension._C.reset_counters()
        kernel()
        counters: dict[str, int] = extension._C.counters()
    finally:
        torch.set_num_threads(threads)
    return counters | {"bytes": counters["gm_read_bytes"] + counters["gm_write_bytes"]}


def estimate(case: Case) -> dict[str, Any]:
    """Of an Ascend 910B3: the slowest of memory, the busiest core's copies and its vector unit.

    That core does for its share of the batch what it does for a batch of that size. Its vector unit
    takes a cycle a repeat, and BARRIER_CYCLES to start again behind a barrier. Copies and
    arithmetic overlap. The launch comes on top.
    """
    blocks = min(case.batch, CORES)
    share, more = divmod(case.batch, blocks)
    busiest = counts(replace(case, batch=share + (more > 0)))
    moved = more * busiest["bytes"]
    moved += (blocks - more) * counts(replace(case, batch=share))["bytes"]
    cycles = busiest["vector_repeats"] + BARRIER_CYCLES * busiest["barriers"]
    times = {
        "memory_us": case.least_bytes() / HBM_BYTES_PER_US,
        "copies_us": busiest["bytes"] / COPY_BYTES_PER_CYCLE / CYCLES_PER_US,
        "vector_us": cycles / CYCLES_PER_US,
    }
    return {
        "blocks": blocks,
        "bytes": moved,
        "least_bytes": case.least_bytes(CORES),
        **times,
        "work_us": max(times.values()),
    }


# ---- the command --------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    place = device.resolve(arguments.device)
    if place.type == "cuda" or extension._C is None:
        why = "there are no kernels for CUDA" if extension._C else "the extension was not built"
        raise ValueError(f"device {place}: {why}, so there is nothing to measure")
    rows = []
    with torch.inference_mode():
        for kernel in arguments.kernels:
            for dtype in arguments.dtype:
                for width in arguments.hidden:
                    for batch in arguments.batch:
                        case = Case(kernel, batch, width, dtype, arguments.tokens)
                        row: dict[str, Any] = {
                            "kernel": kernel,
                            "B": batch,
                            "H": width,
                            "dtype": dtype,
                            "tokens": arguments.tokens if kernel == "fused_pool mean" else 1,
                        }
                        row |= measure(case, place, arguments.rounds)
                        row |= {"counts": counts(case), "estimate_910b3": estimate(case)}
                        rows.append(row)
    return {
        "command": "pyrerank bench kernels",
        "machine": machine.describe(place),
        "clock": clock() if place.type == "cpu" else "device events",
        "rounds": arguments.rounds,
        "rows": rows,
    }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "pyrerank bench kernels", description="Times the kernels against the same in plain torch."
    )
    result.add_argument("--device", help="cpu or npu[:N] (default: the best there is)")
    result.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, metavar="NAME")
    result.add_argument("--batch", type=int, nargs="+", default=BATCHES, metavar="B")
    result.add_argument("--hidden", type=int, nargs="+", default=WIDTHS, metavar="H")
    result.add_argument(
        "--dtype", nargs="+", choices=DTYPES.values(), default=["bfloat16", "float32"]
    )
    result.add_argument("--tokens", type=int, default=64, help="of a sequence, for mean")
    result.add_argument("--rounds", type=int, default=20)
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    result.add_argument("--plot", type=Path, metavar="FILE", help="draw them; needs matplotlib")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.plot:
        import_module("matplotlib")  # that it is missing is to show before the work
    report = run(arguments)
    print(bench_report.markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        bench_report.plot(report, arguments.plot)
    return 0
