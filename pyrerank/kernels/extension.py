"""The compiled modules: `pyrerank._C` for the host's processor, and ``pyrerank._C_npu`` for NPUs.

Both take addresses, sizes and a stream, and know nothing of torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from pyrerank.errors import DeviceError

# The kernels for the host's processor.  None: pyrerank was installed without a compiler.
_C: Any
try:
    _C = import_module("pyrerank._C")
except ModuleNotFoundError:  # an extension that is there and broken raises ImportError
    _C = None
if _C is not None and _C.build_info()["target"] != "cpu":
    _C = None  # an older build's, whose kernels would take the host's addresses for an NPU's


def addresses(*tensors: Any) -> list[int]:
    """Where tensors lie in memory; 0 stands for one that is None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


@cache
def npu_kernels() -> Any:
    """The module that CANN compiled.

    Where nothing was built with CANN, it is the module for the host's processor, which launches its
    kernels on a simulated NPU, and refuses to on a real one.

    Raises:
        DeviceError: the libraries of CANN do not load.
    """
    try:
        return import_module("pyrerank._C_npu")
    except ModuleNotFoundError:
        return _C
    except ImportError as error:
        raise DeviceError(
            f"pyrerank's kernels for the NPU do not load ({error}): source the set_env.sh of the "
            "CANN toolkit that they were built with, or reinstall pyrerank; device='cpu' works "
            "without them"
        ) from error
