"""bench/engine.py works as a whole, and its counts are those of other ways of counting."""

import json
import math
import mmap
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3VLForConditionalGeneration

from pyrerank.weights.checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long]

BENCH = Path(__file__).parents[2] / "bench"
sys.path += [str(BENCH), str(BENCH / "peers")]

import engine  # noqa: E402
import prompts  # noqa: E402
import random_checkpoint  # noqa: E402
import report as reports  # noqa: E402
import work  # noqa: E402
import worker  # noqa: E402
import workloads  # noqa: E402
from engines import PEERS, interpreters  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    out = {}
    for name in ("tiny", "tiny-VL"):
        out[name] = tmp_path_factory.mktemp(name)
        random_checkpoint.write(out[name], name)
    return out


@cache
def tokenizer(folder: Path) -> Tokenizer:
    return open_checkpoint(folder).tokenizer()


def source(folder: Path, pictures: Path, seed: object = 0) -> workloads.Source:
    return workloads.Source(tokenizer(folder), pictures, random.Random(str(seed)))


# ---- workloads ----------------------------------------------------------------------------------


def texts(job: workloads.Job) -> list[object]:
    """Of documents or inputs, and last of the query; pictures as their bytes."""
    many = [*job.get("inputs", job.get("documents")), job.get("query", "")]
    return [Path(t["image"]).read_bytes() if isinstance(t, dict) else str(t) for t in many]


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_a_job_is_decided_by_its_seed(name, folders, tmp_path):
    make = workloads.WORKLOADS[name].job
    first, again = (texts(make(source(folders["tiny-VL"], tmp_path, 1), 3)) for _ in range(2))
    other = texts(make(source(folders["tiny-VL"], tmp_path, 2), 3))
    assert first == again
    assert not any(text in first for text in other if text)


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [("1x32", 30, 200), ("1x100", 30, 100), ("pairs", 30, 100), ("random", 30, 200),
     ("short-10000", 30, 20), ("embed", None, 200)],
)  # fmt: skip
def test_texts_are_as_long_as_promised(name, query, document, folders, tmp_path):
    count = 40
    job = workloads.WORKLOADS[name].job(source(folders["tiny"], tmp_path), count)
    encode = tokenizer(folders["tiny"]).encode

    def lengths(values):
        return {len(encode(value, add_special_tokens=False).ids) for value in values}

    documents = job.get("inputs") or job["documents"]
    assert len(set(documents)) == count and lengths(documents) == {document}
    if query is not None:
        queries = job["query"] if name == "pairs" else [job["query"]]
        assert len(set(queries)) == (count if name == "pairs" else 1)
        assert lengths(queries) == {query}


def test_pages_are_pictures_of_text(folders, tmp_path):
    from PIL import Image

    page = source(folders["tiny"], tmp_path).page(896, 1120)
    with Image.open(page["image"]) as picture:
        assert picture.size == (896, 1120)
        ink = sum(picture.convert("L").histogram()[:128]) / (896 * 1120)
    assert 0.03 < ink < 0.4


def test_a_part_of_a_job_has_its_first_documents():
    assert workloads.first({"query": "q", "documents": list("abc")}, 2) == {
        "query": "q",
        "documents": ["a", "b"],
    }
    job = {"query": list("123"), "documents": list("abc")}
    assert workloads.first(job, 1) == {"query": ["1"], "documents": ["a"]}


# ---- the least work -----------------------------------------------------------------------------


def test_a_tree_has_a_node_for_every_different_beginning():
    drawn = random.Random(0)
    sequences = [[drawn.randrange(3) for _ in range(drawn.randrange(1, 9))] for _ in range(60)]
    beginnings = {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}
    assert sorted(work.depths(sequences)) == sorted(map(len, beginnings))
    assert list(work.depths([])) == []


@pytest.mark.parametrize("name", ["1x32", "pairs", "images", "embed"])
def test_pyrerank_computes_the_least(name, folders, tmp_path):
    from pyrerank import Embedder, Reranker

    job = workloads.WORKLOADS[name].job(source(folders["tiny-VL"], tmp_path), 4)
    encoded = work.encode(open_checkpoint(folders["tiny-VL"]), job)
    least = work.work(open_checkpoint(folders["tiny-VL"]), encoded)
    if name == "embed":
        ours = Embedder(folders["tiny-VL"], device="cpu", dtype="float32")
        ours.embed(job["inputs"])
    else:
        ours = Reranker(folders["tiny-VL"], device="cpu", dtype="float32")
        details = ours.details(job["query"], job["documents"])
        assert least.billed == sum(detail.tokens for detail in details)
    beginnings = {
        tuple(tokens[:end]) for tokens in map(work.tokens, encoded) for end in range(len(tokens))
    }
    # the empty one is of all; each prompt, whole, is its own
    assert ours.core.computed == least.least == len(beginnings) - 1 + len(encoded)


