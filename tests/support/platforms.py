"""Says what this machine has for an NPU: torch_npu, and a real device or the simulated one."""

import os
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
installed = find_spec("torch_npu") is not None
simulated = str(ROOT / "build/cann-sim-")  # a worker of pytest-xdist inherits it
hardware = not os.environ.get("ASCEND_HOME_PATH", simulated).startswith(simulated)
