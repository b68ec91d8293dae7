"""What is passed is heeded, in whatever form it comes, or refused by its name."""

import array
import collections
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyrerank
from pyrerank import Embedder, Fetcher, Media, OutOfMemory, Reranker, TruncationWarning
from pyrerank.checks import check_int, entries
from pyrerank.cli.main import main
from pyrerank.devices import ascend
from pyrerank.devices.select import resolve

pytestmark = pytest.mark.slow

pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")

QUERY = "capital of China"
TEXTS = ["Gravity attracts bodies.", "Beijing is the capital of China.", "a"]


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return Reranker("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def embedder(random_reranker) -> Embedder:
    return Embedder(random_reranker, device="cpu", dtype="float32")


FORMS = {
    "tuple": tuple,
    "deque": collections.deque,
    "UserList": collections.UserList,
    "array of str": np.array,
    "array of objects": lambda texts: np.array(texts, dtype=object),
    "list of numpy.str_": lambda texts: list(np.array(texts)),
    "a view": lambda texts: np.array([t for text in texts for t in (text, "x")])[::2],
    "Series": pandas.Series,
    "Series with an index of its own": lambda texts: pandas.Series(texts, index=[7, 0, 3]),
    "Series of strings": lambda texts: pandas.Series(texts, dtype="string", index=list("cab")),
    "Series of categories": lambda texts: pandas.Series(texts, dtype="category"),
    "Index": pandas.Index,
    "pyarrow": pyarrow.array,
    "chunks": lambda texts: pyarrow.chunked_array([texts[:1], texts[1:]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_of_texts_in_any_form(engine, embedder, form):
    given = FORMS[form](TEXTS)
    want = engine.score(QUERY, TEXTS)
    assert engine.score(QUERY, given) == want
    assert engine.score(FORMS[form]([QUERY] * 3), given) == want
    ranking = engine.rank(QUERY, given)
    assert [each.index for each in ranking] == [each.index for each in engine.rank(QUERY, TEXTS)]
    assert [each.document for each in ranking] == [TEXTS[each.index] for each in ranking]
    np.testing.assert_array_equal(embedder.embed(given), embedder.embed(TEXTS))
    with pytest.raises(TypeError, match="query must be one content, got a list"):
        engine.rank(FORMS[form]([QUERY] * 3), given)


def test_a_ranking_has_the_callers_own_documents(engine):
    documents = [{"text": text} for text in TEXTS]
    for form in (documents, np.array(documents), pandas.Series(documents, index=[9, 8, 7])):
        for each in engine.rank({"text": QUERY}, form):
            assert each.document is documents[each.index]


NONE = {
    "str": "a text",
    "numpy.str_": np.str_("a text"),
    "bytes": b"a text",
    "a dict": {"text": "a"},
    "None": None,
    "a number": 5,
    "an array of no dimension": np.array("a"),
}
UNORDERED = {
    "a set": {"a"},
    "a frozenset": frozenset("a"),
    "a generator": (text for text in "ab"),
    "values": {"a": "b"}.values(),
    "map": map(str, "ab"),
}
TABLES = {
    "two dimensions": np.array([["a"]]),
    "a DataFrame": pandas.DataFrame({"text": ["a"]}),
    "a Table": pyarrow.table({"text": ["a"]}),
}


@pytest.mark.parametrize("kind", [*NONE, *UNORDERED, *TABLES])
def test_what_is_no_sequence(engine, embedder, kind):
    value, remedy = (NONE | UNORDERED | TABLES)[kind], "wrap a single content in a list"
    if kind in UNORDERED:
        remedy = r"make it one: list\(\w+\)"
    if kind in TABLES:
        remedy = r"its shape is \(1, 1\): give one column"
    with pytest.raises(TypeError, match=f"^documents must be a list, got .*; {remedy}$"):
        engine.score(QUERY, value)
    with pytest.raises(TypeError, match=f"^documents must be a list, got .*; {remedy}$"):
        engine.rank(QUERY, value)
    with pytest.raises(TypeError, match=f"^inputs must be a list, got .*; {remedy}$"):
        embedder.embed(value)


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, 2]),
        array.array("i", [1, 2]),
        range(2),
        np.array([b"a"]),
        pandas.Series(["a", None])[1:],
        pandas.Series(["a", float("nan")])[1:],
        pyarrow.array([None]),
        torch.arange(2),
    ],
    ids=str,
)
def test_a_sequence_of_something_else_names_its_entry(engine, value):
    with pytest.raises(TypeError, match=r"^documents\[0\] must be a str, a dict .*, got \w+"):
        engine.score(QUERY, value)