def counted(model: torch.nn.Module, **inputs: torch.Tensor) -> dict[str, int]:
    """Floating-point operations of each module, as torch counts what it runs."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(**inputs)
    return {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}


def of_decoder(found: dict[str, int], decoder: str, layers: int, tokens: int) -> int:
    """What pruned causal layers would have taken of what whole ones took."""
    total = 0
    for number in range(layers):
        attention, mlp = (f"{decoder}.layers.{number}.{part}" for part in ("self_attn", "mlp"))
        q, k, v, o = (found[f"{attention}.{part}_proj"] for part in "qkvo")
        rows = q + o + found[mlp]
        # every token with every token, where half and the diagonal are needed
        mixed = found[attention] - q - k - v - o
        last = number == layers - 1
        total += k + v + (rows // tokens if last else rows)
        total += mixed // tokens if last else mixed * (tokens + 1) // (2 * tokens)
    return total


def test_operations_of_the_decoder_are_those_that_torch_counts(folders):
    checkpoint = open_checkpoint(folders["tiny"])
    encoded = work.encode(checkpoint, {"query": "a", "documents": ["Some text of a document."]})
    model = AutoModelForCausalLM.from_pretrained(
        folders["tiny"], dtype=torch.float32, attn_implementation="eager"
    )
    found = counted(model, input_ids=torch.tensor([encoded[0].ids]))
    prefix = next(name for name in found if name.endswith("layers.0.mlp"))[: -len(".layers.0.mlp")]
    expected = of_decoder(found, prefix, 2, len(encoded[0].ids))
    assert work.work(checkpoint, encoded).flops == expected


def test_operations_of_the_tower_are_those_that_torch_counts(folders, tmp_path):
    checkpoint = open_checkpoint(folders["tiny-VL"])
    pictures = [source(folders["tiny-VL"], tmp_path).page(*size) for size in ((64, 96), (128, 64))]
    encoded = work.encode(checkpoint, {"query": pictures[0], "documents": [pictures[1]]})
    blank = work.encode(checkpoint, {"query": "a", "documents": ["b"]})[0]
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        folders["tiny-VL"], dtype=torch.float32, attn_implementation="eager"
    )
    grids = torch.tensor([[1, 6, 4], [1, 4, 8]])  # in any order: the sum is the same
    tower = model.model.visual
    patches = torch.zeros(int(grids.prod(1).sum()), 1536)
    found = counted(tower, hidden_states=patches, grid_thw=grids)
    with_pictures = work.work(checkpoint, encoded).flops
    bare = type(encoded[0])([0] * len(encoded[0].ids), 0)
    assert with_pictures - work.work(checkpoint, [bare]).flops == found["Global"] > 0
    # the same number of tokens, but no tower
    assert work.work(checkpoint, [blank]).flops < with_pictures


def test_shared_tokens_are_counted_once(folders):
    checkpoint = open_checkpoint(folders["tiny"])

    def flops(*documents: str) -> work.Work:
        encoded = work.encode(checkpoint, {"query": "What?", "documents": list(documents)})
        return work.work(checkpoint, encoded)

    one, other, both = flops("alpha beta"), flops("alpha gamma"), flops("alpha beta", "alpha gamma")
    shared = one.least + other.least - both.least
    assert both.billed == one.billed + other.billed and 0 < shared < one.least
    config = checkpoint.config
    once = sum(work._token(config, depth) for depth in range(1, shared + 1))
    assert one.flops + other.flops - both.flops == once


# ---- workers ------------------------------------------------------------------------------------


def test_a_template_writes_the_published_prompt(folders):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    before, between, after = prompts.PARTS["qwen3_vl"]
    # as transformers compiles templates
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(prompts.chat_template("qwen3_vl"))
    messages = [
        {"role": "query", "content": 'a "quoted"\n'},
        {"role": "document", "content": [{"type": "image"}, {"type": "text", "text": " {{b}} "}]},
    ]
    want = f'{before}a "quoted"\n{between}{prompts.IMAGE} {{{{b}}}} {after}'
    assert template.render(messages=messages) == want


def test_memory_is_that_of_this_process_and_its_peak_is_forgotten():
    worker.reset_peak()
    start = worker.memory()
    # not out of what was freed before, as a tensor may be
    block = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE)
    block.write(bytes(len(block)))
    held = worker.memory()
    assert held["anonymous_bytes"] - start["anonymous_bytes"] > 48 << 20
    block.close()
    assert worker.memory()["peak_bytes"] - start["peak_bytes"] > 48 << 20
    worker.reset_peak()
    assert worker.memory()["peak_bytes"] < held["peak_bytes"] - (48 << 20)


def test_a_peer_has_its_own_python():
    assert interpreters(["transformers", "vllm=/x/python"]) == {
        "transformers": sys.executable,
        "vllm": "/x/python",
    }
    with pytest.raises(SystemExit, match="no peer 'other'; there are transformers"):
        interpreters(["other"])
    for kind in PEERS.values():
        assert (BENCH / "peers" / f"{kind.module}.py").is_file()


# ---- whole runs ---------------------------------------------------------------------------------


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "engine.py"), *map(str, arguments)]
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=one)


def test_a_run_measures_every_engine_and_compares_their_scores(folders, tmp_path):
    options = ["--device", "cpu", "--scale", 0.02, "--rounds", 1, "--threads", 1]
    options += ["--workloads", "pairs", "images", "--dtype", "float32", "--switches"]
    done = script(folders["tiny-VL"], *options, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    names = ["pyrerank", "transformers", "pyrerank, prefixes not shared"]
    names += ["pyrerank, last layer whole", "pyrerank, neither"]
    found = [(row["workload"], row["engine"]) for row in report["rows"]]
    assert found == [(workload, name) for workload in ("pairs", "images") for name in names]
    for row in report["rows"]:
        assert row["documents"] == (2 if row["workload"] == "pairs" else 1)
        speed, times, share = (row[k] for k in ("pairs_per_second", "times", "share_of_peak"))
        for values in (speed, times, share, row["seconds"]):
            assert 0 < values["min"] <= values["median"] <= values["max"]
        assert row["least_tokens"] <= row["billed_tokens"] and row["peak_bytes"] > 100 << 20
        assert row["difference"] < 1e-5
        shares = row["engine"] in ("pyrerank", "pyrerank, last layer whole")
        if row["engine"] == "transformers":
            assert "computed_tokens" not in row
        else:
            whole = row["least_tokens"] if shares else row["billed_tokens"]
            assert row["computed_tokens"] == whole
        assert (
            f"| {row['engine']} | {row['documents']} | {reports.number(speed['median'])} ("
            in done.stdout
        )
    assert {(e["engine"], e["task"]) for e in report["engines"]} == {
        ("pyrerank", "score"),
        ("transformers", "score"),
    }
    assert all(e["starts"] == 1 and e["version"] for e in report["engines"])
    assert report["machine"]["torch"] == torch.__version__ and report["weights"]["bytes"] > 1e6
    assert report["too_different"] == [] and "FAIL" not in done.stdout


def test_scores_that_differ_fail_the_run(folders, tmp_path, monkeypatch, capsys):
    def answer(engine, job):
        score = 0.5 if engine._module == "pyrerank_engine" else math.nan
        return {"scores": [score] * len(job["documents"]), "seconds": 1.0, "since_start": 1.0,
                "peak_bytes": 1, "anonymous_bytes": 1}  # fmt: skip

    class Silent:
        def __init__(self, kind, *_):
            self._module = kind.module

        ask = answer

        def close(self):
            pass

    monkeypatch.setattr(engine, "Engine", Silent)
    options = ["--device", "cpu", "--workloads", "pairs", "--scale", "0.01", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["engine.py", str(folders["tiny"]), *options])
    assert engine.main() == 1
    assert "FAIL: pairs: scores of transformers differ by more than" in capsys.readouterr().out


def test_a_peer_that_dies_shows_what_it_said(folders):
    options = ["--device", "cpu", "--workloads", "pairs", "--scale", 0.01, "--rounds", 1]
    done = script(folders["tiny"], *options, "--threads", 1, "--peers", "vllm")
    assert done.returncode == 1 and "Error" in done.stderr
    assert "vllm_pooling ended without an answer" in done.stderr
    done = script(folders["tiny"], "--workloads", "images", "--device", "cpu")
    assert done.returncode == 1 and "reads text only: leave out images" in done.stderr


def test_a_plot_has_a_panel_for_each_workload(tmp_path):
    pytest.importorskip("matplotlib")
    values = {"median": 2.0, "min": 1.0, "max": 3.0}
    row = {"documents": 4, "pairs_per_second": values}
    rows = [
        {"workload": workload, "engine": name, **row}
        for workload in ("pairs", "images")
        for name in ("pyrerank", "transformers")
    ]
    reports.plot({"rows": rows}, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.count('id="axes_') == 2
