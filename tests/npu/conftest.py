"""Tests of the NPU path, on the real torch_npu: over the simulated CANN, or on a machine with NPUs.

They have a process of their own: ``pytest tests/npu`` in an environment with torch_npu. Where a
CANN toolkit is sourced that is not the simulation, they run on its NPUs, without the tests that
need the simulation's counters and faults. Without torch_npu they are skipped, but for those of
test_device_engine.py where there is CUDA.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from platforms import hardware, installed

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "cann_sim"))
if TYPE_CHECKING:
    from simulation import Simulation

running: "Simulation | None" = None

if installed:
    # a failing launch is then reported by its own call, and the process survives it
    os.environ.setdefault("TASK_QUEUE_ENABLE", "0")
    if not hardware:
        import simulation

        running = simulation.load(simulation.build())
    import torch_npu  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if installed:
        return
    for item in items:
        runs = item.path.name == "test_device_engine.py" and torch.cuda.is_available()
        if Path(__file__).parent in item.path.parents and not runs:
            item.add_marker(pytest.mark.skip(reason="needs torch_npu"))


@pytest.fixture(scope="session")
def device() -> str:
    return "npu" if installed else "cuda"


@pytest.fixture(scope="session")
def sim() -> "Simulation":
    """The simulated CANN in this process."""
    if running is None:
        pytest.skip("needs the simulated CANN")
    return running


@pytest.fixture(autouse=True)
def revived() -> Iterator[None]:
    """No test leaves a failure behind for the next one."""
    yield
    if running is not None:
        running.revive()