def test_empty_ones(engine, embedder):
    for empty in ([], np.array([]), pandas.Series([], dtype=str), pyarrow.array([])):
        with pytest.raises(ValueError, match="documents is empty"):
            engine.score(QUERY, empty)
        with pytest.raises(ValueError, match="inputs is empty"):
            embedder.embed(empty)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=5))
def test_entries_are_those_of_the_list(texts):
    for form in (tuple, pandas.Series, pyarrow.array, lambda t: np.array(t, dtype=object)):
        assert entries(form(texts)) == texts


INTS = [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5)]
NO_INTS = [True, np.True_, 5.0, np.float32(5), "5", b"5", None, [5], 0, -1, np.int64(0)]


def test_whole_numbers_of_any_type():
    for value in INTS:
        assert type(check_int("n", value, "an int from 1 up", 1)) is int
    for value in NO_INTS:
        with pytest.raises(ValueError, match="n must be an int from 1 to 9, got"):
            check_int("n", value, "an int from 1 to 9", 1, 9)
    with pytest.raises(ValueError, match="n must be an int from 1 to 9, got 10"):
        check_int("n", 10, "an int from 1 to 9", 1, 9)


@pytest.mark.parametrize("value", [True, np.True_, 2.5, "512", -1])
def test_every_whole_number_of_the_interface(engine, embedder, random_reranker, value):
    calls = {
        "token_budget": lambda: Reranker("demo", token_budget=value),
        "vision_cache": lambda: Reranker("demo", vision_cache=value),
        "max_tokens": lambda: Reranker("demo", max_tokens=value),
        "top_n": lambda: engine.rank(QUERY, TEXTS, top_n=value),
        "dim": lambda: Embedder(random_reranker, dim=value),
        "dim ": lambda: embedder.embed(TEXTS, dim=value),
        "max_image_tokens": lambda: Media(max_image_tokens=value),
        "max_video_frames": lambda: Media(max_video_frames=value),
        "max_bytes": lambda: Fetcher(max_bytes=value),
        "redirects": lambda: Fetcher(redirects=value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name.strip()} must be .*, got "):
            call()


def test_numpy_integers_do(engine, embedder):
    with Reranker("demo", token_budget=np.int64(512), vision_cache=np.int32(0)) as other:
        assert other.token_budget == 512
    assert len(engine.rank(QUERY, TEXTS, top_n=np.int64(2))) == 2
    assert embedder.embed(TEXTS, dim=np.int16(8)).shape == (3, 8)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, [], np.array(True)])
def test_every_switch_of_the_interface(engine, embedder, random_reranker, value):
    calls = {
        "graph": lambda: Reranker("demo", graph=value),
        "normalize": lambda: Embedder(random_reranker, normalize=value),
        "normalize ": lambda: embedder.embed(TEXTS, normalize=value),
        "progress": lambda: engine.score(QUERY, TEXTS, progress=value),
        "progress ": lambda: embedder.embed(TEXTS, progress=value),
        "files": lambda: Media(files=value),
        "private": lambda: Fetcher(private=value),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name.strip()} must be True or False, got"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Media(fetch="yes"), "fetch must be a function .*, got 'yes'"),
        (lambda: Media(wanted=None), "wanted must be a function, got None"),
        (lambda: Fetcher(seconds=0), "seconds must be a number above 0, got 0"),
        (lambda: Fetcher(seconds=True), "seconds must be a number above 0, got True"),
        (lambda: Fetcher(seconds="9"), "seconds must be a number above 0, got '9'"),
        (lambda: Fetcher(seconds=float("nan")), "seconds must be a number above 0, got nan"),
        (lambda: Fetcher(hosts=[b"a"]), "hosts must be a list of host names, got"),
        (lambda: Fetcher(hosts=b"a"), "hosts must be a list of host names, got"),
        (lambda: Reranker("demo", instruction=5), "instruction must be str, got int"),
        (lambda: Reranker("demo", device=0), "device must be a str, a torch.device or None, got i"),
        (lambda: Reranker("demo", device="cpu:1"), "device must be 'cpu', .*, got 'cpu:1'"),
        (lambda: Reranker("demo", device=""), "device must be 'cpu', .*, got ''"),
        (lambda: Reranker("demo", dtype=np.float32), "dtype must be one of float32, bfloat16"),
        (lambda: Reranker("demo", dtype="Float32"), "dtype must be one of float32, bfloat16"),
        (lambda: Reranker("demo", dtype=""), "dtype must be one of float32, bfloat16"),
    ],
)
def test_other_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("name", ["encode", "predict", "similarity", "encode_query", "tokenize"])
def test_names_of_sentence_transformers_are_not_there(engine, embedder, name):
    assert not hasattr(engine, name) and not hasattr(embedder, name)


