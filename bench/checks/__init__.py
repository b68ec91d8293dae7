"""The checks of bench/check_npu.py. Each group is a module, and they come in the order of GROUPS.

A check is a function that takes a `Bench`. It returns its figure, which is one line of text, or a
pair of the figure and data for the report. It raises `Wrong` if a result is wrong, and `Skip` if it
cannot run here. Any other exception fails the check and ends the process, because the device may
not be usable after it; the next check then starts in a new process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrerank.devices.base import Device
from pyrerank.devices.select import resolve

GROUPS = ("environment", "kernels", "operators", "engine", "vision", "memory", "speed")


@dataclass(frozen=True)
class Bench:
    """Says where and how thoroughly to check.

    Attributes:
        place: the device by name: "npu:0" is no `torch.device` before torch_npu is imported.
        work: a folder that all processes share.
    """

    place: str
    quick: bool
    work: Path

    @property
    def device(self) -> torch.device:
        return torch.device(self.place)

    @property
    def on(self) -> Device:
        """The object that computes there."""
        return resolve(self.device)

    def synchronize(self) -> None:
        self.on.synchronize()


Figure = str | tuple[str, Any]
Check = Callable[[Bench], Figure]


class Wrong(AssertionError):
    """A result is not what it should be."""


class Skip(Exception):
    """A check cannot run here."""


def checks(group: str) -> dict[str, Check]:
    """The checks of a group by name, in order."""
    result: dict[str, Check] = import_module(f"checks.{group}").CHECKS
    return result


class Comparison:
    """Collects differences over several cases, each as a share of what is tolerated."""

    def __init__(self) -> None:
        self.cases = 0
        self.worst, self.where = 0.0, ""

    def add(self, case: str, got: Tensor, want: Tensor, tolerance: Tensor | float) -> None:
        """Raises `Wrong` at the first place beyond ``tolerance``; NaNs must be in the same places.

        ``tolerance`` has the shape of ``want``, or one that broadcasts to it.
        """
        got = got.detach().cpu().double()
        want = want.detach().cpu().double()
        if got.shape != want.shape:
            raise Wrong(f"{case}: got shape {tuple(got.shape)}, wanted {tuple(want.shape)}")
        self.cases += 1
        share = (got - want).abs() / torch.as_tensor(tolerance, dtype=torch.float64)
        share[got == want] = 0  # holds where both are infinite, or the tolerance is 0
        share[got.isnan() & want.isnan()] = 0
        share[share.isnan()] = torch.inf
        if not share.numel():
            return
        most = share.max().item()
        if most > 1:
            place = tuple(int(i) for i in (share > 1).nonzero()[0])
            raise Wrong(
                f"{case}: at {place} got {got[place].item():.6g}, wanted {want[place].item():.6g}; "
                f"{int((share > 1).sum())} of {share.numel()} values differ, by up to "
                f"{most:.3g} times what is tolerated"
            )
        if most >= self.worst:
            self.worst, self.where = most, case

    def figure(self) -> str:
        return f"{self.cases} cases, at most {self.worst:.2f} of the tolerance ({self.where})"


def record(bench: Bench, function: Callable[[], Any], *, update: bool = False) -> tuple[Any, Any]:
    """Captures one call in a graph; returns the graph, and the tensors that its replays write.

    With ``update``, `NPUGraph.update` can change the lengths of fused attention in it.
    """
    if bench.device.type != "npu":
        raise Skip("graphs of an NPU")
    import torch_npu

    function()  # the first call sets up what a graph must not hold
    bench.synchronize()
    graph = torch_npu.npu.NPUGraph()
    with torch_npu.npu.graph(graph, auto_dispatch_capture=update):
        out = function()
    return graph, out
