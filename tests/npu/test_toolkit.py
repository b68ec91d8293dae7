"""The npu target over the simulated toolkit: built by setup.py for both generations of CANN, run by
pyrerank/kernels/ops.py on simulated NPUs; and on the host's processor, with CANN's libraries and
without.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests/cann_sim"), str(ROOT / "tests/cann_toolkit")]

import simulation  # noqa: E402
import toolkit  # noqa: E402
from toolkit_cases import DOCUMENTS, QUERY  # noqa: E402

from pyrerank import Reranker  # noqa: E402
from pyrerank.demo.ranking import FOLDER  # noqa: E402

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
        torch_npu = find_spec("torch_npu")  # which may stand beside the environment's packages
        assert torch_npu is not None and torch_npu.origin is not None
        paths = f"{self.packages}:{self.packages / 'pyrerank'}:{Path(torch_npu.origin).parents[1]}"
        environment |= {"PYTHONPATH": paths, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        done = subprocess.run(
            [sys.executable, "-P", *command],
            env=self.environment | environment,
            cwd=self.packages,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def without_cann(self, *command: str | Path) -> str:
        """What a process prints in a shell that has not sourced set_env.sh."""
        nothing = {name: "" for name in simulation.environment(self.home)}
        return self.run(*command, **nothing).stdout


CASES = ROOT / "tests/support/toolkit_cases.py"
# without torch_npu: a launch that ends before anything reads its addresses
REFUSED = """
import ctypes, sys
import _C_npu
if sys.argv[1:]:
    ctypes.CDLL("libascendcl.so").aclrtSetDevice(0)
try:
    _C_npu.last_token_gather(512, 512, 512, T=1, H=16, row_stride=16, B=1, dtype="float32",
                             ids_are_cu_seqlens=False, threads=1, stream=1)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(scope="module", params=FLOWS)
def installed(request: pytest.FixtureRequest) -> Installed:
    return Installed(request.param)


@pytest.fixture(scope="module")
def on_cpu() -> str:
    """The scores of toolkit_cases.py by this checkout's build for the CPU, as it prints them."""
    engine = Reranker("demo", device="cpu")
    return " ".join(("cpu", *(score.hex() for score in engine.score(QUERY, DOCUMENTS))))


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


def test_scores_on_the_cpu_are_those_of_a_build_for_it(installed: Installed, on_cpu: str) -> None:
    assert installed.run(CASES, "host").stdout == f"{on_cpu}\nthe kernels for the NPU load\n"


def test_an_engine_on_the_cpu_after_one_on_an_npu(installed: Installed, on_cpu: str) -> None:
    assert installed.run(CASES, "both").stdout.splitlines()[1] == on_cpu


def test_without_cann_the_cpu_scores_and_an_npu_is_an_error(
    installed: Installed, on_cpu: str
) -> None:
    scores, said = installed.without_cann(CASES, "host").splitlines()
    assert scores == on_cpu
    assert said.startswith("DeviceError pyrerank's kernels for the NPU do not load (libascendcl.so")
    assert "source the set_env.sh of the CANN toolkit" in said


def test_convert(installed: Installed, tmp_path: Path) -> None:
    model = FOLDER / "model"
    done = installed.without_cann(CASES, "convert", model, tmp_path / "classifier")
    assert "compared='logits of 4 pairs'" in done


def test_info_says_what_was_built_and_what_does_not_load(installed: Installed) -> None:
    info = installed.run("-m", "pyrerank", "info").stdout
    wanted = f"extension: target npu for Ascend910B3, CANN {installed.version} by "
    assert "extension: target cpu, " in info and wanted + FLOWS[installed.version] in info
    info = installed.without_cann("-m", "pyrerank", "info")
    assert "extension: target cpu, " in info and "the CPU works without it" in info
    assert "extension for the NPU: does not load (libascendcl.so" in info
    assert "kernels that load (source the set_env.sh of the CANN they were built with)" in info


def test_kernels_that_do_not_load_are_an_error_before_weights_are_read(
    installed: Installed, tmp_path: Path
) -> None:
    shutil.copytree(installed.packages, tmp_path / "packages")
    broken = Installed.__new__(Installed)
    broken.packages, broken.environment = tmp_path / "packages", installed.environment
    (module,) = broken.packages.glob("pyrerank/_C_npu.*")
    module.write_bytes(b"")
    with pytest.raises(AssertionError, match="kernels for the NPU do not load") as failed:
        broken.run(CASES, "npu_engine")
    assert "DeviceError" in str(failed.value) and "Decoder.load" not in str(failed.value)


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["8.5.0"], indirect=True)
def test_every_check_for_an_owner_of_an_npu_passes(installed: Installed, tmp_path: Path) -> None:
    """The CPU's reference is taken in the process in which the NPU's engine ran."""
    report = tmp_path / "report.json"
    done = installed.run(ROOT / "bench/check_npu.py", "--quick", "--report", report)
    checks = json.loads(report.read_text("utf-8"))["checks"]
    (extension,) = (check for check in checks if check["name"] == "extension")
    assert extension["status"] == "PASS" and extension["figure"].startswith("target npu, soc A")
    assert "FAIL" not in done.stdout and done.stdout.count("PASS") > 115
    against = [check for check in checks if "against the CPU" in check["name"]]
    assert len([check for check in against if check["status"] == "PASS"]) >= 4


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