class TestMaxTokens:
    LONG = " ".join(["word"] * 12000)

    def test_up_to_the_positions_of_the_checkpoint(self, random_reranker):
        with pytest.raises(ValueError, match=r"max_tokens must be an int from \d+ to 40960, the"):
            Embedder(random_reranker, max_tokens=40961)
        with Embedder(random_reranker, device="cpu", max_tokens=12001) as long:
            [whole] = long.details([self.LONG])
            assert (whole.tokens, whole.truncated) == (12001, 0)
            long.max_tokens = None
            [cut] = long.details([self.LONG])
            assert (cut.tokens, cut.truncated) == (8192, 12001 - 8192)
            with pytest.warns(TruncationWarning, match="8192 tokens"):
                [vector] = long.embed([self.LONG])
            np.testing.assert_array_equal(vector, cut.vector)
            assert np.abs(vector - whole.vector).max() > 1e-4

    def test_a_prompt_that_leaves_no_room(self, engine):
        least = engine.core.encoder._least
        assert 16 <= least - len(engine.explain("", "").ids) < 20
        with pytest.raises(ValueError, match=f"max_tokens must be an int from {least} to 40960"):
            engine.max_tokens = least - 1
        with Reranker("demo", max_tokens=least) as short:
            [result] = short.details("query " * 30, ["document " * 30], instruction="")
            assert result.tokens == least
            with pytest.raises(ValueError, match=r"too long: .* raise max_tokens"):
                short.score("a", ["b"], instruction="word " * 30)

    def test_a_warning_once_a_call(self, embedder):
        with Reranker("demo", device="cpu", max_tokens=120) as short:
            texts = ["a", "word " * 300, "b", "word " * 400]
            for call in (short.score, short.rank):
                with pytest.warns(TruncationWarning) as caught:
                    call(QUERY, texts)
                [warning] = caught
                said = str(warning.message)
                assert said.startswith("2 of 4 prompts were longer than 120 tokens")
                assert "that of pair 1:" in said and "max_tokens= allows up to 40960" in said
                assert warning.filename == __file__
        embedder.max_tokens = 100
        with pytest.warns(TruncationWarning, match=r"that of inputs\[3\]") as caught:
            embedder.embed(["a"] * 3 + texts[1:2])
        embedder.max_tokens = None
        assert len(caught) == 1

    def test_of_the_command_line(self, capsys):
        given = ["--model", "demo", "--query", "a", "--max-tokens", "100", "word " * 300]
        assert main(["explain", *given]) == 0
        assert "\n100 tokens, " in capsys.readouterr().out
        for command in ("score", "rank"):
            assert main([command, *given]) == 0
            said = capsys.readouterr().err
            assert said.startswith("pyrerank: warning: 1 of 1 prompts were longer than 100 tokens")

    @pytest.mark.filterwarnings("error")
    def test_no_warning_where_nothing_is_cut_or_each_is_told(self, engine, embedder):
        engine.rank(QUERY, TEXTS)
        embedder.embed(TEXTS)
        assert embedder.details([self.LONG])[0].truncated


