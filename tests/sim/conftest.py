"""Builds the two test libraries of the simulator and wraps them for the tests of this folder."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from cmake_build import build

ROOT = Path(__file__).resolve().parents[2]
COUNTERS = [
    "launches",
    "blocks",
    "gm_read_bytes",
    "gm_write_bytes",
    "copies",
    "vector_instructions",
    "vector_repeats",
    "barriers",
    "flags",
    "ub_peak_bytes",
]


class BrokenRule(Exception):
    """sim::Error, or whatever else a launch threw."""


class _Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("writable", ctypes.c_int32)]


class Simulator:
    """One of the two libraries: runs a test kernel by name on numpy arrays."""

    def __init__(self, library: Path) -> None:
        self._lib = ctypes.CDLL(str(library))

    def run(self, kernel, source, target, args, *, blocks=1, threads=1, order=0) -> np.ndarray:
        """Launches on (source, target) and returns target, which alone is writable."""
        arrays = (_Array * 2)(
            _Array(source.ctypes.data, source.nbytes, 0),
            _Array(target.ctypes.data, target.nbytes, 1),
        )
        numbers = (ctypes.c_int64 * 16)(*(ctypes.c_int64(a).value for a in args))
        text = ctypes.create_string_buffer(1024)
        failed = self._lib.sim_run(
            kernel.encode(),
            blocks,
            threads,
            order,
            arrays,
            2,
            numbers,
            text,
            ctypes.c_uint64(len(text)),
        )
        if failed:
            raise BrokenRule(text.value.decode())
        return target

    def counters(self) -> dict[str, int]:
        """The counters since the last call."""
        values = (ctypes.c_uint64 * len(COUNTERS))()
        self._lib.sim_counters(values, 1)
        return dict(zip(COUNTERS, values, strict=True))


@pytest.fixture(scope="session")
def libraries() -> dict[str, Simulator]:
    folder = build(ROOT / "tests" / "sim", ROOT / "build" / "tests-sim")
    return {name: Simulator(folder / f"sim_tests_{name}.so") for name in ("strict", "fast")}


@pytest.fixture(scope="session")
def strict(libraries) -> Simulator:
    return libraries["strict"]


@pytest.fixture(scope="session")
def fast(libraries) -> Simulator:
    return libraries["fast"]


@pytest.fixture(scope="session")
def both(libraries):
    """Runs on both builds, demands the same bits, and returns them."""

    def run(kernel, source, target, args, **launch):
        results = [s.run(kernel, source, target.copy(), args, **launch) for s in libraries.values()]
        assert results[0].tobytes() == results[1].tobytes(), (
            f"{kernel}{args}: strict and fast differ"
        )
        return results[0]

    return run


@pytest.fixture(scope="session")
def broken_rule():
    return BrokenRule
