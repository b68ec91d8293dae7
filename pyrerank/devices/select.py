"""Finds the device that a caller names."""

from __future__ import annotations

import os

import torch

from pyrerank.devices.ascend import Ascend
from pyrerank.devices.base import Device
from pyrerank.devices.cpu import Cpu
from pyrerank.devices.cuda import Cuda
from pyrerank.errors import DeviceError, EngineClosed

KINDS: tuple[type[Device], ...] = (Ascend, Cuda, Cpu)  # the first that is here is taken
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_owner: int | None = None


def forked() -> bool:
    """Whether this process was forked from one that ran a model, for whose threads OpenMP would
    wait for ever, and whose devices CUDA and CANN refuse."""
    return _owner not in (None, os.getpid())


def check_process(*, claim: bool = False) -> None:
    """Raises `EngineClosed` in a `forked` process; with ``claim``, notes that this one runs models
    from here on."""
    global _owner
    if forked():
        raise EngineClosed(
            f"this process was forked from process {_owner}, which had loaded a model; a forked "
            "process cannot run one: start processes with multiprocessing.get_context('spawn'), "
            "and load the model in each"
        )
    if claim:
        _owner = os.getpid()


def resolve(device: str | torch.device | None) -> Device:
    """The device to run on, as `Reranker` takes it; raises `DeviceError` if it is not there, or no
    torch_npu that fits this torch."""
    if device is None:
        return next(kind.at(0) for kind in KINDS if kind.is_here())
    if not isinstance(device, (str, torch.device)):
        raise TypeError(
            f"device must be a str, a torch.device or None, got {type(device).__name__}; "
            "such as 'cuda:0'"
        )
    name, _, index = str(device).partition(":")
    kind = next((kind for kind in KINDS if kind.name == name), None)
    if (
        kind is None
        or not (index.isdecimal() or str(device) == name)
        or (kind is Cpu and index.strip("0"))
    ):
        raise ValueError(
            f"device must be 'cpu', 'npu', 'npu:N', 'cuda' or 'cuda:N', got {str(device)!r}"
        )
    count = kind.count()
    if int(index or 0) >= count:
        raise DeviceError(
            f"device {str(device)!r} is not there: torch finds {count} {name} devices; see what "
            f"{kind.shown_by}"
        )
    return kind.at(int(index or 0))


def resolve_dtype(dtype: str | torch.dtype | None, device: Device) -> torch.dtype:
    """The dtype to run in on ``device``; raises ValueError for neither float32 nor bfloat16."""
    if dtype is None:
        return device.default_dtype
    named = isinstance(dtype, (str, torch.dtype))
    chosen = DTYPES.get(str(dtype).removeprefix("torch.")) if named else None
    if chosen is None:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {dtype!r}")
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a device or of the host was too little."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    # torch's allocator for the CPU raises a RuntimeError, and only the text tells
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate" in str(error)
