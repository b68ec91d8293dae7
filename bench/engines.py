"""The engines that `engine.py` measures: how each is used, and its process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads import Job

WORKER = Path(__file__).parent / "peers/worker.py"
SETTLE = 0.3  # seconds after an answer, until the threads of the engine no longer spin


@dataclass(frozen=True)
class Kind:
    """A row of the tables: an engine, and how it is used.

    Attributes:
        module: the module of `peers` that uses it.
        package: the package whose version is reported.
        options: the arguments that it is loaded with.
        settings: attributes that are set for its jobs; kinds that have settings share a process.
        on_cpu: how many documents it is given at most on a CPU; None stands for all.
        tasks: the tasks that it can do.
    """

    module: str
    package: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    on_cpu: int | None = None
    tasks: tuple[str, ...] = ("score", "embed")


OURS = "pyrerank"
PEERS = {
    # It takes one prompt at a time, so pairs a second do not depend on how many there are.
    "transformers": Kind("transformers_reference", "transformers", on_cpu=16),
    # so many are one batch
    "sentence-transformers": Kind(
        "sentence_transformers_encoder", "sentence-transformers", on_cpu=32
    ),
    "vllm": Kind(
        "vllm_pooling",
        "vllm",
        {"enable_prefix_caching": True, "block_size": 32},
        tasks=("score",),
    ),
    "vllm-defaults": Kind("vllm_pooling", "vllm", tasks=("score",)),
}


def ours(**how: Any) -> Kind:
    return Kind("pyrerank_engine", "pyrerank", **how)


def switched(share: bool, prune: bool) -> Kind:
    return ours(settings={"share_prefixes": share, "prune_last_layer": prune})


SWITCHES = {
    "pyrerank, prefixes not shared": switched(False, True),
    "pyrerank, last layer whole": switched(True, False),
    "pyrerank, neither": switched(False, False),
}
# The default of each device is the other one.
GRAPHS = {
    "cuda": {"pyrerank, replayed": ours(options={"graph": True})},
    "npu": {"pyrerank, eager": ours(options={"graph": False})},
}


class Engine:
    """A process that answers jobs."""

    def __init__(self, kind: Kind, python: str, task: str, arguments: argparse.Namespace) -> None:
        options = ["--device", arguments.device, "--dtype", arguments.dtype, "--task", task]
        options += ["--model", str(arguments.folder), "--options", json.dumps(kind.options)]
        self._module = kind.module
        self._log = arguments.temporary / f"{kind.module}.log"
        self._start = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(WORKER), kind.module, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads)},
                text=True,
            )

    def ask(self, job: Job) -> dict[str, Any]:
        """Gives the engine a job; the answer says how long after the process's start it came."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            log = self._log.read_text("utf-8", "replace")
            raise SystemExit(f"{log[-4000:]}\n{self._module} ended without an answer") from None
        answer["since_start"] = time.perf_counter() - self._start
        time.sleep(SETTLE)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def interpreters(peers: Sequence[str]) -> dict[str, str]:
    """The Python of each peer; each of ``peers`` is a name, or NAME=PYTHON."""
    found = {}
    for entry in peers:
        name, _, python = entry.partition("=")
        if name not in PEERS:
            raise SystemExit(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
        found[name] = python or sys.executable
    return found


def package_version(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
