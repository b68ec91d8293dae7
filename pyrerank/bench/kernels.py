"""``pyrerank bench kernels`` times the kernels, and the same computation in plain torch.

A kernel, its twin (a chain of torch operators, called "eager") and a plain copy take turns in every
round, so that whatever else the machine does slows all three.  Operands are in the cache, as they
are in a model, whose last layer has just written them.

It also counts what the kernels do in simulation.  An estimate for an Ascend 910B3 is computed from
these counts alone; it is no measurement.
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
from pyrerank.devices.ascend import Ascend
from pyrerank.devices.base import Accelerator, Device
from pyrerank.devices.cuda import Cuda
from pyrerank.devices.select import resolve
from pyrerank.kernels import extension, ops
from pyrerank.kernels.calls import DTYPES

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
SECONDS = 2e-3  # about how long one measurement on a CPU takes
CALLS = 20  # how many calls a measurement on a device has, and a graph
LEAST_COPY = 2**19  # bytes; the cost of the call itself does not show in copies of this size

# Numbers of an Ascend 910B3.  The first three are in platform_config/Ascend910B3.ini, which CANN
# installs (vector_core_cnt, cube_freq, ddr_rate); the fourth is in the vendor's "L2 Cache Tiling",
# https://www.hiascend.com/document/detail/en/canncommercial/850/opdevg/Ascendcopdevg/atlas_ascendc_best_practices_10_0036.html
# The barrier is assumed, because the vendor publishes nowhere how long the vector unit stands
# still.
CORES = 40
CYCLES_PER_US = 1800
COPY_BYTES_PER_CYCLE = 32  # of one core, from memory
HBM_BYTES_PER_US = 1.6e6  # of all cores
BARRIER_CYCLES = 30
LANES = 64  # floats in a repeat of 256 bytes

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kernel on one size: ``batch`` sequences, and ``tokens`` tokens of each for "mean"."""

    kernel: str
    batch: int
    width: int
    dtype: str
    tokens: int

    def least_bytes(self, cores: int = 1) -> int:
        """How many bytes must be moved: rows, ids and results once, and weights once a core."""
        ids, floats, row = 4, 4, self.width * getattr(torch, self.dtype).itemsize
        if self.kernel == "last_token_gather":
            return self.batch * (2 * row + ids)
        cores = min(cores, self.batch)
        if self.kernel == "score_head":
            return self.batch * (row + ids + 2 * floats) + cores * (row + self.width * floats)
        rows = self.tokens if self.kernel == "fused_pool mean" else 1
        return self.batch * (rows + 1) * row + (self.batch + cores) * ids + cores * row

    def least_repeats(self) -> float:
        """How many repeats the vector unit needs to go over rows of floats as often as it must."""
        if self.kernel == "last_token_gather":
            return 0
        cast = self.dtype != "float32"
        if self.kernel == "score_head":  # x * g and x * x of a row; g = norm_weight * w once
            sweeps = self.batch * (2 + cast) + 1 + cast
        else:  # squares; then norm_weight, squares, scale and the cast back
            row = 1 + cast
            if self.kernel == "fused_pool mean":  # and scale each token, add it to the first
                row = self.tokens * (3 + cast) - 1
            sweeps = self.batch * (row + 3 + cast) + cast
        return sweeps * self.width / LANES

    def calls(self, place: torch.device) -> tuple[Call, Call]:
        """The kernel and its twin, as calls on operands of their own."""
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


def measure(case: Case, device: Device, rounds: int) -> dict[str, Any]:
    """Measures kernel, twin and copy: microseconds of a call, and ratios."""
    place = device.torch_device
    kernel, eager = case.calls(place)
    half = max(case.least_bytes(), LEAST_COPY) // 2
    source, target = (torch.zeros(half, dtype=torch.uint8, device=place) for _ in range(2))
    timed: dict[str, Call] = {
        "kernel": kernel,
        "eager": eager,
        "copy": partial(target.copy_, source),
    }
    calls = {name: _calls(call, device) for name, call in timed.items()}
    if isinstance(device, Ascend):  # a graph shows the time of the device alone
        for name in ("kernel", "eager"):
            timed[f"{name}_replayed"] = _captured(timed[name])
            calls[f"{name}_replayed"] = CALLS
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(WARM_UP + rounds):
        for name in list(timed)[:: 1 if number % 2 else -1]:
            replayed = name.endswith("_replayed")
            whole = _microseconds(timed[name], 1 if replayed else calls[name], device)
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
    for suffix in ("", "_replayed") if isinstance(device, Ascend) else ("",):
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
    """The clock for a CPU: with one thread the process's own, which others cannot disturb."""
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def _calls(call: Call, device: Device) -> int:
    """How many calls one measurement has."""
    if isinstance(device, Accelerator):
        return CALLS
    for _ in range(WARM_UP):
        call()
    return max(1, round(SECONDS * 1e6 / _microseconds(call, 1, device)))


def _microseconds(call: Call, calls: int, device: Device) -> float:
    """Times ``calls`` calls one after the other, until the last returns or its device is done."""
    if not isinstance(device, Accelerator):
        now = getattr(time, clock())
        start = now()
        for _ in range(calls):
            call()
        return 1e6 * (now() - start)
    begin, end = (device.runtime.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def _captured(call: Call) -> Call:
    """Captures CALLS calls in a graph, and returns its replay."""
    npu: Any = torch.npu  # type: ignore[attr-defined]
    call()  # the first call sets up what a graph must not hold
    npu.synchronize()
    graph = npu.NPUGraph()
    with npu.graph(graph):
        results = [call() for _ in range(CALLS)]
    return lambda: (graph.replay(), results)  # the graph writes to the results, so they must live


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and "empty" not in func.name()
        return func(*args, **(kwargs or {}))


def operators(call: Call) -> int:
    """How many operators of torch in a call compute or copy, each by at least one launch."""
    with _Operators() as seen:
        call()
    return seen.count


# ---- counts, and what they would take -----------------------------------------------------------


def counts(case: Case) -> dict[str, int]:
    """What the simulation counts when one core executes the kernel."""
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
    """Estimates the time on an Ascend 910B3, without the launch.

    It is the longest of three times: memory's, and those of copies and of the vector unit of the
    core that has the largest share of the batch.  That core does what one core does for a batch of
    this size.  The vector unit takes a cycle for each repeat, and BARRIER_CYCLES to start again
    after a barrier.  Copies and arithmetic overlap.
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


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all cases that the arguments ask for."""
    device = resolve(arguments.device)
    if isinstance(device, Cuda) or extension._C is None:
        why = "there are no kernels for CUDA" if extension._C else "the extension was not built"
        raise ValueError(f"device {device}: {why}, so there is nothing to measure")
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
                        row |= measure(case, device, arguments.rounds)
                        row |= {"counts": counts(case), "estimate_910b3": estimate(case)}
                        rows.append(row)
    return {
        "command": "pyrerank bench kernels",
        "machine": machine.describe(device.torch_device),
        "clock": "device events" if isinstance(device, Accelerator) else clock(),
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
        import_module("matplotlib")  # if it is missing, that shows before the work
    measured = report(arguments)
    print(bench_report.markdown(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    if arguments.plot:
        bench_report.plot(measured, arguments.plot)
    return 0
