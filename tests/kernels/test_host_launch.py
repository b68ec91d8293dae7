"""Launches of the extension built without CANN, next to a runtime that calls itself libascendcl.so:
the simulated one, a broken one, CANN's own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SIMULATED = """
extern "C" int cannsim_launch(void*, const char*, int (*call)(void*), void* item,
                              void (*drop)(void*)) {
    const int status = call(item);
    drop(item);
    return status;
}
"""
DEVICE = """
static int device = 0;
extern "C" void choose(int chosen) { device = chosen; }
extern "C" int aclrtGetDevice(int* current) { *current = device; return device < 0 ? 107002 : 0; }
"""
CORES = """
extern "C" int asked = 0;
extern "C" int aclGetDeviceCapability(unsigned device, int what, long* value) {
    ++asked;
    *value = 3 + device;
    return what == 1 && device < 2 ? 0 : 500000;
}
"""
SCRIPT = """
import ctypes, sys, torch
runtime = ctypes.CDLL(sys.argv[1])  # its symbols are not global, as torch_npu loads it
from pyrerank import _C
hidden, out = torch.randn(9, 32), torch.zeros(7, 32)
index = torch.tensor([2, 0, 8, 1, 1, 5, 4], dtype=torch.int32)
def gather(stream, index=index):
    _C.last_token_gather(hidden.data_ptr(), index.data_ptr(), out.zero_().data_ptr(), T=9, H=32,
                         row_stride=32, B=7, dtype="float32", ids_are_cu_seqlens=False, threads=2,
                         stream=stream)
def blocks(stream):
    _C.reset_counters()
    gather(stream)
    assert torch.equal(out, hidden[index])
    return _C.counters()["blocks"]
def error(stream):
    try:
        gather(stream)
    except RuntimeError as error:
        return str(error)
"""


def run(tmp_path: Path, source: str, script: str) -> None:
    library = tmp_path / "libascendcl.so"
    (tmp_path / "runtime.cpp").write_text(source)
    build = ["c++", "-shared", "-fPIC", "-Wl,-soname,libascendcl.so", tmp_path / "runtime.cpp"]
    subprocess.run([*build, "-o", library], check=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT + script, library], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_stream_work_is_cut_for_the_cores_of_the_device(tmp_path: Path) -> None:
    script = """
info = _C.build_info()
assert [info[key] for key in ("target", "cann", "flow", "soc")] == ["cpu", "", "", ""]
assert blocks(0) == 2  # threads
for device in (0, 1, 0):
    runtime.choose(device)
    assert blocks(7) == 3 + device
assert ctypes.c_int.in_dll(runtime, "asked").value == 2, "each device is asked once"
"""
    run(tmp_path, SIMULATED + DEVICE + CORES, script)


def test_a_device_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    script = """
runtime.choose(-1)
assert error(7) == "aclrtGetDevice failed with 107002", error(7)
runtime.choose(2)
assert error(7) == "aclGetDeviceCapability failed with 500000", error(7)
"""
    run(tmp_path, SIMULATED + DEVICE + CORES, script)


def test_a_launch_that_fails_says_so(tmp_path: Path) -> None:
    source = SIMULATED.replace("return status", "return status ? status : 507899")
    script = """
assert blocks(0) == 2 and not error(0)
assert error(7) == "last_token_gather_32bit: launch failed with 507899", error(7)
"""
    run(tmp_path, source, script)


def test_a_kernel_that_breaks_a_rule_fails_on_its_stream(tmp_path: Path) -> None:
    script = f"""
sys.path.append({str(Path(__file__).parents[1] / "support")!r})
import strict_build
_C = strict_build.load_strict()
gather(7)
assert torch.equal(out, hidden[index])
odd = hidden.data_ptr() + 2
hidden = type("Odd", (), {{"data_ptr": lambda self: odd}})()
assert error(7) == "last_token_gather_32bit: launch failed with 507035", error(7)
"""
    run(tmp_path, SIMULATED, script)


def test_cann_itself_gets_no_kernel_of_the_cpu(tmp_path: Path) -> None:
    script = """
assert blocks(0) == 2
assert "no kernels for an NPU: source the CANN toolkit's set_env.sh" in error(7), error(7)
assert not out.any()
"""
    run(tmp_path, DEVICE + CORES, script)
