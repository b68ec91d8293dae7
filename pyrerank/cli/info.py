"""``pyrerank info`` reports what is installed, which devices there are, and what an NPU would need.

It works where torch or the extension does not import, and says why.
"""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

from pyrerank.devices.versions import cann_home, cann_version, installed, packages


def report() -> str:
    """Returns the report, a line ``name: value`` for each fact."""
    lines = [f"python: {platform.python_version()} ({platform.platform()})"]
    lines += [f"{name}: {version}" for name, version in packages().items()]
    missing: list[str] = []
    lines += _extension(missing) + _cann(missing) + _devices(missing)
    lines.append("missing for an NPU: " + ("; ".join(missing) or "nothing"))
    return "\n".join(lines)


def _extension(missing: list[str]) -> list[str]:
    try:
        host = import_module("pyrerank._C")
    except ModuleNotFoundError:
        missing.append("the extension pyrerank._C (install a C++17 compiler, reinstall pyrerank)")
        return ["extension: was not built, for want of a compiler; plain torch runs instead"]
    except ImportError as error:
        missing.append("an extension pyrerank._C that loads (reinstall pyrerank)")
        return [f"extension: does not load ({error}); reinstall pyrerank"]
    lines = [_built(host.build_info())]
    try:
        npu = import_module("pyrerank._C_npu")
    except ModuleNotFoundError:
        missing.append("kernels compiled by CANN (source set_env.sh, reinstall pyrerank)")
    except ImportError as error:
        missing.append("kernels that load (source the set_env.sh of the CANN they were built with)")
        lines.append(f"extension for the NPU: does not load ({error}); the CPU works without it")
    else:
        lines.append(_built(npu.build_info()))
    return [*lines, f"kernels: {', '.join(host.build_info()['kernels'])}"]


def _built(info: dict[str, Any]) -> str:
    target = str(info["target"])
    if target == "npu":
        target += f" for {info['soc']}, CANN {info['cann']} by {info['flow']}"
    return f"extension: target {target}, {info['compiler']}, {info['flags']}"


def _cann(missing: list[str]) -> list[str]:
    home = cann_home()
    if not home:
        missing.append("the CANN toolkit (install it, then source its set_env.sh)")
        return ["CANN: not found (ASCEND_HOME_PATH is not set)"]
    return [f"CANN: {home}, {cann_version()}"]


def _devices(missing: list[str]) -> list[str]:
    try:
        # Where torch_npu is installed, torch imports it, and fails if it fails.
        import torch
    except Exception as error:
        missing.append("a torch that imports")
        return [f"devices: torch does not import ({error})"]
    from pyrerank.devices.cpu import multiplies_bfloat16

    native = "native" if multiplies_bfloat16() else "emulated"
    lines = [f"cpu: {torch.get_num_threads()} threads, bfloat16 {native}"]
    lines += [
        f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    if installed("torch_npu") is None:
        missing.append(f"torch_npu (pip install torch_npu=={torch.__version__.split('+')[0]})")
        return [*lines, "npu: torch_npu is not installed"]
    try:
        import torch_npu  # noqa: F401  registers torch.npu

        count = torch.npu.device_count()  # type: ignore[attr-defined]
    except Exception as error:
        missing.append("a torch_npu that imports")
        return [*lines, f"npu: torch_npu does not import ({error})"]
    if not count:
        missing.append("an NPU with its driver (npu-smi info)")
    return [*lines, f"npu: {count} devices"]
