"""What the module-level functions keep between calls."""

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_random

import pyrerank
from pyrerank import Embedder, EngineClosed, Reranker, embedder, reranker

pytestmark = pytest.mark.slow

TEXTS = ["Beijing is the capital of China.", "Gravity attracts bodies.", "a"]


class Engines:
    """Engines that were made: how many, and how many there were as each was begun."""

    def __init__(self) -> None:
        self.made: list[weakref.ref] = []
        self.alive: list[int] = []


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    pyrerank.close()
    engines = Engines()
    for home, kind in ((reranker, Reranker), (embedder, Embedder)):

        def make(*args, kind=kind, **options):
            engines.alive.append(sum(engine() is not None for engine in engines.made))
            engine = kind(*args, **options)
            engines.made.append(weakref.ref(engine))
            return engine

        monkeypatch.setattr(home.LOADED, "_make", make)
    yield engines
    pyrerank.close()


@pytest.fixture
def folder(random_reranker, tmp_path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(random_reranker, tmp_path / "model")


def score(model="demo", **options) -> list[float]:
    return pyrerank.score("capital of China", TEXTS, model=model, **options)


def test_dim_and_normalize_load_nothing_and_are_those_of_an_embedder(engines, random_reranker):
    for dim in (16, 8, None, 16):
        for normalize in (True, False):
            options = {"dim": dim, "normalize": normalize}
            got = pyrerank.embed(TEXTS, model=random_reranker, **options)
            with Embedder(random_reranker, **options) as made_so:
                np.testing.assert_array_equal(got, made_so.embed(TEXTS))
                assert made_so.dim == got.shape[1]
            with Embedder(random_reranker) as whole:
                np.testing.assert_array_equal(got, whole.embed(TEXTS, **options))
    assert len(engines.made) == 1


def test_threads_that_start_together_load_once(engines):
    start = threading.Barrier(4)

    def call(_: int) -> list[float]:
        start.wait()
        return score()

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(call, range(4))
    assert others == [first] * 3 and len(engines.made) == 1


def test_ways_to_write_the_same_load_once(engines, random_reranker, monkeypatch, tmp_path):
    device, dtype = engines_choice = Reranker("demo").device, Reranker("demo").dtype
    assert engines_choice[0].type in ("cpu", "cuda", "npu")
    link = tmp_path / "link"
    link.symlink_to(random_reranker)
    monkeypatch.chdir(random_reranker.parent)
    for model in (random_reranker, str(random_reranker), random_reranker.name, link):
        for options in ({}, {"device": device}, {"device": str(device)}, {"dtype": dtype}):
            score(model, **options)
    score(random_reranker, dtype=str(dtype).removeprefix("torch."), max_tokens=500)
    pyrerank.rank("a", TEXTS, model=random_reranker)
    assert len(engines.made) == 1
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyrerank.CheckpointError):
        score(random_reranker.name)  # another folder now


def test_the_old_engine_is_closed_before_another_is_loaded(engines):
    gc.disable()  # nothing waits for the collector
    try:
        for dtype in ("float32", "bfloat16", "float32"):
            score(dtype=dtype)
    finally:
        gc.enable()
    assert engines.alive == [0, 0, 0]


def test_retrieving_and_sorting_in_turns_loads_each_model_once(engines, random_reranker):
    for _ in range(3):
        pyrerank.embed(TEXTS, model=random_reranker)
        score()
    assert len(engines.made) == 2


def test_close_lets_go_of_both(engines, random_reranker):
    pyrerank.embed(TEXTS, model=random_reranker)
    want = score()
    held = [engine() for engine in engines.made]
    pyrerank.close()
    for engine in held:
        with pytest.raises(EngineClosed, match="was closed"):
            engine.warmup()
    del engine, held
    assert [engine() for engine in engines.made] == [None, None]
    pyrerank.close()
    assert score() == want


@pytest.mark.parametrize("way", ["renamed", "in place", "config"])
def test_a_checkpoint_that_was_replaced_is_loaded_anew(engines, folder, tmp_path, way):
    before = score(folder)
    write_random(tmp_path / "other", "qwen3-reranker", tied=True, seed=5)
    file = folder / "model.safetensors"
    if way == "renamed":
        (tmp_path / "other/model.safetensors").replace(file)
    elif way == "in place":
        file.write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    else:
        config = (folder / "config.json").read_text().replace('"rms_norm_eps": 1e-06', "@")
        (folder / "config.json").write_text(config.replace("@", '"rms_norm_eps": 1e-02'))
    after = score(folder)
    with Reranker(folder) as fresh:
        assert after == fresh.score("capital of China", TEXTS)
    assert after != before and len(engines.made) == 2


def test_a_load_that_fails_leaves_nothing_behind(engines, folder):
    want = score()
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(pyrerank.CheckpointError):
        score(folder)
    assert engines.made[0]() is None
    assert score() == want


def test_max_tokens_is_of_the_call(engines):
    text = ["word " * 400]
    with pytest.warns(pyrerank.TruncationWarning, match="longer than 100 tokens") as caught:
        cut = pyrerank.score("a", text, model="demo", max_tokens=100)
    assert [warning.filename for warning in caught] == [__file__]
    whole = pyrerank.score("a", text, model="demo")
    assert len(engines.made) == 1
    with Reranker("demo", max_tokens=100) as short, Reranker("demo") as full:
        with pytest.warns(pyrerank.TruncationWarning):
            assert short.score("a", text) == cut
        assert full.score("a", text) == whole != cut
    explained = pyrerank.explain("a", text[0], model="demo", max_tokens=100)
    assert len(explained.ids) == 100


def test_closing_waits_for_a_call_of_another_thread(engines, monkeypatch):
    want = score()
    engine = engines.made[0]()
    forward, entered, go = engine.core._forward, threading.Event(), threading.Event()

    def waiting(*args):
        entered.set()
        assert go.wait(60)
        return forward(*args)

    monkeypatch.setattr(engine.core, "_forward", waiting)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(score)
        assert entered.wait(60)
        closing = pool.submit(pyrerank.close)
        go.set()
        assert call.result(60) == want
        closing.result(60)
    monkeypatch.undo()
    with pytest.raises(EngineClosed):
        engine.warmup()
