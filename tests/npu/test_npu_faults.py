"""What goes wrong on a device: the exception that is documented, and an engine that is either
usable or closed afterwards."""

import os
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from checkpoints import write_random
from passes import packed

from pyrerank import DeviceError, EngineClosed, NonFiniteScore, OutOfMemory, Reranker
from pyrerank.devices import select as devices
from pyrerank.devices.ascend import Ascend, FusedInfer
from pyrerank.devices.cpu import multiplies_bfloat16
from pyrerank.devices.select import check_process, resolve, resolve_dtype
from pyrerank.engine.batch import pack
from pyrerank.engine.graphs import Graphs
from pyrerank.prompts.items import Prompt

QUERY = "What is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Gravity gives weight to objects. " * 30, ""]
ATTENTION = "aclnnFusedInferAttentionScoreV4"

pytestmark = pytest.mark.usefixtures("sim")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random(folder, "qwen3-reranker", tied=True, dtype=torch.bfloat16, seed=5)
    return folder


@pytest.fixture(scope="module")
def want(model) -> list[float]:
    return Reranker(model, device="npu", dtype="bfloat16", graph=False).score(QUERY, DOCUMENTS)


@pytest.fixture(params=[False, True], ids=["eager", "graph"])
def engine(model, request) -> Reranker:
    return Reranker(model, device="npu", dtype="bfloat16", graph=request.param)


