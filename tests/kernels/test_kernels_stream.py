"""A launch with a stream handle becomes an item of the simulated CANN runtime's stream."""

import subprocess
import sys
from pathlib import Path

RUNTIME = """
extern "C" int (*queued_call)(void*) = nullptr;
extern "C" void* queued_item = nullptr;
extern "C" void (*queued_drop)(void*) = nullptr;
extern "C" const char* queued_name = "";
extern "C" int cannsim_launch(void* stream, const char* name, int (*call)(void*), void* item,
                              void (*drop)(void*)) {
    if (stream == reinterpret_cast<void*>(13)) return 507899;
    queued_name = name; queued_call = call; queued_item = item; queued_drop = drop;
    return 0;
}
extern "C" int replay() { return queued_call(queued_item); }
extern "C" void drop() { queued_drop(queued_item); }
"""

SCRIPT = """
import ctypes, sys, torch
runtime = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL) if len(sys.argv) > 1 else None
from pyrerank import _C
hidden, out = torch.randn(3, 32), torch.zeros(2, 32)
index = torch.tensor([2, 0], dtype=torch.int32)
sizes = dict(T=3, H=32, row_stride=32, B=2, dtype="float32", ids_are_cu_seqlens=False, threads=1)
addresses = hidden.data_ptr(), index.data_ptr(), out.data_ptr()
_C.last_token_gather(*addresses, **sizes, stream=7)
if runtime is None:
    assert torch.equal(out, hidden[[2, 0]])
    sys.exit()
assert not out.any()
assert ctypes.c_char_p.in_dll(runtime, "queued_name").value == b"last_token_gather_32bit"
for _ in range(2):  # a captured item runs at every replay, with what the memory holds by then
    hidden.normal_()
    assert runtime.replay() == 0
    assert torch.equal(out, hidden[[2, 0]])
runtime.drop()
try:
    _C.last_token_gather(*addresses, **sizes, stream=13)
except RuntimeError as error:
    assert "last_token_gather_32bit: launch failed with 507899" in str(error)
else:
    sys.exit("a refused launch passed unnoticed")
"""


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_without_a_runtime_a_launch_runs_at_once() -> None:
    run()


def test_with_a_runtime_a_launch_is_queued_and_replayed(tmp_path: Path) -> None:
    source, library = tmp_path / "runtime.cpp", tmp_path / "runtime.so"
    source.write_text(RUNTIME)
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    run(str(library))
