"""The scripts of bench/ run on the CPU, their figures are sane, and their checks can fail."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pyrerank import Reranker
from pyrerank.bench import machine
from pyrerank.devices.attention import BySequence
from pyrerank.devices.cpu import Cpu
from pyrerank.devices.select import resolve
from pyrerank.engine.batch import Batch, pack
from pyrerank.kernels import ops

pytestmark = [pytest.mark.slow, pytest.mark.long]

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

import check_npu  # noqa: E402
import checks  # noqa: E402
import random_checkpoint  # noqa: E402
import replay  # noqa: E402


def script(name: str, *arguments: object, bench: Path = BENCH, cwd: Path | None = None):
    command = [sys.executable, str(bench / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    random_checkpoint.write(folder, "tiny")
    return folder


@pytest.fixture
def engine(folder) -> Reranker:
    return Reranker(folder, device="cpu", dtype="float32")


# ---- replay.py ----------------------------------------------------------------------------------


class Graphs:
    """Counts passes and leaves them to the eager path."""

    captures = replays = 0
    buckets = (SimpleNamespace(sequences=100),)

    def replay(self, batch, *, prune):
        self.replays += 1


def test_replay_prints_a_table_and_writes_json(folder, tmp_path):
    options = ["--device", "cpu", "--documents", 1, 3, "--tokens", 30, "--rounds", 2]
    done = script("replay.py", "--model", folder, *options, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert [r["documents"] for r in report["results"]] == [1, 3]
    for result in report["results"]:
        low, median, high = (result["eager_ms"][key] for key in ("q1", "median", "q3"))
        assert 0 < low <= median <= high
        assert result["tokens"] > 30 * result["documents"]
        assert f"{median:.2f}" in done.stdout
        assert "replay_ms" not in result
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["simulated"] is False and "SIMULATED" not in done.stdout


def test_rounds_take_turns_and_leave_the_graphs_on(engine):
    engine.core.graphs = graphs = Graphs()
    seen = []
    details = engine.details

    def spy(*arguments):
        seen.append(engine.core.graphs)
        return details(*arguments)

    engine.details = spy
    result = replay.measure(engine, 2, 20, rounds=4)
    assert seen[:4] in ([graphs, None, None, graphs], [None, graphs, graphs, None])
    assert len(seen) == 2 * (4 + replay.WARM_UP)
    assert engine.core.graphs is graphs
    assert result["replays_per_call"] == 1 and result["captures_while_measured"] == 0
    assert result["largest_logit_difference"] == 0
    low, high = result["eager_over_replay"]["q1"], result["eager_over_replay"]["q3"]
    assert 0 < low <= high
    assert len(replay.table([result]).splitlines()) == 2


def test_a_case_that_is_not_replayed_is_pointed_out(engine):
    engine.core.graphs = Graphs()
    engine.core.graphs.replay = lambda batch, prune: None
    assert "nothing was replayed" in replay.table([replay.measure(engine, 1, 5, rounds=2)])


def test_documents_are_different_and_of_the_length_asked_for(engine):
    tokenizer = engine.core.checkpoint.tokenizer()
    for documents, tokens in [(64, 200), (3, 1), (2, 9000)]:
        _, texts = replay.texts(engine, documents, tokens)
        assert len(set(texts)) == documents
        assert {len(tokenizer.encode(text).ids) for text in texts} <= {tokens, tokens + 1}


@pytest.mark.parametrize(
    ("name", "published"), [("0.6B", 596049920), ("4B", 4022468096), ("8B", 8190735360)]
)
def test_random_checkpoints_have_the_published_number_of_parameters(name, published):
    shape = random_checkpoint.SHAPES[name]
    layers = [random_checkpoint._layer(shape, number) for number in range(shape.layers)]
    parts = [random_checkpoint._outer(shape), *layers]
    assert sum(math.prod(dims) for part in parts for dims in part.values()) == published


def test_random_checkpoints_tell_texts_apart(engine):
    scores = engine.score(*replay.texts(engine, 8, 50))
    assert max(scores) - min(scores) > 0.05


# ---- checks that must fail ----------------------------------------------------------------------


def run(group: str, name: str, tmp_path: Path) -> object:
    return checks.checks(group)[name](checks.Bench("cpu", True, tmp_path))


def halves_swapped(function):
    return lambda x, *rest: function(torch.cat(x.chunk(2, -1)[::-1], -1), *rest)


def off_by(difference: float, function):
    """In the first output."""

    def changed(*arguments, **options):
        out = function(*arguments, **options)
        if isinstance(out, tuple):
            return (out[0] + difference, *out[1:])
        return out + difference

    return changed


def other_rows(function):
    return lambda hidden, *rest, **options: function(hidden.flip(0), *rest, **options)


def second_twice(function):
    return lambda x, y, *rest: function(y, y, *rest)


def in_bfloat16(x, weight):
    return (x.bfloat16() @ weight.bfloat16().T).to(x.dtype)


def not_causal(query, key, value, batch):
    pieces = []
    for piece in zip(*(t.split(batch.lengths) for t in (query, key, value)), strict=True):
        q, k, v = (t.transpose(0, 1)[None] for t in piece)
        pieces.append(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(pieces)


def batch_of(lengths: list[int]) -> Batch:
    return pack([[0] * length for length in lengths], [()] * len(lengths), [0] * len(lengths))


def one_sequence(query, key, value, batch):
    return BySequence()(query, key, value, batch_of([len(query)]))


def every_patch(query, key, value, lengths):
    return FULL(query, key, value, [len(query)])


def from_the_top(query, key, value, batch):
    """As if the queries were the first tokens of what they attend to."""
    key, value = (
        torch.cat([p[:n] for p, n in zip(x.split(batch.kv_lengths), batch.lengths, strict=True)])
        for x in (key, value)
    )
    return BySequence()(query, key, value, batch_of(batch.lengths))


def uniform(query, key, value, lengths):
    """As if softmax had not been applied."""
    means = [part.mean(0, keepdim=True).expand(len(part), -1, -1) for part in value.split(lengths)]
    return torch.cat(means)


CPU = resolve("cpu")
FULL = CPU.full_attention


def choosing(attend):
    return lambda *arguments, **options: attend


NORM, ADD_NORM = CPU.rms_norm, CPU.add_rms_norm
WRONG = [
    ("operators", "rms_norm, bfloat16", Cpu, "rms_norm", halves_swapped(NORM)),
    ("operators", "rms_norm, float32", Cpu, "rms_norm", off_by(1e-4, NORM)),
    ("operators", "rms_norm of zeros, float32", Cpu, "rms_norm", off_by(1e-9, NORM)),
    ("operators", "rms_norm of each head, not contiguous, bfloat16", Cpu, "rms_norm",
     other_rows(NORM)),
    ("operators", "add_rms_norm, bfloat16", Cpu, "add_rms_norm", second_twice(ADD_NORM)),
    ("operators", "swiglu, bfloat16", Cpu, "swiglu", halves_swapped(CPU.swiglu)),
    ("operators", "rotary positions, float32", Cpu, "rotate", halves_swapped(CPU.rotate)),
    ("operators", "matrix product, float32", F, "linear", in_bfloat16),
    ("operators", "embedding by int32 ids, float32", F, "embedding", lambda i, w: w[i - 1]),
    ("operators", "attention, one sequence", Cpu, "attention",
     choosing(not_causal)),
    ("operators", "attention, several sequences", Cpu, "attention",
     choosing(one_sequence)),
    ("operators", "attention, parts of sequences", Cpu, "attention",
     choosing(from_the_top)),
    ("vision", "layer_norm, bfloat16", F, "layer_norm", lambda x, *rest: F.rms_norm(x, *rest[:2])),
    ("vision", "gelu, float32", Cpu, "gelu", lambda x, _: F.gelu(x, approximate="tanh")),
    ("vision", "gelu in its tanh form, float32", Cpu, "gelu", lambda x, _: F.gelu(x)),
    ("vision", "matrix product with a bias, bfloat16", F, "linear", lambda x, w, bias: x @ w.T),
    ("vision", "index_copy_, bfloat16", torch.Tensor, "index_copy_", torch.Tensor.index_add_),
    ("vision", "rotary positions of the tower, float32", Cpu, "rotate",
     halves_swapped(CPU.rotate)),
    ("vision", "attention of several pictures, heads of 72", Cpu, "full_attention", every_patch),
    ("vision", "attention of a large picture, heads of 64", Cpu, "full_attention", uniform),
    ("vision", "a tower's pass, bfloat16", Cpu, "full_attention", uniform),
    ("vision", "a tower's pass, float32", Cpu, "full_attention", every_patch),
    ("vision", "tiny-VL, float32, eager, against the CPU", Cpu, "full_attention", uniform),
    ("kernels", "last_token_gather, float32, eager", ops, "last_token_gather",
     off_by(1e-6, ops.last_token_gather)),
    ("kernels", "score_head, bfloat16, eager", ops, "score_head", off_by(1e-3, ops.score_head)),
    ("kernels", "score_head, float32, strided rows", ops, "score_head",
     other_rows(ops.score_head)),
    ("kernels", "fused_pool, float16, eager", ops, "fused_pool", off_by(0.01, ops.fused_pool)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("group", "name", "where", "what", "wrong"), WRONG, ids=[entry[1] for entry in WRONG]
)
def test_a_wrong_operator_is_noticed(group, name, where, what, wrong, tmp_path, monkeypatch):
    assert "cases" in run(group, name, tmp_path)
    monkeypatch.setattr(where, what, staticmethod(wrong) if where is Cpu else wrong)
    with pytest.raises(checks.Wrong, match="times what is tolerated"):
        run(group, name, tmp_path)


def test_a_row_that_depends_on_its_batch_is_noticed(tmp_path, monkeypatch):
    right = ops.fused_pool
    name = "fused_pool, float32, same bits in any batch"
    run("kernels", name, tmp_path)
    monkeypatch.setattr(ops, "fused_pool", lambda x, *rest: right(x, *rest) + 1e-7 * len(x))
    with pytest.raises(checks.Wrong):
        run("kernels", name, tmp_path)


def test_an_engine_without_its_graphs_is_noticed(engine, tmp_path, monkeypatch):
    import checks.engine

    monkeypatch.setattr(checks.engine, "open_engine", lambda *_, **__: engine)
    monkeypatch.setattr(checks.engine, "reference", lambda *_: torch.tensor(engine.score(*texts)))
    texts = checks.engine.texts(engine)
    bench = checks.Bench("cuda:0", True, tmp_path)
    assert "10 documents" in checks.engine.against_cpu(bench, "tiny", "float32", graph=False)
    with pytest.raises(checks.Wrong, match="gave up its graphs"):
        checks.engine.against_cpu(bench, "tiny", "float32", graph=True)
    engine.core.graphs = Graphs()
    engine.core.graphs.replay = lambda batch, prune: None
    with pytest.raises(checks.Wrong, match="0 passes replayed"):
        checks.engine.against_cpu(bench, "tiny", "float32", graph=True)


def test_comparison_looks_at_nan_infinity_and_shape():
    nan, inf = math.nan, math.inf
    want = torch.tensor([1.0, nan, inf])
    comparison = checks.Comparison()
    comparison.add("same", torch.tensor([1.0, nan, inf]), want, 0.0)
    assert comparison.figure().startswith("1 cases, at most 0.00")
    for got in ([1.0, 1.0, inf], [nan, nan, inf], [1.0, nan, -inf], [1.0, nan, 1.0]):
        with pytest.raises(checks.Wrong, match="at "):
            comparison.add("other", torch.tensor(got), want, 1.0)
    with pytest.raises(checks.Wrong, match="shape"):
        comparison.add("shorter", want[:2], want, 1.0)


# ---- check_npu.py -------------------------------------------------------------------------------

CHECKS = r"""
import os, signal
from checks import Skip, Wrong

