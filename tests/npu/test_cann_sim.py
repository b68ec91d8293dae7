"""The simulated CANN itself: devices, memory, faults, kernels, switches, the build."""

import ctypes
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch_npu = pytest.importorskip("torch_npu")
from sim_cases import Decoder, capture  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="session")
def home(sim) -> Path:
    return Path(os.environ["ASCEND_HOME_PATH"])


@pytest.fixture
def x(sim) -> torch.Tensor:
    return torch.ones(8, device="npu")


# what the scripts below use: fails(code, act) demands the error and its code
FAILS = """
import torch, torch_npu

def fails(code, act):
    try:
        act()
        torch.npu.synchronize()
    except RuntimeError as error:
        text = f"{error.__context__}{error}"  # a failed capture_end hides what came before it
        assert f"error code is {code}" in text, text
    else:
        raise AssertionError(f"{code} did not come")
"""


def run(home: Path, script: str, **switches: str) -> subprocess.CompletedProcess[str]:
    """A process that finds the simulation through its environment alone."""
    import simulation

    body = FAILS + textwrap.dedent(script) + "\nprint('to the end')\n"
    environment = os.environ | simulation.environment(home) | switches
    command = [sys.executable, "-c", body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "to the end" in done.stdout, done.stderr[-3000:]
    return done


# ---------------------------------------------------------------- devices


def test_each_device_has_memory_of_its_own(sim) -> None:
    assert torch.npu.device_count() == 2
    before = [sim.stats(device) for device in (0, 1)]
    block = torch.empty(64 * MIB, dtype=torch.uint8, device="npu:1")
    after = [sim.stats(device) for device in (0, 1)]
    assert after[0] == before[0]
    assert after[1]["bytes_now"] - before[1]["bytes_now"] >= block.nbytes
    assert after[1]["mallocs"] > before[1]["mallocs"]
    total = sim.stats()
    assert total["bytes_now"] == sum(stats["bytes_now"] for stats in after)
    free, size = torch.npu.mem_get_info(1)
    assert size - free == after[1]["bytes_now"]
    del block
    torch.npu.empty_cache()
    assert sim.stats(1)["bytes_now"] <= before[1]["bytes_now"]
    assert sim.stats(1)["bytes_peak"] >= after[1]["bytes_now"]
    sim.reset_peak()
    assert sim.stats(1)["bytes_peak"] == sim.stats(1)["bytes_now"]


def test_work_runs_on_either_device(x: torch.Tensor, sim) -> None:
    for device in ("npu:0", "npu:1"):
        y = (torch.arange(4.0).to(device) + 1) @ torch.ones(4, device=device)
        assert y.item() == 10
    torch.npu.NPUGraph()  # the first one decides on which device torch_npu updates graphs
    with torch.npu.device(1):
        graph, y = capture(lambda: torch.ones(4, device="npu:1") * 3)
        graph.replay()
        assert y.cpu().tolist() == [3] * 4


def test_devices_do_not_mix(x: torch.Tensor) -> None:
    other = torch.ones(8, device="npu:1")
    with pytest.raises(RuntimeError, match="aclnnAdd: tensors on device 0 and device 1"):
        x + other
    with pytest.raises(RuntimeError, match="a copy from device 0 to device 1"):
        x.to("npu:1")
    handle = ctypes.c_void_p(torch.npu.Stream(device="npu:1").npu_stream)
    runtime = ctypes.CDLL("libascendcl.so")
    device, host = ctypes.c_void_p(x.data_ptr()), torch.ones(8).pin_memory()
    copied = runtime.aclrtMemcpyAsync(device, 32, ctypes.c_void_p(host.data_ptr()), 32, 1, handle)
    assert copied == 107003
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    assert b"memory of device 0 on stream" in runtime.aclGetRecentErrMsg()


def test_a_failure_stops_its_own_device_alone(sim, x: torch.Tensor) -> None:
    other = torch.ones(8, device="npu:1")
    sim.inject("aclnnAdds")
    with pytest.raises(RuntimeError):
        x + 1
    with pytest.raises(RuntimeError, match="device 0 was stopped"):
        x.cpu()
    with torch.npu.device(1):
        assert (other + 1).cpu().tolist() == [2] * 8
    sim.revive()
    assert (x + 1).cpu().tolist() == [2] * 8


def test_a_host_without_npus(home: Path) -> None:
    script = """
    assert torch.npu.device_count() == 0
    assert not torch.npu.is_available()
    fails(507899, lambda: torch.ones(1, device="npu"))
    """
    run(home, script, CANN_SIM_DEVICES="0")


# ---------------------------------------------------------------- memory


def test_memory_is_bounded(sim, x: torch.Tensor) -> None:
    torch.npu.empty_cache()
    sim.set_memory(sim.stats(0)["bytes_now"] + 64 * MIB)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(65 * MIB, dtype=torch.uint8, device="npu")
        block = torch.empty(60 * MIB, dtype=torch.uint8, device="npu")
        assert (x + 1).cpu().tolist() == [2] * 8
        del block
    finally:
        sim.set_memory(16 << 30)
        torch.npu.empty_cache()


def test_copies_are_counted_and_checked(sim, x: torch.Tensor) -> None:
    before, counts = sim.stats(), sim.counts()
    x.copy_(torch.full((8,), 4.0))
    assert x.cpu().tolist() == [4] * 8
    after = sim.stats()
    assert (after["h2d"] - before["h2d"], after["d2h"] - before["d2h"]) == (32, 32)
    for name in ("memcpy_h2d", "memcpy_d2h"):
        assert sim.count(name) == counts.get(name, 0) + 1
    runtime, host = ctypes.CDLL("libascendcl.so"), torch.ones(8)
    pointers = [ctypes.c_void_p(p) for p in (host.data_ptr(), x.data_ptr())]
    assert runtime.aclrtMemcpy(pointers[0], 32, pointers[1], 32, 1) == 107000  # not to the device
    assert runtime.aclrtMemcpy(pointers[0], 16, pointers[1], 32, 2) == 107000  # too small


def test_an_operator_takes_nothing_but_device_memory(x: torch.Tensor) -> None:
    library = ctypes.CDLL("libopapi.so")
    runtime = ctypes.CDLL("libnnopbase.so")
    runtime.aclCreateTensor.restype = ctypes.c_void_p
    sizes, host = (ctypes.c_int64 * 1)(8), torch.ones(8)
    stride = (ctypes.c_int64 * 1)(1)
    tensor = runtime.aclCreateTensor(
        sizes,
        ctypes.c_uint64(1),
        0,
        stride,
        ctypes.c_int64(0),
        2,
        sizes,
        ctypes.c_uint64(1),
        ctypes.c_void_p(host.data_ptr()),
    )
    bytes_, executor = ctypes.c_uint64(), ctypes.c_void_p()
    code = library.aclnnInplaceZeroGetWorkspaceSize(
        ctypes.c_void_p(tensor), ctypes.byref(bytes_), ctypes.byref(executor)
    )
    assert code == 161002
    assert host.tolist() == [1] * 8


# ---------------------------------------------------------------- faults

CODES: dict[str, tuple[int, Callable[[torch.Tensor], object]]] = {
    "capture_begin": (207008, lambda x: capture(lambda: x + 1)),
    "capture_end": (507903, lambda x: capture(lambda: x + 1)),
    "replay": (507011, lambda x: capture(lambda: x + 1)[0].replay()),
    "update": (107040, lambda x: Decoder([5, 9]).update([4, 9])),
    "memcpy_h2d": (507052, lambda x: x.copy_(torch.ones(8))),
    "memcpy_d2h": (507052, lambda x: x.cpu()),
    "aclnnAdds": (507015, lambda x: x + 1),
    "launch:aclnnAdds": (507000, lambda x: x + 1),
}


@pytest.mark.parametrize("code", [None, 507899])
@pytest.mark.parametrize("what", CODES)
def test_faults_have_the_code_of_their_kind(
    sim, x: torch.Tensor, what: str, code: int | None
) -> None:
    default, act = CODES[what]
    sim.inject(what, code=code)
    with pytest.raises(RuntimeError, match=f"error code is {code or default}(.|\n)*injected fault"):
        act(x)
    sim.revive()
    act(x)


def test_faults_come_after_some_and_last_for_some(sim, x: torch.Tensor) -> None:
    sim.inject("launch:aclnnAdds", after=2, times=3)
    outcomes = []
    for _ in range(8):
        try:
            (x + 1).cpu()
            outcomes.append(True)
        except RuntimeError:
            outcomes.append(False)
    assert outcomes == [True, True, False, False, False, True, True, True]


def test_streams_are_refused(sim, x: torch.Tensor) -> None:
    runtime, stream = ctypes.CDLL("libascendcl.so"), ctypes.c_void_p()
    before = sim.stats(0)["streams"]
    sim.inject("create_stream")
    assert runtime.aclrtCreateStream(ctypes.byref(stream)) == 207008
    assert sim.stats(0)["streams"] == before
    assert runtime.aclrtCreateStream(ctypes.byref(stream)) == 0
    assert sim.stats(0)["streams"] == before + 1
    assert runtime.aclrtDestroyStream(stream) == 0
    assert sim.stats(0)["streams"] == before


def test_an_allocation_is_tried_twice(sim) -> None:
    """By torch_npu, which empties its cache in between: one failure does not show."""
    torch.npu.empty_cache()
    sim.inject("malloc")
    assert torch.zeros(4 * MIB, device="npu").sum().item() == 0
    torch.npu.empty_cache()
    sim.inject("malloc", times=2)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(4 * MIB, device="npu")


def test_a_stopped_device_runs_nothing_and_gives_no_results(sim, x: torch.Tensor) -> None:
    sim.inject("aclnnMuls")
    with pytest.raises(RuntimeError, match="507015"):
        x * 2
    before = sim.count("aclnnAdds")
    x + 1  # accepted, as a device that is not waited for would
    for act in (x.cpu, torch.npu.synchronize, torch.npu.current_stream().synchronize):
        with pytest.raises(RuntimeError, match="stopped by an earlier failure: aclnnMuls"):
            act()
    assert sim.count("aclnnAdds") == before


def test_a_launch_fails_inside_a_capture_and_an_operator_inside_a_replay(
    sim, x: torch.Tensor
) -> None:
    sim.inject("launch:aclnnInplaceMuls", after=1)
    with pytest.raises(RuntimeError, match="error code is 507000"):
        capture(lambda: x.mul_(2).mul_(2))
    y = torch.zeros(8, device="npu")
    graph, _ = capture(lambda: y.add_(1).mul_(2).add_(1))
    sim.inject("aclnnInplaceMuls", after=1)
    graph.replay()
    assert y.cpu().tolist() == [3] * 8
    before = sim.count("aclnnInplaceAdds")
    with pytest.raises(RuntimeError, match="error code is 507015"):
        graph.replay()
        torch.npu.synchronize()
    assert sim.count("aclnnInplaceAdds") == before + 1  # nothing runs behind the failure


def test_faults_behind_the_task_queue(home: Path) -> None:
    """With torch_npu's own thread launching, an error arrives later, and is final."""
    script = """
    x = torch.ones(8, device="npu")
    assert (x + 1).cpu().tolist() == [2] * 8
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x * 2
    graph.replay()
    assert y.cpu().tolist() == [2] * 8
    def act():
        graph.replay()
        torch.npu.synchronize()
    fails(507014, act)
    fails(507014, lambda: x.cpu())
    """
    run(home, script, TASK_QUEUE_ENABLE="1", CANN_SIM_FAULT="aclnnMuls:1:1:507014")
    script = """
    x = torch.ones(8, device="npu")
    def act():
        y = x + 1
        torch.npu.synchronize()
    try:
        act()
    except RuntimeError as error:
        assert "aclnnAdds" in str(error), error
    else:
        raise AssertionError("no error")
    """
    run(home, script, TASK_QUEUE_ENABLE="1", CANN_SIM_FAULT="launch:aclnnAdds")


# ---------------------------------------------------------------- kernels of one's own

CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
DROP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Kernel:
    """Adds one to each float of a tensor, as a host extension would enqueue it."""

    def __init__(self, x: torch.Tensor) -> None:
        self.runtime = ctypes.CDLL("libascendcl.so")
        self.values = (ctypes.c_float * x.numel()).from_address(x.data_ptr())
        self.code, self.drops = 0, 0
        kernel = weakref.proxy(self)
        self.call, self.drop = CALL(lambda _: kernel.run()), DROP(lambda _: kernel.dropped())

    def run(self) -> int:
        for i, value in enumerate(self.values):
            self.values[i] = value + 1
        return self.code

    def dropped(self) -> None:
        self.drops += 1

    def launch(self) -> int:
        stream = ctypes.c_void_p(torch.npu.current_stream().npu_stream)
        return self.runtime.cannsim_launch(stream, b"add_one", self.call, None, self.drop)


def test_kernels_are_work_items_like_operators(sim, x: torch.Tensor) -> None:
    kernel = Kernel(x)
    before = sim.count("add_one")
    assert kernel.launch() == 0
    assert x.cpu().tolist() == [2] * 8
    assert kernel.drops == 1

    graph, y = capture(lambda: (kernel.launch(), x * 10)[1])
    assert x.cpu().tolist() == [2] * 8
    for expected in (3, 4):
        graph.replay()
        assert y.cpu().tolist() == [expected * 10] * 8
    assert sim.count("add_one") == before + 3
    assert kernel.drops == 1
    graph.reset()
    assert kernel.drops == 2

    sim.inject("add_one")
    assert kernel.launch() == 507035
    sim.revive()
    kernel.code = 507034
    assert kernel.launch() == 507034
    with pytest.raises(RuntimeError, match="error code is 507034"):
        x.cpu()


def test_memory_can_be_asked_about(x: torch.Tensor) -> None:
    runtime = ctypes.CDLL("libascendcl.so")
    base, size = ctypes.c_void_p(), ctypes.c_size_t()

    def region(p: int) -> int:
        return runtime.cannsim_region(ctypes.c_void_p(p), ctypes.byref(base), ctypes.byref(size))

    assert region(x.data_ptr() + 31) == 1
    assert base.value is not None
    assert base.value <= x.data_ptr() and x.data_ptr() + 32 <= base.value + size.value
    assert region(torch.ones(8).data_ptr()) == 0
    other = torch.ones(8, device="npu:1")
    for tensor, device in ((x, 0), (other, 1), (torch.ones(8), -1)):
        p = ctypes.c_void_p(tensor.data_ptr())
        assert runtime.cannsim_device_of(p, ctypes.c_size_t(32)) == device
    assert runtime.cannsim_device_of(base, ctypes.c_size_t(1 << 40)) == -1
    stream = torch.npu.Stream(device="npu:1").npu_stream
    assert runtime.cannsim_stream_device(ctypes.c_void_p(stream)) == 1


# ---------------------------------------------------------------- switches


def test_lazy_streams_and_poisoned_memory_show_what_was_not_waited_for(home: Path) -> None:
    run(
        home,
        """
        assert torch.empty(999, device="npu").isnan().all().item()
        x = torch.ones(8, device="npu")
        host = torch.zeros(8).pin_memory()
        host.copy_(x, non_blocking=True)
        assert host.tolist() == [0] * 8
        torch.npu.synchronize()
        assert host.tolist() == [1] * 8
        host.fill_(5)
        x.copy_(host, non_blocking=True)
        host.fill_(7)  # too early
        assert x.cpu().tolist() == [7] * 8
        """,
        CANN_SIM_LAZY="1",
        CANN_SIM_POISON="1",
    )


def test_stream_resources_run_out(home: Path) -> None:
    """Each graph holds one, and one for each of its task groups, until it is gone."""
    script = """
    x = torch.ones(8, device="npu")
    q = torch.ones(4, 2, 128, dtype=torch.float16, device="npu")
    def attention(layers):
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph, stream=stream, auto_dispatch_capture=True):
            for _ in range(layers):
                torch_npu.npu_fused_infer_attention_score_v2(q, q, q, input_layout="TND",
                    num_query_heads=2, actual_seq_qlen=[4], actual_seq_kvlen=[4])
        return graph
    def plain():
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph, stream=stream):
            x + 1
        return graph
    stream = torch.npu.Stream()
    attention(1).reset()  # the streams torch_npu makes on the way
    import ctypes, sys
    from pathlib import Path
    sys.path.append("{tests}")
    import simulation
    sim = simulation.Simulation(ctypes.CDLL("libascendcl.so"))
    left = {budget} - sim.stats(0)["streams"]
    assert left >= 6, left
    graphs = [attention(3), plain()]
    assert {budget} - sim.stats(0)["streams"] == left - 5
    graphs[0].reset()
    assert {budget} - sim.stats(0)["streams"] == left - 1
    graphs += [plain() for _ in range(left - 1)]
    with torch.npu.stream(stream):
        fails(207008, lambda: torch.npu.NPUGraph().capture_begin())
    graphs.clear()
    fails(207008, lambda: attention(left))
    """
    tests = Path(__file__).parents[1] / "cann_sim"
    script = script.replace("{tests}", str(tests)).replace("{budget}", "48")
    run(home, script, CANN_SIM_STREAMS="48")


def test_other_switches(home: Path) -> None:
    """The last one is the wait for an update that does not come."""
    done = run(
        home,
        """
        assert torch.npu.device_count() == 1
        assert torch.npu.get_device_name() == "Ascend910_9391", torch.npu.get_device_name()
        assert torch.npu.mem_get_info()[1] == 1 << 28
        q = torch.ones(4, 2, 128, dtype=torch.float16, device="npu") + 1
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph, auto_dispatch_capture=True):
            torch_npu.npu_fused_infer_attention_score_v2(q, q, q, input_layout="TND",
                num_query_heads=2, actual_seq_qlen=[4], actual_seq_kvlen=[4])
        graph.replay()
        fails(507046, lambda: None)
        fails(507046, lambda: q.cpu())
        """,
        CANN_SIM_DEVICES="1",
        CANN_SIM_SOC="Ascend910_9391",
        CANN_SIM_VERSION="9.0.0",
        CANN_SIM_MEM_GB="0.25",
        CANN_SIM_TRACE="1",
        CANN_SIM_WAIT_S="0.2",
    )
    assert "[cannsim] run  d0 s1 aclnnAdds" in done.stderr


# ---------------------------------------------------------------- the build


def test_the_home_looks_like_a_toolkit(home: Path) -> None:
    assert (home / "include" / "acl" / "acl.h").is_file()
    for package in ("compiler", "runtime", "opp"):
        text = (home / package / "version.info").read_text()
        assert text.startswith("Version=8.5.0")
    assert (home / "ascend_toolkit_install.info").is_file()
    for name in ("ascendcl", "nnopbase", "opapi", "hccl"):
        assert (home / "lib64" / f"lib{name}.so").is_file()


def test_a_second_build_does_nothing(home: Path) -> None:
    import simulation

    before = {p: p.stat().st_mtime_ns for p in (home / "lib64").iterdir()}
    assert simulation.build() == home
    assert {p: p.stat().st_mtime_ns for p in (home / "lib64").iterdir()} == before


def test_a_python_without_torch_is_refused(tmp_path: Path) -> None:
    import simulation

    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RuntimeError, match="lacks it"):
        simulation.build(str(bare))


def test_loading_twice_is_loading_once(sim, home: Path) -> None:
    import simulation

    assert simulation.load(home).stats() == sim.stats()


def test_another_toolkit_is_not_overlaid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simulation

    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend/cann")
    with pytest.raises(RuntimeError, match="ASCEND_HOME_PATH is /usr/local/Ascend/cann: unset"):
        simulation.load(home)
