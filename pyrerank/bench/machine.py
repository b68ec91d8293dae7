"""Describes the machine of a measurement: processor, device, versions, and whether it is real."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from pyrerank.devices.select import resolve
from pyrerank.devices.versions import cann_version, packages

SIMULATED = "SIMULATED RUNTIME: no NPU has run any of this. Times here mean nothing."


def simulated() -> bool:
    """Whether this process uses the project's own simulation of CANN (tests/cann_sim)."""
    try:
        runtime = ctypes.CDLL("libascendcl.so")  # the one torch_npu has loaded, if it has
    except OSError:
        return False
    return hasattr(runtime, "cannsim_launch")


def describe(device: torch.device) -> dict[str, Any]:
    """Everything that a figure depends on, without names of hosts or paths."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": resolve(device).label,
        "simulated": simulated(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cann": cann_version(),
        **packages(),
    }


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^(?:model name|Model Name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{name.group(1) if name else platform.machine()}, {os.cpu_count()} logical cores"
