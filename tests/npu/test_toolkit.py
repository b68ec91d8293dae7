"""The npu target over the simulated toolkit: built by setup.py for both generations of CANN, run by
pyrerank/ops.py on simulated NPUs."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests/cann_sim"), str(ROOT / "tests/cann_toolkit")]

import simulation  # noqa: E402
import toolkit  # noqa: E402

FLOWS = {"8.5.0": "ascendc_library", "9.0.0": "asc"}
BATCH = 45  # of toolkit_cases.py


class Installed:
    """A toolkit and the package that setup.py built with it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.home = toolkit.lay(simulation.build(), version)
        self.packages = ROOT / f"build/cann-toolkit-{version}-packages"
        mine = ("ASCEND", "PYRERANK", "SOC_VERSION")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
        self.environment |= simulation.environment(self.home)
        self.log = self.build()

    def build(self) -> str:
        shutil.rmtree(self.packages, ignore_errors=True)
        found = {"ASCEND_HOME_PATH": "", "ASCEND_TOOLKIT_HOME": str(self.home)}
        done = subprocess.run(
            [sys.executable, "setup.py", "build", "--build-lib", self.packages],
            cwd=ROOT,
            env=self.environment | found | {"PYRERANK_TARGET": "npu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        return done.stdout

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = f"{self.packages}:{self.packages / 'pyrerank'}"
        environment |= {"PYTHONPATH": paths, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        done = subprocess.run(
            [sys.executable, "-P", *command],
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


CASES = Path(__file__).with_name("toolkit_cases.py")
# without torch_npu: a launch that ends before anything reads its addresses
REFUSED = """
import ctypes, sys
import _C
if sys.argv[1:]:
    ctypes.CDLL("libascendcl.so").aclrtSetDevice(0)
try:
    _C.last_token_gather(512, 512, 512, T=1, H=16, row_stride=16, B=1, dtype="float32",
                         ids_are_cu_seqlens=False, threads=1, stream=1)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(scope="module", params=FLOWS)
def installed(request: pytest.FixtureRequest) -> Installed:
    return Installed(request.param)


def test_the_version_decides_the_flow(installed: Installed) -> None:
    flow = FLOWS[installed.version]
    assert f"CANN {installed.version} in {installed.home}, Ascend910B3: " in installed.log
    assert f"kernels by {flow}\n" in installed.log


def test_values_on_both_devices_and_in_a_graph(installed: Installed) -> None:
    done = installed.run(CASES, "values", CANN_TOOLKIT_TRACE="1")
    info = f"'soc': 'Ascend910B3', 'cann': '{installed.version}'"
    assert info in done.stdout and f"'flow': '{FLOWS[installed.version]}'" in done.stdout
    runtime = ctypes.CDLL(str(installed.home / "lib64/libascendcl.so"))
    cores = ctypes.c_int64()
    assert runtime.aclGetDeviceCapability(0, 1, ctypes.byref(cores)) == 0
    launches = re.findall(r"^launch (\w+) blocks (\d+)$", done.stderr, re.M)
    assert len({name for name, _ in launches}) == 8, "not every kernel was launched"
    assert 0 < cores.value < BATCH and {int(n) for _, n in launches} == {cores.value}


def test_a_refused_launch_raises(installed: Installed) -> None:
    installed.run(CASES, "refused_launch", CANN_SIM_FAULT="launch:score_head_bfloat16:0:1:107003")


def test_the_device_refuses_what_is_not_its_memory(installed: Installed) -> None:
    done = installed.run(CASES, "address_of_the_host", TASK_QUEUE_ENABLE="0")
    assert "lies in none of the launch's regions" in done.stderr


def test_without_a_device_there_is_an_error(installed: Installed) -> None:
    done = installed.run("-c", REFUSED)
    assert done.stdout == "aclrtGetDevice failed with 107002\n"


def test_another_chip_than_the_build_is_for_is_refused(installed: Installed) -> None:
    done = installed.run("-c", REFUSED, "device", CANN_SIM_SOC="Ascend310P3")
    assert "NPU 0: its chip is Ascend310P3" in done.stdout
    assert "compiled for Ascend910B3 and run on Atlas A2 and A3 only" in done.stdout


def test_an_unknown_core_count_is_an_error(installed: Installed, tmp_path: Path) -> None:
    source, library = tmp_path / "broken.cpp", tmp_path / "broken.so"
    source.write_text('extern "C" int aclGetDeviceCapability(...) { return 500000; }')
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    done = installed.run("-c", REFUSED, "device", LD_PRELOAD=str(library))
    assert "aclGetDeviceCapability failed with 500000" in done.stdout
