"""Builds the simulated CANN, loads it into this process, reads its counters, breaks it on demand.

See README.md. ``load`` comes before torch_npu is imported, which ``import torch`` does by itself
unless TORCH_DEVICE_BACKEND_AUTOLOAD=0; a subprocess gets ``environment`` instead.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parents[1]

# Run by the interpreter the libraries are for. It imports nothing: torch_npu needs what is built.
_FACTS = """
import importlib.metadata as m, importlib.util as u, json, sys
def folder(name):
    spec = u.find_spec(name)
    return list(spec.submodule_search_locations)[0] if spec else None
print(json.dumps({
    "tag": f"cp{sys.version_info[0]}{sys.version_info[1]}",
    "folders": {n: folder(n) for n in ("torch", "torch_npu")},
    "versions": {n: m.version(n) for n in ("torch", "torch_npu") if folder(n)},
}))
"""


def build(python: str = sys.executable) -> Path:
    """Builds for the torch and torch_npu of ``python``, if anything changed; returns the home."""
    facts = json.loads(subprocess.check_output([python, "-c", _FACTS], text=True))
    for name, folder in facts["folders"].items():
        if folder is None:
            raise RuntimeError(f"the simulated CANN is compiled against {name}: {python} lacks it")
    out = ROOT / "build" / f"cann-sim-{facts['tag']}"
    home = out / "home"
    out.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-G", "Ninja", "-S", SOURCES, "-B", out / "cmake"]
    configure += [f"-DCANN_SIM_HOME={home}"]
    configure += [f"-DTORCH_DIR={facts['folders']['torch']}"]
    configure += [f"-DTORCH_NPU_DIR={facts['folders']['torch_npu']}"]
    configure += [
        "-DCANN_SIM_AGAINST=" + " ".join(f"{n}-{v}" for n, v in facts["versions"].items())
    ]
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        for command in (configure, ["cmake", "--build", out / "cmake", "-j", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(
                    f"building the simulated CANN failed:\n{done.stdout[-6000:]}{done.stderr}"
                )
    return home


def environment(home: Path) -> dict[str, str]:
    """The environment a subprocess needs to find the simulated CANN, to lay over its own."""
    return {
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
        "ASCEND_GLOBAL_LOG_LEVEL": "2",  # op-plugin then says which operator is missing
        "LD_LIBRARY_PATH": f"{home}/lib64:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
    }


def load(home: Path) -> Simulation:
    """Loads the libraries for the whole process; a second call does nothing new."""
    found = environment(home)
    del found["LD_LIBRARY_PATH"]  # read by the loader when a process starts: no use here
    sourced = os.environ.get("ASCEND_HOME_PATH", str(home))
    if sourced != str(home):
        raise RuntimeError(f"ASCEND_HOME_PATH is {sourced}: unset it to load the simulated CANN")
    os.environ.update(found)

    # The loader takes a library that is already there for any later request of its name.
    def open_library(name: str) -> ctypes.CDLL:
        return ctypes.CDLL(str(home / "lib64" / name), ctypes.RTLD_GLOBAL)

    runtime = open_library("libascendcl.so")  # the others lean on it
    for path in (home / "lib64").glob("*.so"):
        if path.name != "libopapi.so":
            open_library(path.name)
    import torch  # noqa: F401  the operators lean on it

    open_library("libopapi.so")
    return Simulation(runtime)


_COUNTERS = ["bytes_now", "bytes_peak", "mallocs", "frees", "launches", "captured", "replays"]
_COUNTERS += ["updates", "syncs", "h2d", "d2h", "d2d", "streams"]  # in the order of cann_sim.h


class Simulation:
    """The loaded runtime library, seen from a test."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        library.cannsim_count.restype = ctypes.c_uint64
        library.cannsim_counts.restype = ctypes.c_size_t
        library.cannsim_counts.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        library.cannsim_set_memory.argtypes = [ctypes.c_uint64]

    def stats(self, device: int = -1) -> dict[str, int]:
        """The counters of one device, or of all together (whose peak is the sum of theirs)."""
        values = (ctypes.c_uint64 * len(_COUNTERS))()
        self._lib.cannsim_get_stats(device, values)
        return dict(zip(_COUNTERS, values, strict=True))

    def count(self, name: str) -> int:
        """How often the named work item ran: ``aclnnAdd``, ``memcpy``, ``score_head_float16``."""
        return int(self._lib.cannsim_count(name.encode()))

    def counts(self) -> dict[str, int]:
        """The same of every work item that ran."""
        size = self._lib.cannsim_counts(None, 0) + 1
        text = ctypes.create_string_buffer(size)
        self._lib.cannsim_counts(text, size)
        lines = (line.rsplit(" ", 1) for line in text.value.decode().splitlines())
        return {name: int(count) for name, count in lines}

    def reset_peak(self) -> None:
        self._lib.cannsim_reset_peak()

    def reset_counts(self) -> None:
        self._lib.cannsim_reset_counts()

    def revive(self) -> None:
        """Ends the state after a failure, in which every wait and copy fails; forgets faults."""
        self._lib.cannsim_revive()

    def inject(self, what: str, *, after: int = 0, times: int = 1, code: int | None = None) -> None:
        """After ``after`` more, the next ``times`` occurrences of ``what`` fail with ``code``.

        ``what`` is a call (malloc, create_stream, capture_begin, capture_end, replay, update) or a
        work item by name (memcpy_h2d, memcpy_d2h, aclnnMatmul, score_head_float16), which then
        fails when it runs; "launch:" and a name: when it is submitted.
        """
        self._lib.cannsim_inject(what.encode(), after, times, code or 0)

    def set_memory(self, size: int) -> None:
        """Gives every device ``size`` bytes of memory from now on."""
        self._lib.cannsim_set_memory(size)
