"""Threads share an engine, forked processes do not, and who is done with one closes it."""

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import pyrerank
from pyrerank import Embedder, EngineClosed, Reranker
from pyrerank.engine.batch import Batch
from pyrerank.engine.graphs import buckets

pytestmark = pytest.mark.slow

QUERY = "a rocket"
TEXTS = [f"text {i} about rockets " * (1 + i % 7) for i in range(24)]


@pytest.fixture
def engine() -> Reranker:
    return Reranker("demo", device="cpu", dtype="float32", token_budget=300)


class StaticGraphs:
    """Results lie in one buffer, as those of captured passes do, and are there a while after the
    replay: when another thread has had the time to start one."""

    captures = replays = 0

    def __init__(self, engine: Reranker) -> None:
        model, attend = engine.core.model, engine.core.attend
        self._forward = lambda batch, prune: model(batch, attend, model.no_prefix(), prune=prune)
        self._out = torch.zeros(4096, 2)
        self._entered = threading.Semaphore(1)
        self.mixed = 0
        self.buckets = buckets(engine.token_budget)

    def replay(self, batch: Batch, *, prune: bool) -> torch.Tensor:
        alone = self._entered.acquire(blocking=False)
        self.mixed += not alone
        out = self._out[: len(batch.lengths)]
        out.copy_(self._forward(batch, prune))
        os.sched_yield()
        if alone:
            self._entered.release()
        return out


def in_threads(count: int, work) -> list:
    """What ``work`` returns for 0, 1, ... in as many threads, which start together."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    start = threading.Barrier(count)

    def run(n: int):
        start.wait()
        return work(n)

    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(run, range(count)))
    finally:
        sys.setswitchinterval(switch)


@pytest.mark.parametrize("graph", [False, True])
def test_threads_get_their_own_scores(engine, graph):
    queries = [f"{QUERY} {n}" for n in range(4)]
    want = [engine.score(query, TEXTS) for query in queries]
    assert len({tuple(scores) for scores in want}) == 4
    if graph:
        engine.core.graphs = graphs = StaticGraphs(engine)
        want = [engine.score(query, TEXTS) for query in queries]
    got = in_threads(4, lambda n: [engine.score(queries[n], TEXTS) for _ in range(5)])
    assert got == [[scores] * 5 for scores in want]
    assert not graph or not graphs.mixed


def test_a_buffer_of_results_is_copied_before_another_pass_may_write_to_it(engine):
    """As the threads of the test above do, step by step: the second pass must not begin while the
    first one's results are in the buffer only."""
    engine.core.graphs = StaticGraphs(engine)
    replay, began, results = engine.core.graphs.replay, threading.Event(), {}
    other = threading.Thread(target=lambda: results.update(b=engine.score("b", TEXTS[:1])))

    def waiting(batch, *, prune):
        out = replay(batch, prune=prune)
        if threading.current_thread() is other:
            began.set()
        elif not other.ident:
            other.start()
            # gives the other thread all the time that it would need, were it let in
            assert not began.wait(0.2)
        return out

    [want_b] = engine.score("b", TEXTS[:1])
    [want_a] = engine.score("a", TEXTS[:1])
    engine.core.graphs.replay = waiting
    assert engine.score("a", TEXTS[:1]) == [want_a]
    other.join()
    assert results == {"b": [want_b]} and want_a != want_b


def test_threads_share_the_pictures_that_are_remembered():
    room = 40_000  # of a few pictures, so that they come and go
    engine = Reranker("demo", device="cpu", dtype="float32", vision_cache=room)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
    documents = [{"image": picture, "text": f"t{i}"} for i, picture in enumerate(pictures)]
    want = engine.score(QUERY, documents)
    got = in_threads(4, lambda n: [engine.score(QUERY, documents[n:]) for _ in range(5)])
    assert got == [[want[n:]] * 5 for n in range(4)]


def test_two_engines_run_in_two_threads_at_once(engine, random_reranker):
    engines = [engine, Embedder(random_reranker, dtype="float32")]
    calls = [lambda: engines[0].score(QUERY, TEXTS), lambda: engines[1].embed(TEXTS).tolist()]
    want = [call() for call in calls]
    assert in_threads(2, lambda n: [calls[n]() for _ in range(5)]) == [[w] * 5 for w in want]


def test_streams_of_one_engine_take_turns_in_one_thread(engine):
    pairs = [[engine.core.encoder.pair("", query, text) for text in TEXTS] for query in ("a", "b")]
    prompts = [list(engine.core.encoder.stream(each)) for each in pairs]
    want = [[rows.tolist() for _, rows in engine.core.stream([each])] for each in prompts]
    streams = [engine.core.stream([each], keep=True) for each in prompts]
    got = list(zip(*((r.tolist() for _, r in stream) for stream in streams), strict=True))
    assert len(got) > 2
    assert [list(each) for each in zip(*got, strict=True)] == want
    # one that is given up half-way is closed wherever the collector finds it, in a pass too
    forward = engine.core.model

    def collecting(*args, **options):
        cycle = [engine.core.stream([prompts[0]])]
        cycle.append(cycle)
        next(cycle[0])
        del cycle
        gc.collect()
        return forward(*args, **options)

    calls = 0

    def once(*args, **options):
        nonlocal calls
        calls += 1
        return (collecting if calls == 1 else forward)(*args, **options)

    once.no_prefix = forward.no_prefix
    engine.core.model, engine.core._prefix = once, None
    assert [rows.tolist() for _, rows in engine.core.stream([prompts[1]])] == want[1]


