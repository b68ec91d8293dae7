"""The checked build of the kernels, for tests: the same sources, every hardware rule enforced, and
nothing of this machine's processor beyond what all of its kind have."""

import functools
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "tests"


@functools.cache
def build_tests() -> Path:
    """Builds the strict module and the simulator's tests; seconds when nothing changed."""
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD, "-DPYRERANK_TESTS=ON"]
    configure += ["-DPYRERANK_PORTABLE=ON"]
    configure += [f"-DPYRERANK_PYBIND11={pybind11.get_include()}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", BUILD, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"building the tests failed:\n{done.stdout[-6000:]}{done.stderr}")
    return BUILD


@functools.cache
def load_strict() -> ModuleType:
    """The module ``_C_strict``: the interface of ``pyrerank._C`` and ``set_block_order``."""
    path = build_tests() / f"_C_strict{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("_C_strict", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