class TestMemory:
    def test_weights_that_do_not_fit(self, sim, model):
        torch.npu.empty_cache()
        sim.set_memory(20 << 20)
        try:
            with pytest.raises(OutOfMemory, match="npu:0 has too little free memory"):
                Reranker(model, device="npu", dtype="bfloat16")
        finally:
            sim.set_memory(16 << 30)
        Reranker(model, device="npu", dtype="bfloat16")

    def test_a_batch_that_does_not_fit(self, sim, model, want):
        engine = Reranker(model, device="npu", dtype="bfloat16", graph=False)
        torch.npu.empty_cache()
        sim.inject("malloc", times=1000)
        with pytest.raises(OutOfMemory, match="Lower token_budget, which is 8192"):
            engine.score(QUERY, DOCUMENTS)
        sim.revive()
        assert engine.score(QUERY, DOCUMENTS) == want

    def test_a_capture_that_does_not_fit(self, sim, model, want):
        engine = Reranker(model, device="npu", dtype="bfloat16")
        before = sim.stats(0)["bytes_now"]
        # what the capture's own pool asks for, after the inputs and the first eager pass
        engine.core.graphs._forward = refuse_while_capturing(
            engine.core.graphs._forward, lambda: sim.inject("malloc", times=1000), sim.revive
        )
        with pytest.warns(RuntimeWarning, match="runs eagerly from here on.*or lower token_budget"):
            got = engine.score(QUERY, DOCUMENTS)
        assert engine.core.graphs is None
        assert got == pytest.approx(want, abs=1e-2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one warning is enough
            assert engine.score(QUERY, DOCUMENTS) == got
        del engine
        torch.npu.empty_cache()
        assert sim.stats(0)["bytes_now"] <= before


def refuse_while_capturing(forward, fault, repair):
    """The forward pass, with a fault injected once it is being captured."""

    def run(batch, *, prune):
        if not torch.npu.is_current_stream_capturing():
            return forward(batch, prune=prune)
        fault()
        try:
            return forward(batch, prune=prune)
        finally:
            repair()

    return run


class TestCapture:
    @pytest.mark.parametrize(
        ("what", "after", "code"),
        [
            (f"launch:{ATTENTION}", 1, 207008),  # no stream left for the second layer
            ("launch:score_head_bfloat16", 0, 207008),
            ("capture_begin", 0, None),
            ("capture_end", 0, None),
        ],
    )
    def test_that_fails_cleanly_leaves_an_eager_engine(self, sim, model, want, what, after, code):
        engine = Reranker(model, device="npu", dtype="bfloat16")
        engine.core.graphs._forward(
            batch_of(engine), prune=True
        )  # set up what the first pass sets up
        forward = engine.core.graphs._forward
        if not what.startswith("launch"):
            sim.inject(what)
        else:
            engine.core.graphs._forward = refuse_while_capturing(
                forward, lambda: sim.inject(what, after=after, code=code), lambda: None
            )
        with pytest.warns(
            RuntimeWarning, match="could not be captured or replayed, so this engine runs eager"
        ):
            got = engine.score(QUERY, DOCUMENTS)
        assert got == pytest.approx(want, abs=1e-2)
        assert engine.core.graphs is None
        assert engine.score(QUERY, DOCUMENTS) == got
        # other engines of the process can still capture
        other = Reranker(model, device="npu", dtype="bfloat16")
        assert other.score(QUERY, DOCUMENTS) == pytest.approx(want, abs=1e-2)
        assert other.core.graphs.replays == 1

    def test_without_room_for_inputs(self, sim, model, want, monkeypatch):
        def without_memory(*given):
            torch.npu.empty_cache()
            sim.inject("malloc", times=1000)
            try:
                return Graphs(*given)
            finally:
                sim.revive()

        monkeypatch.setattr("pyrerank.engine.core.Graphs", without_memory)
        # there is no memory for trying
        monkeypatch.setattr(Ascend, "works", lambda device: True)
        with pytest.warns(RuntimeWarning, match="no stream or no memory for graphs"):
            engine = Reranker(model, device="npu", dtype="bfloat16", token_budget=2**24)
        assert engine.core.graphs is None
        assert engine.score(QUERY, DOCUMENTS) == want

    def test_in_warmup(self, sim, model, want):
        engine = Reranker(model, device="npu", dtype="bfloat16", token_budget=256)
        sim.inject("capture_begin", after=1)
        with pytest.warns(RuntimeWarning, match="could not be captured"):
            engine.warmup()
        assert engine.core.graphs is None
        assert engine.score(QUERY, DOCUMENTS) == pytest.approx(want, abs=1e-2)


class TestOperators:
    @pytest.mark.parametrize("name", ["aclnnSwiGlu", "score_head_bfloat16", ATTENTION])
    def test_that_fail_on_the_device_close_the_engine(self, sim, engine, name):
        engine.score(QUERY, DOCUMENTS)
        sim.inject(name)
        with pytest.raises(EngineClosed, match=r"(?s)is lost \(.*start a new process"):
            engine.score(QUERY, DOCUMENTS)
        sim.revive()  # the engine must not rely on a device that has failed
        with pytest.raises(EngineClosed):
            engine.score(QUERY, DOCUMENTS)

    def test_that_are_refused_leave_the_engine_usable(self, sim, model, want):
        engine = Reranker(model, device="npu", dtype="bfloat16", graph=False)
        sim.inject("launch:aclnnSwiGlu", after=1)
        with pytest.raises(
            DeviceError, match=r"(?s)npu:0 failed: .*it can be used again"
        ) as caught:
            engine.score(QUERY, DOCUMENTS)
        assert not isinstance(caught.value, EngineClosed)
        assert engine.score(QUERY, DOCUMENTS) == want

    @pytest.mark.parametrize("what", ["update", "replay"])
    def test_a_replay_that_is_refused(self, sim, model, want, what):
        engine = Reranker(model, device="npu", dtype="bfloat16")
        engine.score(QUERY, DOCUMENTS)
        sim.inject(what)
        with pytest.warns(RuntimeWarning, match="could not be captured or replayed"):
            got = engine.score(QUERY, DOCUMENTS)
        assert got == pytest.approx(want, abs=1e-2)
        assert engine.core.graphs is None and engine.score(QUERY, DOCUMENTS) == got

    def test_scores_that_do_not_come_back(self, sim, engine):
        engine.score(QUERY, DOCUMENTS)
        sim.inject("memcpy_d2h")
        with pytest.raises(DeviceError):
            engine.score(QUERY, DOCUMENTS)

    def test_a_replay_that_is_dropped_gives_no_score_of_the_batch_before(self, model, monkeypatch):
        engine = Reranker(model, device="npu", dtype="bfloat16")
        engine.score(QUERY, DOCUMENTS)
        monkeypatch.setattr(torch.npu.NPUGraph, "replay", lambda self: None)
        with pytest.raises(NonFiniteScore):
            engine.score(QUERY, DOCUMENTS)

    def test_work_that_is_dropped_closes_the_engine(self, model, monkeypatch):
        engine = Reranker(model, device="npu", dtype="bfloat16")
        engine.score(QUERY, DOCUMENTS)
        monkeypatch.setattr(torch.npu.NPUGraph, "replay", lambda self: None)
        monkeypatch.setattr(Ascend, "works", lambda device: False)
        with pytest.raises(EngineClosed, match="dropped work"):
            engine.score(QUERY, DOCUMENTS)


def batch_of(engine: Reranker):
    prompts = engine.core.encoder.encode(
        [engine.core.encoder.pair("", QUERY, d) for d in DOCUMENTS]
    )
    [planned] = engine.core._plan([prompts])
    batch = pack(planned.ids, planned.spans, planned.shared)
    return batch.moved(engine.core.device.upload(batch.data))


SCORE = """
import sys, pyrerank
engine = pyrerank.Reranker(sys.argv[1], dtype="bfloat16", device=sys.argv[2] or None)
print(engine.device)
for _ in range(3):
    try:
        print(engine.score("What is the capital of China?", ["Beijing.", "Gravity. " * 40]))
    except pyrerank.DeviceError as error:
        print(type(error).__name__)
"""


def run(model: Path, device: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Scores three times in another process, which imports torch_npu by itself."""
    import simulation

    home = simulation.environment(simulation.build())
    return subprocess.run(
        [sys.executable, "-P", "-c", SCORE, str(model), device],
        env=os.environ | home | environment,
        capture_output=True,
        text=True,
    )


class TestProcess:
    """What is settled when a process starts."""

    def test_torch_loads_torch_npu_by_itself(self, model):
        done = run(model, "", TORCH_DEVICE_BACKEND_AUTOLOAD="1")
        lines = done.stdout.splitlines()
        assert lines[0] == "npu:0", done.stderr
        assert lines[1] == lines[2] == lines[3] and lines[1].startswith("[0.")

    def test_nothing_is_read_before_it_is_there(self, model):
        """Work that runs as late as it may, on memory full of NaN, gives the same scores."""
        late = run(model, "npu", CANN_SIM_LAZY="1", CANN_SIM_POISON="1")
        soon = run(model, "npu")
        assert late.stdout == soon.stdout and late.stdout.count("[0.") == 3, late.stderr

    def test_a_task_queue_that_drops_work_after_a_failure(self, model):
        """The default queue of torch_npu ends at the first failure and drops what comes later."""
        for fault in ("aclnnSwiGlu:9", "score_head_bfloat16:2", "launch:aclnnSwiGlu:2"):
            done = run(model, "npu", TASK_QUEUE_ENABLE="1", CANN_SIM_FAULT=fault)
            assert "EngineClosed" in done.stdout, done.stderr
            scores = [line for line in done.stdout.splitlines() if line.startswith("[")]
            assert len(set(scores)) <= 1
            assert done.stdout.splitlines()[-1] == "EngineClosed"

    def test_a_capture_that_does_not_end_closes_the_engine(self, model):
        done = run(model, "npu", CANN_SIM_FAULT="capture_stuck")
        assert done.stdout.splitlines() == ["npu:0"] + ["EngineClosed"] * 3, done.stderr

    @pytest.mark.parametrize("queue", ["0", "1"])
    def test_streams_that_run_out(self, model, queue):
        """At the begin of a capture, and within: eager scores and one warning; with torch_npu's
        task queue, which a refused launch ends, a closed engine."""
        plenty = run(model, "npu").stdout.splitlines()
        for streams in ("34", "36"):
            done = run(model, "npu", CANN_SIM_STREAMS=streams, TASK_QUEUE_ENABLE=queue)
            if queue == "1" and streams == "36":
                assert done.stdout.splitlines() == ["npu:0"] + ["EngineClosed"] * 3, done.stderr
            else:
                assert done.stdout.splitlines() == plenty
                assert done.stderr.count("or lower token_budget") == 1

    def test_no_device(self, model):
        done = run(model, "npu", CANN_SIM_DEVICES="0")
        assert "DeviceError: device 'npu' is not there: torch finds 0 npu devices" in done.stderr
        done = run(model, "", CANN_SIM_DEVICES="0")
        assert done.stdout.startswith("cpu\n[0."), done.stderr

    def test_no_cann(self, model):
        done = run(model, "npu", LD_LIBRARY_PATH="", ASCEND_HOME_PATH="")
        assert "DeviceError: torch_npu" in done.stderr and "set_env.sh" in done.stderr
        done = run(model, "", LD_LIBRARY_PATH="", ASCEND_HOME_PATH="")
        assert done.stdout.startswith("cpu\n[0.") and done.stderr.count("set_env.sh") == 1
        assert "RuntimeWarning: no NPU is used: torch_npu" in done.stderr


def test_torch_npu_that_is_missing(monkeypatch):
    def nothing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("pyrerank.devices.versions.version", nothing)
    release = torch.__version__.split("+")[0]
    with pytest.raises(DeviceError, match=f"not installed: pip install torch_npu=={release}"):
        resolve("npu")
    assert resolve(None).name != "npu"


def test_an_older_torch_npu_that_updates_no_attention(model, want):
    engine = Reranker(model, device="npu", dtype="bfloat16")
    engine.core.graphs._capture._updated += 1
    with pytest.warns(RuntimeWarning, match="can update 3 of 4 attention calls"):
        assert engine.score(QUERY, DOCUMENTS) == pytest.approx(want, abs=1e-2)


def test_heads_that_attention_does_not_take():
    attend = FusedInfer(torch.device("npu", 0))
    q, kv = torch.zeros(4, 4, 256), torch.zeros(4, 2, 256)
    with pytest.raises(ValueError, match="head_dim 256: attention on an NPU takes at most 192"):
        attend(q, kv, kv, packed([Prompt([1, 2, 3, 4], 0)]))


@pytest.mark.parametrize("device", ["tpu", "npu:", "npu:-1", "npu:0:1", "cpu:x", ""])
def test_names_that_are_no_device(device):
    with pytest.raises(ValueError, match=f"device must be 'cpu', .*got '{device}'"):
        resolve(device)


def test_torch_npu_for_another_torch(tmp_path, monkeypatch):
    metadata = tmp_path / "torch_npu-2.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.1.0.post3\n")
    monkeypatch.syspath_prepend(tmp_path)
    release = torch.__version__.split("+")[0]
    with pytest.raises(DeviceError, match=rf"2\.1\.0\.post3 does not fit.*torch_npu=={release}"):
        resolve("npu")


def test_a_device_of_another_type():
    with pytest.raises(TypeError, match=r"device must be a str, a torch.device or None, got int"):
        resolve(0)


def test_a_dtype_that_no_engine_has():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16 or None, got 'in"):
        resolve_dtype("int8", resolve("npu"))


def test_a_torch_that_cannot_tell_what_the_processor_multiplies(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16()
    assert resolve_dtype(None, resolve("cpu")) == torch.float32


def test_a_process_that_was_forked_from_one_with_a_model(monkeypatch):
    monkeypatch.setattr(devices, "_owner", os.getpid() + 1)
    with pytest.raises(EngineClosed, match=f"forked from process {os.getpid() + 1}, which had"):
        check_process()
