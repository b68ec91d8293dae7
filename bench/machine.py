"""What a number was measured on: processor, device, versions, and whether the device is real."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SIMULATED = "SIMULATED RUNTIME: no NPU has run any of this. Times here mean nothing."


def simulated() -> bool:
    """Whether the CANN of this process is the project's own simulation (tests/cann_sim)."""
    try:
        runtime = ctypes.CDLL("libascendcl.so")  # the one torch_npu has loaded, if it has
    except OSError:
        return False
    return hasattr(runtime, "cannsim_launch")


def describe(device: torch.device) -> dict[str, Any]:
    """Everything that a figure depends on; no host name, no path."""
    packages = ("pyrerank", "torch", "torch_npu", "numpy", "tokenizers", "safetensors")
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "simulated": simulated(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cann": cann_version(),
        **{package: package_version(package) for package in packages},
    }


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^(?:model name|Model Name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{name.group(1) if name else platform.machine()}, {os.cpu_count()} logical cores"


def device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    module = getattr(torch, device.type)
    return f"{device.type}: {module.get_device_name(device)}"


def cann_version() -> str:
    """From the files that the toolkit's installer leaves; "?" where none says."""
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if not home:
        return "none (ASCEND_HOME_PATH is not set)"
    places = {
        "ascend_toolkit_install.info": r"^version=(\S+)",
        "*/ascend_toolkit_install.info": r"^version=(\S+)",  # in aarch64-linux or x86_64-linux
        "version.cfg": r"_version=\[[^]:]*:([^]]+)\]",
        "*/version.info": r"^Version=(\S+)",
    }
    for place, pattern in places.items():
        for file in sorted(Path(home).glob(place)):
            if found := re.search(pattern, file.read_text(errors="replace"), re.M):
                return found.group(1)
    return "?"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
