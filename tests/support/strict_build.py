"""The checked build of the kernels, for tests.

It has the same sources, enforces every rule of the hardware, and uses no instructions that only
some processors have.
"""

import functools
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from cmake_build import build

ROOT = Path(__file__).parents[2]


@functools.cache
def build_tests() -> Path:
    """Builds the strict module and the simulator's tests; seconds when nothing changed."""
    return build(
        ROOT,
        ROOT / "build" / "tests",
        "-DPYRERANK_TESTS=ON",
        "-DPYRERANK_PORTABLE=ON",
        f"-DPYRERANK_PYBIND11={pybind11.get_include()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )


@functools.cache
def load_strict() -> ModuleType:
    """The module ``_C_strict``: the interface of ``pyrerank._C`` and ``set_block_order``."""
    path = build_tests() / f"_C_strict{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("_C_strict", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
