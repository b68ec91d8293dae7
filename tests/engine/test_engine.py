"""The engine against transformers: same prompt, same score, for every kind of checkpoint."""

import shutil
import threading
from dataclasses import astuple
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from checkpoints import write_classifier, write_random
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import twin
from published import Published
from safetensors.torch import load_file, save_file

import pyrerank
from pyrerank import DeviceError, NonFiniteScore, Reranker

pytestmark = pytest.mark.slow

# |score - reference|: float32 rounding of a few layers; bfloat16 has 8 bits of mantissa
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
BATCH_TOLERANCE = 1e-6  # a matrix product may add in another order when it has more rows

QUERY = "What is the capital of China? 中国的首都是哪里？"
DOCUMENTS = [
    "Beijing is the capital of China.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to objects.",
    "北京是中华人民共和国的首都，全国政治、文化中心。",
    "عاصمة الصين هي بكين، وهي مدينة قديمة.",
    "Пекин — столица Китая. 東京は日本の首都です。 서울은 한국의 수도이다.",
    "🎉🏮👩‍👩‍👧‍👦 flags: 🇨🇳🇫🇷",
    "",
    " ",
    "a",
    "def f(x):\n\treturn x ** 2  # code\n" * 4,
]
POOL = [f"{i}. {DOCUMENTS[i % len(DOCUMENTS)] * (1 + i % 3)}" for i in range(64)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes each kind of checkpoint once."""
    written: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in written:
            folder = tmp_path_factory.mktemp(kind)
            # bfloat16 on disk, as published; the reference widens the same weights to float32
            options = {"dtype": torch.bfloat16, "seed": len(kind)}
            if kind == "qwen3-vl classifier":
                write_classifier(get("qwen3-vl untied"), folder)
            elif kind == "qwen3 classifier":
                write_random(folder, "qwen3-sequence-classification", tied=False, **options)
            else:
                family, ties = kind.split()
                write_random(folder, f"{family}-reranker", tied=ties == "tied", **options)
            written[kind] = folder
        return written[kind]

    return get


@pytest.fixture(scope="module")
def published(checkpoint):
    """transformers' model of each kind, loaded once; its scores, computed once."""
    models = cache(lambda kind: Published(checkpoint(kind)))
    return cache(lambda kind, *pair: models(kind).score(*pair))


KINDS = ["qwen3 tied", "qwen3 untied", "qwen3-vl tied", "qwen3-vl untied", "qwen3 classifier"]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", KINDS)
class TestParity:
    def test_texts(self, checkpoint, published, kind, dtype):
        want = torch.tensor([published(kind, QUERY, d) for d in DOCUMENTS])
        engine = Reranker(checkpoint(kind), dtype=dtype)
        got = torch.tensor(engine.score(QUERY, DOCUMENTS))
        assert (got - want).abs().max() <= TOLERANCE[dtype]
        # the checkpoint must be able to show a difference
        assert want.max() - want.min() > 0.1
        clear = (want[:, None] - want) > TOLERANCE[dtype] * 2
        assert ((got[:, None] - got) > 0)[clear].all()

    def test_long_texts(self, checkpoint, published, kind, dtype):
        documents = [" ".join(DOCUMENTS)[:n] * m for n, m in ((300, 9), (500, 20))]
        documents += ["word " * 3900]
        want = [published(kind, QUERY, d, "Find it.") for d in documents]
        engine = Reranker(checkpoint(kind), dtype=dtype)
        results = engine.details(QUERY, documents, instruction="Find it.")
        assert [r.score for r in results] == pytest.approx(want, abs=TOLERANCE[dtype])
        assert max(r.tokens for r in results) > 3900


@pytest.mark.parametrize("kind", ["qwen3 tied", "qwen3-vl untied"])
def test_truncation_at_the_published_limit(checkpoint, published, kind):
    document = "The rain in Spain stays mainly in the plain. " * 1500
    [result] = Reranker(checkpoint(kind), dtype="float32").details(QUERY, [document])
    assert result.tokens == {"qwen3 tied": 8192, "qwen3-vl untied": 10245}[kind]
    assert result.truncated > 0
    assert result.score == pytest.approx(published(kind, QUERY, document), abs=1e-5)


def test_converted_vl_checkpoint_scores_as_its_source(checkpoint):
    source = Reranker(checkpoint("qwen3-vl untied"), dtype="float32")
    converted = Reranker(checkpoint("qwen3-vl classifier"), dtype="float32")
    assert converted.score(QUERY, DOCUMENTS) == source.score(QUERY, DOCUMENTS)


@pytest.fixture(scope="module")
def engine(checkpoint) -> Reranker:
    return Reranker(checkpoint("qwen3 tied"), dtype="float32")


class TestBatches:
    """A document's score is its own."""

    @pytest.fixture(scope="class")
    @staticmethod
    def alone(engine) -> dict[str, float]:
        return {document: engine.score(QUERY, [document])[0] for document in POOL}

    @settings(max_examples=10)
    @given(data=st.data())
    def test_in_any_batch_as_alone(self, engine, alone, data):
        documents = data.draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=64))
        budget = data.draw(st.sampled_from([1, 300, 1000, 8192]))
        other = twin(engine)
        other.core.token_budget = budget
        scores = other.score(QUERY, documents)
        assert scores == pytest.approx([alone[d] for d in documents], abs=BATCH_TOLERANCE)

    def test_all_at_once_and_in_reverse(self, engine, alone):
        for documents in (POOL, POOL[::-1]):
            scores = engine.score(QUERY, documents)
            assert scores == pytest.approx([alone[d] for d in documents], abs=BATCH_TOLERANCE)

    def test_one_to_one(self, engine):
        queries = [f"query {i}" for i in range(len(DOCUMENTS))]
        scores = engine.score(queries, DOCUMENTS)
        want = [engine.score(q, [d])[0] for q, d in zip(queries, DOCUMENTS, strict=True)]
        assert scores == pytest.approx(want, abs=BATCH_TOLERANCE)

    def test_rank(self, engine):
        scores = engine.score(QUERY, DOCUMENTS)
        ranking = engine.rank(QUERY, DOCUMENTS)
        assert [r.index for r in ranking] == sorted(range(len(scores)), key=lambda i: -scores[i])
        assert all(astuple(r) == (r.index, scores[r.index], DOCUMENTS[r.index]) for r in ranking)
        assert engine.rank(QUERY, DOCUMENTS, top_n=3) == ranking[:3]
        assert engine.rank(QUERY, DOCUMENTS, top_n=99) == ranking
        repeated = engine.rank(QUERY, ["same"] * 5)
        assert [r.index for r in repeated] == [0, 1, 2, 3, 4]

    def test_instruction(self, engine, checkpoint, published):
        want = published("qwen3 tied", QUERY, "text", "Find the opposite.")
        assert want != pytest.approx(published("qwen3 tied", QUERY, "text"), abs=1e-4)
        [per_call] = engine.score(QUERY, ["text"], instruction="Find the opposite.")
        held = Reranker(checkpoint("qwen3 tied"), dtype="float32", instruction="Find the opposite.")
        assert per_call == held.score(QUERY, ["text"])[0] == pytest.approx(want, abs=1e-5)

    def test_module_functions(self, engine, checkpoint):
        model = checkpoint("qwen3 tied")
        scores = pyrerank.score(QUERY, DOCUMENTS, model=model, dtype="float32")
        assert scores == engine.score(QUERY, DOCUMENTS)
        ranking = pyrerank.rank(QUERY, DOCUMENTS, model=model, dtype="float32", top_n=2)
        assert ranking == engine.rank(QUERY, DOCUMENTS, top_n=2)
        explanation = pyrerank.explain(QUERY, "text", model=model)
        assert explanation == engine.explain(QUERY, "text")

    def test_progress_is_silent_in_a_pipe_and_shown_on_request(self, engine, capfd):
        engine.score(QUERY, DOCUMENTS)
        assert capfd.readouterr() == ("", "")
        engine.score(QUERY, DOCUMENTS, progress=True)
        out, err = capfd.readouterr()
        assert out == "" and "pair" in err

    def test_bad_arguments_score_nothing(self, engine):
        with pytest.raises(TypeError, match=r"documents\[1\] must be a str, .*, got NoneType"):
            engine.score(QUERY, ["a", None])
        with pytest.raises(TypeError, match=r"the query of documents\[0\] must be a str, a dict"):
            engine.score([None], ["a"])
        with pytest.raises(TypeError, match="query must be one content, got a list"):
            engine.rank(["q"], ["a"])
        for top_n in (0, -1, 1.5, "3"):
            with pytest.raises(ValueError, match="top_n must be a positive int"):
                engine.rank(QUERY, ["a"], top_n=top_n)

    def test_a_document_of_five_megabytes(self, engine):
        document = "The rain in Spain. " * (5_000_000 // 19)
        [result] = engine.details(QUERY, [document])
        assert result.tokens == 8192 and result.truncated > 1_000_000
        [short] = engine.score(QUERY, [document[:100_000]])
        assert result.score == short


def trie(prompts: list[list[int]]) -> int:
    """How many nodes the tree of all prompts has."""
    return len({tuple(ids[:end]) for ids in prompts for end in range(1, len(ids) + 1)})


class TestSwitches:
    """What is left out changes no score."""

    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    @pytest.mark.parametrize("kind", ["qwen3 tied", "qwen3-vl untied"])
    def test_each_alone_and_all_together(self, checkpoint, kind, dtype):
        engine = Reranker(checkpoint(kind), dtype=dtype)
        # in common: nothing behind the query, part of a text, all but one token, all
        texts = [*POOL[:8], *(f"{DOCUMENTS[1]} {end}" for end in ("a", "b", "", "a b"))]
        queries = [QUERY, "another query"]
        pairs = [(query, text) for query in queries for text in texts]
        scores = {}
        for share in (False, True):
            for prune in (False, True):
                for budget in (8192, 300, 1):
                    engine.core.share_prefixes, engine.core.prune_last_layer = share, prune
                    engine.core.token_budget = budget
                    scores[share, prune, budget] = engine.score(
                        *map(list, zip(*pairs, strict=True))
                    )
        want = scores[False, False, 8192]
        bound = {"float32": BATCH_TOLERANCE, "bfloat16": 1e-2}[dtype]
        for switches, got in scores.items():
            assert got == pytest.approx(want, abs=bound), switches

    @pytest.mark.parametrize("budget", [8192, 500, 1])
    def test_computed_tokens_are_the_least_that_sharing_allows(self, checkpoint, budget):
        engine = Reranker(checkpoint("qwen3 tied"), dtype="float32", token_budget=budget)
        pairs = [
            engine.core.encoder.pair("", query, text)
            for query in ("a", "b c")
            for text in POOL[:20]
        ]
        prompts = [prompt.ids for prompt in engine.core.encoder.encode(pairs)]
        engine.core.results(pairs)
        assert engine.core.computed == trie(prompts)
        engine.core.share_prefixes = False
        engine.core.results(pairs)
        assert engine.core.computed == trie(prompts) + sum(map(len, prompts))

    def test_however_far_apart_they_are_in_the_call(self, checkpoint, monkeypatch):
        monkeypatch.setattr("pyrerank.engine.planner.WINDOW", 10)
        engine = Reranker(checkpoint("qwen3 tied"), dtype="float32")
        pairs = [
            engine.core.encoder.pair("", f"{query} is the question", text)
            for text in POOL[:5]
            for query in ("Who", "What", "When", "Where", "Why", "How")
        ]
        engine.core.results(pairs)
        assert engine.core.computed == trie(
            [prompt.ids for prompt in engine.core.encoder.stream(pairs)]
        )

    def test_what_is_equal_is_computed_once(self, checkpoint):
        engine = Reranker(checkpoint("qwen3 tied"), dtype="float32")
        texts = POOL[:5]
        forms = [form for t in texts for form in (t, {"text": t}, [{"type": "text", "text": t}])]
        results = engine.details(QUERY, [*forms, *texts[::-1]])
        [*prompts] = engine.core.encoder.stream(
            [engine.core.encoder.pair("", QUERY, text) for text in texts]
        )
        assert engine.core.computed == trie([prompt.ids for prompt in prompts])
        for n in range(len(texts)):
            assert results[3 * n] == results[3 * n + 1] == results[3 * n + 2] == results[-1 - n]

    def test_what_truncation_makes_equal_costs_a_token(self, checkpoint):
        engine = Reranker(checkpoint("qwen3 tied"), dtype="float32")
        documents = ["The rain in Spain. " * 2000 + end for end in ("a", "b", "c")]
        results = engine.details(QUERY, documents)
        assert len({result.score for result in results}) == 1
        # the last one is computed for each prompt
        assert engine.core.computed == results[0].tokens + 2

    def test_results_come_in_the_order_of_the_call(self, engine, monkeypatch):
        monkeypatch.setattr("pyrerank.engine.planner.WINDOW", 5)
        want = [engine.score(QUERY, [text])[0] for text in POOL[:23]]
        assert engine.score(QUERY, POOL[:23]) == pytest.approx(want, abs=BATCH_TOLERANCE)


class TestPreparation:
    """Prompts are made in a thread while others are computed."""

    def test_an_error_reaches_the_caller_and_the_engine_can_be_used_again(
        self, engine, monkeypatch
    ):
        texts = [f"text {i}" for i in range(600)]
        encode = engine.core.encoder.encode

        def fail(items):
            if items[0].document.text != "text 0":
                raise RuntimeError("of the second lot")
            return encode(items)

        with monkeypatch.context() as patched:
            patched.setattr("pyrerank.engine.planner.WINDOW", 8)
            patched.setattr(engine.core.encoder, "encode", fail)
            narrow = twin(engine)
            narrow.core.token_budget = 300
            with pytest.raises(RuntimeError, match="of the second lot"):
                narrow.score(QUERY, texts)
            assert narrow.core.computed > engine.core.computed  # the first lot was not held back
        assert not waiting_threads()
        assert len(engine.score(QUERY, texts[:2])) == 2

    def test_leaving_early_leaves_no_thread(self, engine):
        pairs = [engine.core.encoder.pair("", QUERY, text) for text in POOL]
        narrow = twin(engine)
        narrow.core.token_budget = 1
        passes = narrow.core.rows(narrow.core.encoder.stream(pairs), len(pairs), False)
        next(passes)
        assert waiting_threads()
        passes.close()
        assert not waiting_threads()


def waiting_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("pyrerank")]


class TestEngineArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dtype": "int8"}, "dtype must be one of float32, bfloat16 or None, got 'int8'"),
            ({"dtype": torch.float16}, "dtype must be one of"),
            (
                {"device": "tpu"},
                "device must be 'cpu', .*, got 'tpu'",
            ),
            ({"device": "meta"}, "device must be"),
            ({"graph": True, "device": "cpu"}, "graph=True needs a device with graphs"),
            ({"token_budget": 0}, "token_budget must be a positive int or None, got 0"),
        ],
    )
    def test_outside_the_described(self, checkpoint, arguments, message):
        with pytest.raises(ValueError, match=message):
            Reranker(checkpoint("qwen3 tied"), **arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_a_device_that_is_not_there(self, checkpoint):
        with pytest.raises(DeviceError, match="finds 0 cuda devices"):
            Reranker(checkpoint("qwen3 tied"), device="cuda:1")

    @pytest.mark.skipif(find_spec("torch_npu") is not None, reason="torch_npu is installed")
    def test_an_npu_without_torch_npu(self, checkpoint):
        with pytest.raises(DeviceError, match="needs torch_npu, which is not installed: pip inst"):
            Reranker(checkpoint("qwen3 tied"), device="npu")

    def test_torch_dtype_and_default(self, checkpoint):
        assert Reranker(checkpoint("qwen3 tied"), dtype=torch.bfloat16).dtype is torch.bfloat16
        assert Reranker(checkpoint("qwen3 tied")).dtype in (torch.bfloat16, torch.float32)


def test_nan_weights_are_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint("qwen3 tied"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    engine = Reranker(tmp_path, dtype="float32")
    with pytest.raises(NonFiniteScore, match=r"pair \d .*model\.layers\.1\.mlp\.up_proj\.weight"):
        engine.score(QUERY, DOCUMENTS)