class TestVectorsOfNoLength:
    @pytest.fixture
    def zeros(self, embedder, monkeypatch):
        """The second of four inputs has a vector that begins with 8 zeros."""
        passes = embedder.core.rows

        def some(*args):
            for prompt, row in passes(*args):
                if len(prompt.ids) == 4:
                    row = row.clone()
                    row[:8] = 0
                yield prompt, row

        monkeypatch.setattr(embedder.core, "rows", some)
        return ["one", "two two two", "one one", "two two two"]

    def test_is_an_error_that_names_the_first_index(self, embedder, zeros):
        for normalize in (True, False):
            for call in (embedder.embed, embedder.details):
                with pytest.raises(
                    pyrerank.NonFiniteScore,
                    match=r"^the model gave a vector of length 0 for inputs\[1\] .* first 8 nu",
                ):
                    call(zeros, dim=8, normalize=normalize)
        assert np.isfinite(embedder.embed(zeros, dim=9)).all()

    def test_the_error_keeps_no_thread(self, embedder, zeros):
        with pytest.raises(pyrerank.NonFiniteScore) as raised:
            embedder.embed(zeros, dim=8)
        assert raised.value.__traceback__ is not None
        assert not [t for t in threading.enumerate() if t.name.startswith("pyrerank-ahead")]

    def test_vectors_have_length_1_in_float32(self, embedder, random_reranker):
        for dtype in ("float32", "bfloat16"):
            with Embedder(random_reranker, device="cpu", dtype=dtype) as engine:
                for dim in (1, 7, 96):
                    lengths = np.linalg.norm(engine.embed(TEXTS, dim=dim), axis=1)
                    np.testing.assert_allclose(lengths, 1, atol=1e-6)

    @pytest.mark.parametrize("call", [Embedder, lambda m: pyrerank.embed(["a"], model=m)])
    def test_the_demonstration_model_is_no_embedder(self, call):
        with pytest.raises(pyrerank.CheckpointError, match="which scores pairs: use Reranker"):
            call("demo")


class TestMemory:
    def test_too_little_for_a_pass_on_a_cpu(self, engine, monkeypatch):
        monkeypatch.setattr(engine.core, "model", lambda *args, **options: torch.empty(2**48))
        engine.core.model.no_prefix = Reranker("demo").core.model.no_prefix
        with pytest.raises(OutOfMemory, match=r"cpu has too little .*; the engine can be used aga"):
            engine.score(QUERY, TEXTS)
        monkeypatch.undo()
        assert len(engine.score(QUERY, TEXTS)) == 3

    @pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
    def test_other_allocators(self, engine, error):
        with (
            pytest.raises(OutOfMemory, match="cpu has too little free"),
            engine.core.failures.named(),
        ):
            raise error("no more")

    def test_too_little_for_the_weights(self, monkeypatch):
        def load(*args):
            torch.empty(2**48)

        monkeypatch.setattr("pyrerank.engine.core.Decoder.load", load)
        with pytest.raises(OutOfMemory, match=r"cpu has too little .*; no engine was made"):
            Reranker("demo", device="cpu")

    def test_an_engine_is_freed_without_the_collector(self, random_reranker):
        engines = [Reranker("demo", device="cpu"), Embedder(random_reranker, device="cpu")]
        for engine in engines:
            engine.explain("a", "b") if isinstance(engine, Reranker) else engine.embed(["a"])
        gc.collect()
        parts = [("encoder",), ("encoder", "_tokenizer"), ("model", "decoder")]
        held = []
        for engine in engines:
            for names in parts:
                part = engine.core
                for name in names:
                    part = getattr(part, name)
                if not isinstance(part, type(engine.core.encoder._tokenizer)):  # no weak references
                    held.append(weakref.ref(part))
        gc.disable()
        try:
            del engine, engines, part
            assert [thing() for thing in held] == [None] * len(held)
        finally:
            gc.enable()


def test_a_torch_npu_that_does_not_work_is_passed_over_with_a_warning(monkeypatch):
    def broken():
        raise pyrerank.DeviceError("torch_npu 9.9 does not import (no libascendcl)")

    monkeypatch.setattr(ascend, "installed", lambda package: "9.9")
    monkeypatch.setattr(ascend, "_torch_npu", broken)
    with pytest.warns(RuntimeWarning, match="no NPU is used: torch_npu 9.9 does not") as seen:
        found = resolve(None)
    assert found.name == ("cuda" if torch.cuda.is_available() else "cpu")
    assert seen[0].filename == __file__
    with pytest.raises(pyrerank.DeviceError, match="does not import"):
        resolve("npu")
