"""Devices: which one to run on, and whether it still works."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from pyrerank.errors import DeviceError, EngineClosed

# the process that made the first engine: itself and its threads, but none that is forked from it
_owner: int | None = None


def check_process(*, claim: bool = False) -> int:
    """The id of this process, if it may run models; with ``claim``, it does so from here on.

    A process that was forked from one that ran a model has the memory of its parent, but not its
    threads: the thread pools of OpenMP wait for ever for theirs, and CUDA and CANN refuse.

    Raises:
        EngineClosed: this process was forked from one that ran a model.
    """
    global _owner
    process = os.getpid()
    if _owner not in (None, process):
        raise EngineClosed(
            f"this process was forked from process {_owner}, which had loaded a model; a forked "
            "process cannot run one: start processes with multiprocessing.get_context('spawn'), "
            "and load the model in each"
        )
    if claim:
        _owner = process
    return process


def resolve(device: str | torch.device | None) -> torch.device:
    """The device to run on, with its index.

    Args:
        device: ``"cpu"``, ``"npu"``, ``"npu:1"``, ``"cuda"``, ``"cuda:1"``; None takes an NPU
            where there is one, else a CUDA device, else the CPU.

    Raises:
        ValueError: anything else.
        DeviceError: no such device here, or no torch_npu that fits this torch.
    """
    if device is None:
        if _installed("torch_npu") and _torch_npu().device_count():
            return torch.device("npu", 0)
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "npu", "cuda") or not (index.isdecimal() or str(device) == kind):
        raise ValueError(
            f"device must be 'cpu', 'npu', 'npu:N', 'cuda' or 'cuda:N', got {str(device)!r}"
        )
    if kind == "cpu":
        return torch.device("cpu")
    count = (_torch_npu() if kind == "npu" else torch.cuda).device_count()
    if int(index or 0) >= count:
        tool, visible = (
            ("npu-smi info", "ASCEND_RT_VISIBLE_DEVICES")
            if kind == "npu"
            else ("nvidia-smi", "CUDA_VISIBLE_DEVICES")
        )
        raise DeviceError(
            f"device {str(device)!r} is not there: torch finds {count} {kind} devices; see what "
            f"`{tool}` lists, and {visible}"
        )
    return torch.device(kind, int(index or 0))


def runtime(device: torch.device) -> ModuleType:
    """``torch.npu`` or ``torch.cuda``: streams, graphs and memory of an accelerator."""
    module: ModuleType = getattr(torch, device.type)
    return module


def reserve(device: torch.device, size: int) -> None:
    """Has the allocator take ``size`` bytes in one piece, from which later tensors are cut.

    Pieces taken one by one fit the sizes of one pass and not those of the next; up to as much
    again is then held, and waiting for memory interrupts the first passes.
    """
    torch.empty(size, dtype=torch.uint8, device=device)


def works(device: torch.device) -> bool:
    """Whether the device still computes: after a failure, what tells a lost one from a usable one.

    torch_npu drops work without a word once a launch has failed, so a value must come back.
    """
    try:
        answer = torch.full((2,), -1.0)
        answer.copy_(torch.arange(2.0).to(device) + 41)
        return answer.tolist() == [41.0, 42.0]
    except RuntimeError:
        return False


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch_npu() -> ModuleType:
    """Imports torch_npu, which registers ``torch.npu``, and returns that."""
    release = torch.__version__.split("+")[0]
    found = _installed("torch_npu")
    advice = f"pip install torch_npu=={release}, the release made for torch {release}"
    if found is None:
        raise DeviceError(f"device npu needs torch_npu, which is not installed: {advice}")
    if found.split(".")[:2] != release.split(".")[:2]:
        raise DeviceError(f"torch_npu {found} does not fit torch {torch.__version__}: {advice}")
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever its import runs into
        raise DeviceError(
            f"torch_npu {found} does not import ({error}); it needs CANN: "
            "source /usr/local/Ascend/ascend-toolkit/set_env.sh, then see `pyrerank info`"
        ) from error
    return runtime(torch.device("npu"))
