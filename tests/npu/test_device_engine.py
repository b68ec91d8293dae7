"""The engine on an NPU against the engine on the CPU: eagerly, and replaying graphs.

On a machine with CUDA and no torch_npu, the same on that.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import write_random
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import trie

from pyrerank import DeviceError, Embedder, Reranker
from pyrerank.devices.attention import last_rows
from pyrerank.devices.select import resolve
from pyrerank.engine.batch import pack
from pyrerank.engine.graphs import buckets
from pyrerank.prompts.items import Prompt

# |score - float32 on the CPU|: the bounds that the CPU engine has against transformers
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
BATCH_TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2}

QUERY = "What is the capital of China? 中国的首都是哪里？"
DOCUMENTS = [
    "Beijing is the capital of China.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to objects.",
    "北京是中华人民共和国的首都，全国政治、文化中心。",
    "🎉🏮👩‍👩‍👧‍👦 flags: 🇨🇳🇫🇷",
    "",
    "a",
    "def f(x):\n\treturn x ** 2  # code\n" * 4,
]
POOL = [f"{i}. {DOCUMENTS[i % len(DOCUMENTS)] * (1 + i % 3)}" for i in range(24)]

# head sizes of attention: the operator takes 128 and, without groups, 64; it pads 32
KINDS = {
    "qwen3": ("qwen3-reranker", {}),
    "qwen3-vl": ("qwen3-vl-reranker", {}),
    "classifier": ("qwen3-sequence-classification", {}),
    "heads of 128": ("qwen3-reranker", {"head_dim": 128}),
    "heads of 64": ("qwen3-reranker", {"head_dim": 64, "num_key_value_heads": 4}),
    "groups of 64": ("qwen3-reranker", {"head_dim": 64}),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    @cache
    def write(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        family, shape = KINDS[kind]
        write_random(folder, family, tied=True, dtype=torch.bfloat16, seed=len(kind), **shape)
        return folder

    return write


@pytest.fixture(scope="session")
def on_cpu(checkpoint):
    """Scores of the CPU engine in float32."""
    engines = cache(lambda kind: Reranker(checkpoint(kind), device="cpu", dtype="float32"))
    return lambda kind, documents: engines(kind).score(QUERY, documents)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_cpu(device, checkpoint, on_cpu, kind, dtype, graph):
    want = torch.tensor(on_cpu(kind, DOCUMENTS))
    engine = Reranker(checkpoint(kind), device=device, dtype=dtype, graph=graph)
    got = torch.tensor(engine.score(QUERY, DOCUMENTS))
    assert (got - want).abs().max() <= TOLERANCE[dtype]
    assert want.max() - want.min() > 0.1  # the checkpoint can show a difference
    clear = (want[:, None] - want) > TOLERANCE[dtype] * 2
    assert ((got[:, None] - got) > 0)[clear].all()
    if not graph:
        assert engine.core.graphs is None
    else:
        assert (engine.core.graphs.captures, engine.core.graphs.replays) == (1, 1)


def test_the_defaults_are_the_device_bfloat16_and_graphs_on_an_npu(device, checkpoint, on_cpu):
    engine = Reranker(checkpoint("qwen3"))
    assert (engine.device, engine.dtype) == (torch.device(device, 0), torch.bfloat16)
    got = engine.score(QUERY, DOCUMENTS)
    assert got == pytest.approx(on_cpu("qwen3", DOCUMENTS), abs=TOLERANCE["bfloat16"])
    assert (engine.core.graphs is not None) == (device == "npu")


@pytest.mark.parametrize("dtype", list(TOLERANCE), scope="class")
class TestOneSetOfGraphs:
    """Batches of any shape through the graphs of one engine."""

    @pytest.fixture(scope="class")
    @staticmethod
    def engine(device, checkpoint, dtype) -> Reranker:
        options = {"dtype": dtype, "token_budget": 448, "graph": True}
        return Reranker(checkpoint("qwen3"), device=device, **options)

    @pytest.fixture(scope="class")
    @staticmethod
    def eager(device, checkpoint, dtype) -> dict[str, float]:
        engine = Reranker(checkpoint("qwen3"), device=device, dtype=dtype, graph=False)
        return {document: engine.score(QUERY, [document])[0] for document in POOL}

    @settings(max_examples=8)
    @given(documents=st.lists(st.sampled_from(POOL), min_size=1, max_size=12, unique=True))
    def test_in_any_batch_as_alone_and_eager(self, engine, eager, dtype, documents):
        replays, captures = engine.core.graphs.replays, engine.core.graphs.captures
        scores = engine.score(QUERY, documents)
        assert scores == pytest.approx([eager[d] for d in documents], abs=BATCH_TOLERANCE[dtype])
        assert engine.core.graphs.replays > replays
        assert captures <= engine.core.graphs.captures <= len(engine.core.graphs.buckets)

    def test_a_bucket_is_captured_once(self, engine, eager, dtype):
        engine.warmup()
        assert engine.core.graphs.captures == len(buckets(448)) == 8
        replays = engine.core.graphs.replays
        for documents in (POOL[:2], POOL[2:4], POOL[:1], POOL[3:6]):
            got = engine.score(QUERY, documents)
            want = [eager[d] for d in documents]
            assert got == pytest.approx(want, abs=BATCH_TOLERANCE[dtype])
        assert (engine.core.graphs.captures, engine.core.graphs.replays) == (8, replays + 4)

    def test_a_batch_beyond_the_largest_bucket_runs_eagerly(self, engine, on_cpu, dtype):
        document = "The rain in Spain. " * 120
        replays = engine.core.graphs.replays
        [result] = engine.details(QUERY, [document])
        assert result.tokens > 448 and engine.core.graphs.replays == replays
        assert result.score == pytest.approx(on_cpu("qwen3", [document])[0], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["qwen3", "heads of 128"])
def test_what_is_left_out_changes_no_score(device, checkpoint, on_cpu, kind, dtype, graph):
    options = {"dtype": dtype, "token_budget": 300, "graph": graph}
    engine = Reranker(checkpoint(kind), device=device, **options)
    assert engine.core.share_prefixes and engine.core.prune_last_layer
    want = pytest.approx(on_cpu(kind, POOL), abs=TOLERANCE[dtype])
    computed, captures = [], []
    for share in (False, True):
        for prune in (False, True):
            engine.core.share_prefixes, engine.core.prune_last_layer = share, prune
            before = engine.core.computed
            assert engine.score(QUERY, POOL) == want
            computed.append(engine.core.computed - before)
            captures.append(engine.core.graphs.captures if graph else 0)
    assert computed[0] == computed[1] > 1.5 * computed[2] == 1.5 * computed[3]
    if graph:
        assert 0 < captures[0] < captures[1]  # of each kind a graph


WORDS = list(range(1000, 1060))
# in common with the first: nothing, one token, all but one, all, as far as it goes
PREFIXES = [WORDS, [7, *WORDS], [1000, 7, 8], [*WORDS[:-1], 9], WORDS, [*WORDS, 7, 8], WORDS[:30]]


def rows(engine: Reranker, ids: list[list[int]]) -> torch.Tensor:
    """Results of prompts of just these tokens."""
    prompts = [Prompt(list(prompt), 0) for prompt in ids]
    return torch.stack([row for _, row in engine.core.rows(prompts, len(ids), False)])


@pytest.fixture(scope="session")
def alone(checkpoint):
    """By the CPU in float32, one prompt at a time."""
    engine = Reranker(checkpoint("qwen3"), device="cpu", dtype="float32")
    return lambda ids: torch.cat([rows(engine, [prompt]) for prompt in ids])


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_prefixes_of_any_length(device, checkpoint, alone, dtype, graph):
    want = alone(PREFIXES)
    assert (want[:, 0].max() - want[:, 0].min()) > 0.1
    for budget in (1024, 70):
        engine = Reranker(
            checkpoint("qwen3"), device=device, dtype=dtype, token_budget=budget, graph=graph
        )
        for prune in (True, False):
            engine.core.prune_last_layer = prune
            got = rows(engine, PREFIXES)
            assert (got - want)[:, 0].abs().max() <= TOLERANCE[dtype]
        if budget == 1024:
            assert engine.core.computed == 2 * trie([Prompt(ids, 0) for ids in PREFIXES])
        if graph:
            assert (engine.core.graphs.replays == 2) == (budget == 1024)


def words(length: int, first: int) -> list[int]:
    return list(range(first, first + length))


# of the smallest bucket: 128 rows, 8 sequences, 3 x 128 shared keys
FILLED = {
    "all rows": [words(128, 100)],
    "all rows in two": [words(100, 100), words(28, 2000)],
    "all but one row": [words(100, 100), words(27, 2000)],
    "one row": [[100]],
    "all sequences": [words(9 + n, 100 * (n + 1)) for n in range(8)],
    "all sequences and rows": [words(16, 100 * (n + 1)) for n in range(8)],
    "all but one sequence": [words(9 + n, 100 * (n + 1)) for n in range(7)],
    # the first computes all; each other has 64 tokens in common with it
    "all keys": [words(64, 5000) + words(1 + n, 100 * (n + 1)) for n in range(7)],
    "all keys and rows": [words(64, 5000) + words(n + 4, 100 * (n + 1)) for n in range(6)]
    + [words(64, 5000) + words(25, 900)],
    "one key more": [words(65, 5000) + words(1 + n, 100 * (n + 1)) for n in range(7)],
}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_buckets_that_are_filled(device, checkpoint, alone, dtype):
    engine = Reranker(checkpoint("qwen3"), device=device, dtype=dtype, token_budget=128, graph=True)
    for name, ids in FILLED.items():
        for prune in (True, False):
            engine.core.prune_last_layer = prune
            replays = engine.core.graphs.replays
            got = rows(engine, ids)
            assert (got - alone(ids))[:, 0].abs().max() <= TOLERANCE[dtype], name
            assert engine.core.graphs.replays - replays == (2 if name == "one key more" else 1), (
                name
            )
    assert engine.core.graphs.captures == 2


def test_lengths_of_the_last_layer_are_its_own(sim, checkpoint, monkeypatch):
    engine = Reranker(checkpoint("qwen3"), device="npu", dtype="bfloat16", token_budget=128)
    updates = []
    update = torch.npu.NPUGraph.update
    monkeypatch.setattr(
        torch.npu.NPUGraph,
        "update",
        lambda self, cpu_update_input: (
            updates.append(cpu_update_input),
            update(self, cpu_update_input=cpu_update_input),
        ),
    )
    ids = [words(10, 100), [*words(10, 100), 7, 8], [5, 6]]
    queries = [2, 12, 14, 14, 14, 14, 14, 14, 128]  # in their order: 5, 6; 100, ...; and 7, 8
    keys = [2, 12, 24, 25, 26, 27, 28, 29, 520]
    for prune in (False, True):
        engine.core.prune_last_layer = prune
        rows(engine, ids)
    layers = len(engine.core.model.decoder.layers)
    own = {"actual_seq_qlen": queries, "actual_seq_kvlen": keys}
    last = {"actual_seq_qlen": list(range(1, 10)), "actual_seq_kvlen": keys}
    assert updates == [[own] * layers, [own] * (layers - 1) + [last]]


@pytest.mark.parametrize("keys", [2048, 2049])
def test_masks_up_to_the_kept_one_and_beyond(device, keys):
    got = last_rows(3, keys, torch.device(device, 0)).cpu()
    assert torch.equal(got, torch.ones(keys, keys, dtype=torch.bool).tril()[-3:])


def test_a_full_bucket_has_no_padding(device, checkpoint, on_cpu):
    options = {"dtype": "bfloat16", "token_budget": 256, "graph": True}
    engine = Reranker(checkpoint("qwen3"), device=device, **options)
    document = next(
        text
        for text in ("word " * n for n in range(200))
        if engine.details(QUERY, [text])[0].tokens == 256
    )
    assert engine.score(QUERY, [document]) == pytest.approx(
        on_cpu("qwen3", [document]), abs=TOLERANCE["bfloat16"]
    )


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_engines_on_two_devices_take_turns(device, checkpoint, on_cpu, graph):
    if resolve(device).count() < 2:
        pytest.skip("needs two devices")
    names = (device, f"{device}:1")
    engines = [Reranker(checkpoint("qwen3"), device=name, graph=graph) for name in names]
    assert [str(engine.device) for engine in engines] == [f"{device}:0", f"{device}:1"]
    for documents in (DOCUMENTS, POOL, DOCUMENTS[:2]):
        want = on_cpu("qwen3", documents)
        for engine in engines:
            got = engine.score(QUERY, documents)
            assert got == pytest.approx(want, abs=TOLERANCE["bfloat16"])


def test_a_device_that_is_not_there(device, checkpoint):
    with pytest.raises(DeviceError, match=rf"'{device}:63' is not there: torch finds \d+ {device}"):
        Reranker(checkpoint("qwen3"), device=f"{device}:63")


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_host_waits_once_a_batch(sim, tmp_path, graph, layers):
    """One copy there, one back, one wait, however many layers; a replay allocates nothing."""
    write_random(tmp_path, "qwen3-reranker", tied=True, num_hidden_layers=layers)
    engine = Reranker(tmp_path, device="npu", dtype="bfloat16", graph=graph)
    engine.score(QUERY, DOCUMENTS)
    before = sim.stats()
    engine.score(QUERY, DOCUMENTS[::-1])
    after = sim.stats()
    change = {name: after[name] - before[name] for name in after}
    prompts = engine.core.encoder.encode(
        [engine.core.encoder.pair("", QUERY, d) for d in DOCUMENTS]
    )
    [planned] = engine.core._plan([prompts])
    batch = pack(planned.ids, planned.spans, planned.shared)
    assert change["syncs"] == 2  # torch_npu's blocking copy: the stream, then the copy itself
    assert change["d2h"] == 8 * len(DOCUMENTS)
    assert change["replays"] == graph
    assert change["updates"] == graph * layers
    assert change["mallocs"] == 0
    if graph:
        bucket = engine.core.graphs.bucket(batch)
        ends = 2 * (bucket.sequences + 2)  # of tokens and of keys
        assert change["h2d"] == 4 * (4 * bucket.tokens + ends + bucket.keys)
    else:
        assert change["h2d"] == 4 * len(batch.data)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_what_a_stream_leaves_for_the_next(device, checkpoint, graph):
    engine = Reranker(checkpoint("qwen3"), device=device, dtype="float32", graph=graph)
    want = engine.score(QUERY, DOCUMENTS)
    prompts = engine.core.encoder.encode(
        [engine.core.encoder.pair("", QUERY, text) for text in DOCUMENTS]
    )
    engine.core.computed = 0
    for prompt, score in zip(prompts, want, strict=True):
        [(_, rows)] = engine.core.stream([[prompt]], keep=True)
        assert abs(rows[0, 0].item() - score) <= BATCH_TOLERANCE["float32"]
    everything = sum(len(prompt.ids) for prompt in prompts)
    assert engine.core.computed == everything if graph else engine.core.computed < everything / 2


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_embeddings_are_those_of_the_cpu(device, checkpoint, dtype, graph):
    want = Embedder(checkpoint("qwen3"), device="cpu", dtype="float32", dim=64).embed(POOL)
    engine = Embedder(checkpoint("qwen3"), device=device, dtype=dtype, dim=64, graph=graph)
    for texts in (POOL, POOL[:3], POOL[5:6]):
        got = engine.embed(texts)
        cosine = (got * want[POOL.index(texts[0]) :][: len(texts)]).sum(1)
        assert abs(cosine - 1).max() <= {"float32": 1e-5, "bfloat16": 5e-3}[dtype]
    assert (engine.core.graphs is not None) == graph
