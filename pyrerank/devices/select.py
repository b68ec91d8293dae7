"""Devices: which one to run on, and whether it still works."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

from pyrerank.checks import warn
from pyrerank.devices.versions import installed
from pyrerank.errors import DeviceError, EngineClosed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# the process that made the first engine: itself and its threads, but none that is forked from it
_owner: int | None = None


def forked() -> bool:
    """Whether this process was forked from one that ran a model.

    It has the memory of its parent then, but not its threads: the thread pools of OpenMP wait for
    ever for theirs, and CUDA and CANN refuse.
    """
    return _owner not in (None, os.getpid())


def check_process(*, claim: bool = False) -> None:
    """Refuses a `forked` process; with ``claim``, notes that this one runs models from here on.

    Raises:
        EngineClosed: this process was forked from one that ran a model.
    """
    global _owner
    if forked():
        raise EngineClosed(
            f"this process was forked from process {_owner}, which had loaded a model; a forked "
            "process cannot run one: start processes with multiprocessing.get_context('spawn'), "
            "and load the model in each"
        )
    if claim:
        _owner = os.getpid()


def resolve(device: str | torch.device | None) -> torch.device:
    """The device to run on, with its index.

    Args:
        device: ``"cpu"``, ``"npu"``, ``"npu:1"``, ``"cuda"``, ``"cuda:1"``, or the torch.device
            of one; None takes an NPU where there is one, else a CUDA device, else the CPU.  Where
            torch_npu is installed and cannot be used, a warning says why.

    Raises:
        ValueError: another device.
        TypeError: another type.
        DeviceError: no such device here, or no torch_npu that fits this torch.
    """
    if device is None:
        if _npus():
            return torch.device("npu", 0)
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(
            f"device must be a str, a torch.device or None, got {type(device).__name__}; "
            "such as 'cuda:0'"
        )
    kind, _, index = str(device).partition(":")
    if (
        kind not in ("cpu", "npu", "cuda")
        or not (index.isdecimal() or str(device) == kind)
        or (kind == "cpu" and index.strip("0"))
    ):
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


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype to run in on ``device``: as given, or bfloat16 where that is multiplied natively.

    Raises:
        ValueError: neither float32 nor bfloat16, as a str or a torch.dtype.
    """
    if dtype is None:
        native = device.type != "cpu" or cpu_multiplies_bfloat16()
        return torch.bfloat16 if native else torch.float32
    named = isinstance(dtype, (str, torch.dtype))
    chosen = DTYPES.get(str(dtype).removeprefix("torch.")) if named else None
    if chosen is None:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {dtype!r}")
    return chosen


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 dot products (AVX512-BF16, AMX, Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False  # torch is too old to tell
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def runtime(device: torch.device) -> ModuleType:
    """``torch.npu`` or ``torch.cuda``: streams, graphs and memory of an accelerator."""
    module: ModuleType = getattr(torch, device.type)
    return module


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a device or of the host was too little.

    torch's allocator for the CPU raises a RuntimeError, and only the text tells.
    """
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate" in str(error)


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


def _npus() -> int:
    """How many NPUs this process can use."""
    if installed("torch_npu") is None:
        return 0
    try:
        return int(_torch_npu().device_count())
    except DeviceError as error:
        warn(f"no NPU is used: {error}; device='cpu' or 'cuda' does without", RuntimeWarning)
        return 0


def _torch_npu() -> ModuleType:
    """Imports torch_npu, which registers ``torch.npu``, and returns that."""
    release = torch.__version__.split("+")[0]
    found = installed("torch_npu")
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