FORK = """
import os, signal, sys
import pyrerank
from pyrerank import Reranker
engine = Reranker("demo", device="cpu")
pyrerank.score("a", ["b"], model="demo", device="cpu")
encoder = engine.core.encoder
stream = engine.core.stream([encoder.encode([encoder.pair("", "a", "b")])])
calls = {
    "score": lambda: engine.score("a", ["b"]),
    "rank": lambda: engine.rank("a", ["b"]),
    "details": lambda: engine.details("a", ["b"]),
    "explain": lambda: engine.explain("a", "b"),
    "warmup": engine.warmup,
    "device_memory": engine.device_memory,
    "stream": lambda: next(stream),
    "another engine": lambda: Reranker("demo", device="cpu"),
    "another embedder": lambda: pyrerank.Embedder(sys.argv[1], device="cpu"),
    "function": lambda: pyrerank.score("a", ["b"], model="demo", device="cpu"),
    "embed function": lambda: pyrerank.embed(["b"], model=sys.argv[1], device="cpu"),
}
engine.core.failures.lock.acquire()  # as by a thread that is in a pass when the process forks
sys.stdout.flush()
child = os.fork()
if not child:
    for name, call in calls.items():
        signal.alarm(60)  # ends what hangs
        try:
            call()
            print(name, "went on")
        except pyrerank.DeviceError as error:
            told = "forked" in str(error) and "spawn" in str(error)
            print(name, type(error).__name__ if told else error)
    engine.close()
    pyrerank.close()
    print("closed; explained", len(pyrerank.explain("a", "b", model="demo").ids) > 10)
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
engine.core.failures.lock.release()
print("parent", len(engine.score("a", ["b"])))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_use_spawn(random_reranker):
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(random_reranker)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *refused, closed, parent = done.stdout.splitlines()
    assert len(refused) == 11
    assert all(line.endswith(" EngineClosed") for line in refused), done.stdout
    assert (closed, parent) == ("closed; explained True", "parent 1")


FORK_FIRST = """
import os, pyrerank
child = os.fork()
scores = pyrerank.score("a", ["b"], model="demo", device="cpu")
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_forks_first_may_load_in_both():
    done = subprocess.run([sys.executable, "-c", FORK_FIRST], timeout=300, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [Reranker, Embedder])
def test_engines_are_neither_pickled_nor_copied(kind, random_reranker):
    engine = kind(random_reranker, device="cpu")
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=f"{kind.__name__}s can be neither pickled nor copied"):
            way(engine)
    spawn = multiprocessing.get_context("spawn")
    with pytest.raises(TypeError, match="with spawn, each make"):
        spawn.Process(target=print, args=(engine,)).start()
    for value in (
        pyrerank.Media(),
        pyrerank.Fetcher(),
        Reranker("demo").details("a", ["b"]),
        Reranker("demo").rank("a", ["b"]),
        EngineClosed("x"),
    ):
        assert repr(pickle.loads(pickle.dumps(value))) == repr(value)


class TestClose:
    def test_a_closed_engine_says_so_and_holds_nothing(self):
        engine = Reranker("demo", device="cpu")
        engine.score("a", ["b"])
        held = [weakref.ref(engine.core.model.decoder), weakref.ref(engine.core.features._tower)]
        engine.close()
        assert [thing() for thing in held] == [None, None]
        assert engine.core.graphs is None and engine.core.features is None
        engine.close()
        for call in (
            lambda: engine.score("a", ["b"]),
            lambda: engine.rank("a", ["b"]),
            lambda: engine.explain("a", "b"),
            engine.warmup,
            engine.device_memory,
        ):
            with pytest.raises(EngineClosed, match="this Reranker was closed"):
                call()

    def test_with_closes_at_the_end_and_hides_no_error(self, random_reranker):
        with Embedder(random_reranker) as embedder:
            embedder.embed(["a"])
        with pytest.raises(EngineClosed, match="this Embedder was closed"):
            embedder.embed(["a"])
        with pytest.raises(ZeroDivisionError), Reranker("demo"):
            _ = 1 / 0

    def test_while_another_thread_scores(self, engine):
        """The pass that runs is waited for; the call ends with an error that says why."""
        forward, entered, go = engine.core.model, threading.Event(), threading.Event()
        finished = []

        def waiting(*args, **options):
            entered.set()
            assert go.wait(60)
            rows = forward(*args, **options)
            finished.append(len(rows))
            return rows

        waiting.no_prefix = forward.no_prefix
        engine.core.model = waiting
        with ThreadPoolExecutor(2) as pool:
            call = pool.submit(engine.score, QUERY, TEXTS)
            assert entered.wait(60)
            closing = pool.submit(engine.close)
            assert not closing.done()
            go.set()
            with pytest.raises(EngineClosed, match="was closed"):
                call.result(60)
            closing.result(60)
        assert finished and not vars(engine.core).get("model")

    def test_in_a_pass_by_a_finaliser(self, engine):
        forward = engine.core.model

        def closing(*args, **options):
            engine.close()
            return forward(*args, **options)

        closing.no_prefix = forward.no_prefix
        engine.core.model = closing
        with pytest.raises(EngineClosed, match="was closed"):
            engine.score(QUERY, TEXTS)