def wrong(bench): raise Wrong("3 is not 4")
def skip(bench): raise Skip("not here")
def raises(bench): raise RuntimeError(f"no {__file__}\nsecond line")
def dies(bench):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
def hangs(bench): signal.pause()
def right(bench): return f"process {os.getpid()}", {"answer": 42}

CHECKS = {"a": right, "b": wrong, "c": right, "d": skip, "e": raises, "f": dies, "g": hangs,
          "h": right, "i": right}
"""


def test_no_check_stops_the_others(tmp_path):
    bench = tmp_path / "bench"
    shutil.copytree(BENCH, bench)
    (bench / "checks/kernels.py").write_text(CHECKS)
    done = script(
        *("check_npu.py", "--device", "cpu", "--groups", "kernels", "--limit", "5"),
        bench=bench,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "pyrerank-npu-report.json").read_text("utf-8"))
    found = [check for check in report["checks"] if check["group"] == "kernels"]
    assert [check["name"] for check in found] == list("abcdefghi")
    status = {check["name"]: check["status"] for check in found}
    assert [name for name in status if status[name] == "FAIL"] == list("befg")
    assert status["d"] == "SKIP"
    figure = {check["name"]: check["figure"] for check in found}
    assert figure["b"] == "3 is not 4"
    assert figure["e"] == "RuntimeError: no …/kernels.py"
    assert "status -11" in figure["f"] and "last words" in found[5]["log"]
    assert "no answer within 5 s" in figure["g"]
    assert figure["a"] != figure["c"] and figure["h"] == figure["i"]  # a new process after a FAIL
    assert found[0]["data"] == {"answer": 42}
    assert report["summary"]["FAIL"] == 4
    text = (tmp_path / "pyrerank-npu-report.txt").read_text("utf-8")
    assert "FAIL  kernels: b: 3 is not 4" in text and str(tmp_path) not in text + json.dumps(report)


def test_what_runs_on_the_cpu_passes(tmp_path):
    groups = ("kernels", "memory", "speed")
    done = script("check_npu.py", "--device", "cpu", "--quick", "--groups", *groups, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    report = json.loads((tmp_path / "pyrerank-npu-report.json").read_text("utf-8"))
    assert report["summary"]["PASS"] > 30 and report["machine"]["device"] == "cpu"
    (calls,) = [c for c in report["checks"] if c["name"] == "whole calls, tiny"]
    assert calls["data"][0]["documents"] == 1 and calls["data"][0]["eager_ms"]["median"] > 0


def test_without_an_npu_it_says_what_is_missing(tmp_path, monkeypatch):
    for name in ("ASCEND_HOME_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    done = script("check_npu.py", "--report", tmp_path / "report.json")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "FAIL  environment: device: DeviceError" in done.stdout
    assert "ASCEND_HOME_PATH is not set" in done.stdout and "kernels:" not in done.stdout
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["summary"]["FAIL"] >= 2


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("aarch64-linux/ascend_toolkit_install.info", "arch=a\nversion=8.5.0\n", "8.5.0"),
        ("version.cfg", "x\ntoolkit_running_version=[7.7.0.1:8.3.RC1]\n", "8.3.RC1"),
        ("runtime/version.info", "Version=9.0.0\n", "9.0.0"),
        ("runtime/other", "", "?"),
    ],
)
def test_the_version_of_cann_is_found(file, text, version, tmp_path, monkeypatch):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert machine.cann_version() == version


def test_a_report_names_no_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "server-17")
    monkeypatch.setattr("getpass.getuser", lambda: "weiming")
    text = check_npu.clean("server-17: /home/weiming/models/x.py line 3 (weiming) 1/2 H 8, B 9/10")
    assert text == "…: …/x.py line 3 (…) 1/2 H 8, B 9/10"
