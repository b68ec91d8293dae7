"""The scheduler merges requests of many clients into passes of one engine."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from passes import twin
from serving import PATIENCE, Served, held

from pyrerank import OutOfMemory, Reranker
from pyrerank.errors import EngineClosed
from pyrerank.serve import schedule
from pyrerank.serve.schedule import Job, Scheduler

pytestmark = pytest.mark.slow

QUERY = "What is the capital of China?"
SHARED = 8  # tokens that any two prompts of different queries share, at least


@pytest.fixture(scope="module")
def loaded(random_reranker) -> Reranker:
    return Reranker(random_reranker, device="cpu")


@pytest.fixture
def engine(loaded) -> Reranker:
    """With what a test may change of its own."""
    return twin(loaded)


@pytest.fixture
def served(engine):
    served = Served(engine)
    yield served
    served.close()


def job(engine: Reranker, *documents: str, query: str = QUERY, **of: Any) -> Job:
    """Ready to be queued."""
    job = Job(**of)
    job.prompts = engine.core.encoder.encode(
        [engine.core.encoder.pair("", query, document) for document in documents]
    )
    return job


def found(engine: Reranker, job: Job) -> list[float]:
    rows = job.done.result(PATIENCE)
    each = zip(job.prompts, rows, strict=True)
    return [engine.core.task.result(prompt, row, "").score for prompt, row in each]


def body(*documents: str, query: str = QUERY) -> dict[str, Any]:
    return {"json": {"queries": query, "documents": documents}}


class TestMerging:
    def test_requests_that_wait_share_passes_and_prefixes(self, served, loaded):
        queries = [f"{QUERY} {n % 3}" for n in range(12)]
        want = [loaded.score(query, ["a", "b"]) for query in queries]
        served.passes.clear()
        with held(served.engine) as word:
            first = threading.Thread(target=served.ask, args=("POST", "/score"), kwargs=body("c"))
            first.start()
            word.wait_for_pass()

            async def ask() -> list[Any]:
                async with served.client(timeout=PATIENCE) as client:
                    sent = [client.post("/score", **body("a", "b", query=q)) for q in queries]
                    waiting = asyncio.gather(*sent)
                    queued = lambda: len(served.scheduler._queue) == len(queries)  # noqa: E731
                    await asyncio.to_thread(served.until, queued)
                    served.engine.core.computed = 0
                    word.given.set()
                    return list(await waiting)

            responses = asyncio.run(ask())
            first.join()
        scores = [[item["score"] for item in r.json()["data"]] for r in responses]
        assert scores == want
        assert served.passes == [1, 24]
        # as one call would compute: the first pair, six that differ, and eighteen last tokens
        one_call = twin(loaded)
        one_call.core.computed = 0
        one_call.score([QUERY, *(q for q in queries[:3] for _ in "ab")], ["c", *["a", "b"] * 3])
        assert served.engine.core.computed == one_call.core.computed + 18

    def test_scores_are_those_of_a_call_whatever_comes_together(self, served, loaded):
        texts = [f"{n}. {'text ' * (n % 7)}" for n in range(60)]
        requests = [("POST", "/score", body(*texts[n : n + n % 5 + 1])) for n in range(50)]
        responses = served.ask_all(requests)
        for n, response in enumerate(responses):
            got = [item["score"] for item in response.json()["data"]]
            assert got == loaded.score(QUERY, texts[n : n + n % 5 + 1])

    def test_a_request_waits_for_others_no_longer_than_told(self, engine):
        waits = Scheduler(lambda: engine, batch_wait=3600.0)
        jobs = [job(engine, f"text {n}") for n in range(40)]
        assert sum(len(j.prompts[0].ids) for j in jobs) > engine.token_budget
        for each in jobs[:5]:
            waits.submit(each)
        assert not any(each.done.done() for each in jobs)  # they do not fill a pass
        for each in jobs[5:]:
            waits.submit(each)
        assert all(found(engine, each) for each in jobs[:5])
        waits.close()  # what is left does not wait
        assert all(each.done.done() for each in jobs)

    def test_oldest_first(self, engine, monkeypatch):
        engine.core.token_budget = 60  # less than a prompt: each pass has one
        scheduler = Scheduler(lambda: engine)
        order = [3, 0, 2, 4, 1]
        jobs = {n: job(engine, f"text {n}", arrived=float(n)) for n in order}
        done = []
        with held(engine) as word:
            scheduler.submit(job(engine, "first"))
            word.wait_for_pass()
            monkeypatch.setattr(schedule, "QUEUE", 100)
            for n in order:
                scheduler.submit(jobs[n])
                jobs[n].done.add_done_callback(lambda _, n=n: done.append(n))
        scheduler.close()
        assert done == sorted(order)

    def test_a_large_request_is_taken_pass_by_pass(self, engine, monkeypatch):
        engine.core.token_budget = 100
        passes = []
        scheduler = Scheduler(lambda: engine)
        fill = scheduler._fill
        monkeypatch.setattr(scheduler, "_fill", lambda of: passes.append(one := fill(of)) or one)
        large = job(engine, *[f"text {n}" for n in range(50)])
        scheduler.submit(large)
        assert found(engine, large) == engine.score(QUERY, [f"text {n}" for n in range(50)])
        scheduler.close()
        assert len(passes) > 5
        assert sorted(n for one in passes for _, n in one) == list(range(50))
        assert sum(large.computed.values()) <= sum(len(p.ids) for p in large.prompts)

    def test_what_passes_share_is_computed_once(self, engine, monkeypatch):
        engine.core.token_budget = 200
        documents = [f"text {n}" for n in range(40)]
        scheduler = Scheduler(lambda: engine)
        together = job(engine, *documents)
        engine.core.computed = 0
        scheduler.submit(together)
        assert found(engine, together)
        scheduler.close()
        served, engine.core.computed = engine.core.computed, 0
        engine.score(QUERY, documents)
        # documents are not taken in the order of their words, in which they share a digit more
        [template] = engine.core.encoder.encode([engine.core.encoder.pair("", QUERY, "")])
        assert served - engine.core.computed < len(template.ids) < len(documents) * 3

    def test_what_is_done_is_let_go_while_the_stream_goes_on(self, engine, monkeypatch):
        engine.core.token_budget = 60
        kept = []
        forward = engine.core._forward

        def look(*arguments: Any) -> torch.Tensor:
            gc.collect()
            kept.append(sum(ref() is not None for ref in refs))
            return forward(*arguments)

        engine.core._forward = look
        refs: list[weakref.ref[Job]] = []
        scheduler = Scheduler(lambda: engine)
        with held(engine) as word:
            scheduler.submit(job(engine, "first"))
            word.wait_for_pass()
            for n in range(12):
                each = job(engine, f"{n} {'text ' * 30}")
                refs.append(weakref.ref(each))
                scheduler.submit(each)
            last = each.done
            del each
        assert last.result(PATIENCE)
        scheduler.close()
        assert max(kept) == 12 and kept[-1] <= 4  # at hand, or in a pass that is prepared


class TestLeaving:
    def test_a_cancelled_job_leaves_the_queue(self, engine):
        scheduler = Scheduler(lambda: engine)
        with held(engine) as word:
            first, gone, last = (job(engine, text) for text in ("first", "gone", "last"))
            scheduler.submit(first)
            word.wait_for_pass()
            scheduler.submit(gone)
            scheduler.submit(last)
            assert gone.done.cancel()
            assert scheduler.waiting == last.waiting > 0
        assert found(engine, first) and found(engine, last)
        scheduler.close()
        assert "started" not in gone.times

    def test_a_large_request_that_is_cancelled_costs_little(self, engine, monkeypatch):
        engine.core.token_budget = 60
        scheduler = Scheduler(lambda: engine)
        engine.core.computed = 0
        with held(engine) as word:
            alone = job(engine, *[f"text {n}" * 9 for n in range(20)])
            scheduler.submit(alone)
            word.wait_for_pass()
            assert alone.done.cancel()
        scheduler.close()
        assert 0 < engine.core.computed < sum(len(p.ids) for p in alone.prompts) / 4

    def test_a_client_that_goes_away(self, served):
        with held(served.engine) as word:

            async def go_away() -> None:
                async with served.client() as client:
                    first = asyncio.ensure_future(client.post("/score", **body("a")))
                    await asyncio.to_thread(word.wait_for_pass)
                    second = asyncio.ensure_future(client.post("/score", **body("b")))
                    await asyncio.to_thread(served.until, lambda: served.scheduler.waiting > 0)
                    second.cancel()
                    await asyncio.to_thread(served.until, lambda: served.scheduler.waiting == 0)
                    word.given.set()
                    assert (await first).status_code == 200

            asyncio.run(go_away())

    def test_a_queue_that_is_full_makes_readers_wait(self, engine, monkeypatch):
        monkeypatch.setattr(schedule, "QUEUE", 1)
        engine.core.token_budget = 60
        scheduler = Scheduler(lambda: engine)
        jobs = [job(engine, f"text {n}") for n in range(4)]
        with held(engine) as word:
            scheduler.submit(jobs[0])
            word.wait_for_pass()
            scheduler.submit(jobs[1])
            waiting = [threading.Thread(target=scheduler.submit, args=[j]) for j in jobs[2:]]
            for thread in waiting:
                thread.start()
            assert jobs[2].done.cancel()
            waiting[0].join(PATIENCE)  # whoever left does not wait
            assert not waiting[0].is_alive() and waiting[1].is_alive()
            assert scheduler.waiting == jobs[1].waiting
        assert found(engine, jobs[3])
        scheduler.close()


class TestFailure:
    """A pass that fails costs those who fail by themselves, and nobody else."""

    def fail_if(self, engine: Reranker, prompts: list[Any], error: Exception) -> None:
        forward = engine.core._forward

        def failing(run: Any, batch: Any, prefix: Any) -> torch.Tensor:
            if any(prompt is bad for prompt in run.prompts for bad in prompts):
                raise error
            return forward(run, batch, prefix)

        engine.core._forward = failing

    @pytest.mark.parametrize("error", [OutOfMemory("too little"), RuntimeError("broken")])
    def test_of_many_only_one_fails(self, engine, loaded, error):
        engine.core.token_budget = 200
        jobs = [job(engine, *[f"text {n} {i}" for i in range(3)]) for n in range(6)]
        self.fail_if(engine, jobs[3].prompts[1:2], error)
        scheduler = Scheduler(lambda: engine)
        with held(engine) as word:
            scheduler.submit(job(engine, "first"))
            word.wait_for_pass()
            for each in jobs:
                scheduler.submit(each)
        for n, each in enumerate(jobs):
            if n == 3:
                with pytest.raises(type(error), match=str(error)):
                    found(engine, each)
            else:
                assert found(engine, each) == loaded.score(
                    QUERY, [f"text {n} {i}" for i in range(3)]
                )
        assert scheduler.lost is None
        scheduler.close()

    def test_over_http(self, served, loaded):
        encode = served.engine.core.encoder.encode
        bad: list[Any] = []

        def encode_and_mark(items: list[Any], limit: int | None) -> list[Any]:
            prompts = encode(items, limit)
            bad.extend(
                p for p, item in zip(prompts, items, strict=True) if item.document.text == "x"
            )
            return prompts

        served.engine.core.encoder.encode = encode_and_mark
        self.fail_if(served.engine, bad, RuntimeError("with a secret"))
        responses = served.ask_all([("POST", "/score", body(text)) for text in "axb"])
        assert [response.status_code for response in responses] == [200, 500, 200]
        assert responses[1].json()["error"]["type"] == "InternalServerError"
        assert "secret" not in responses[1].text
        assert served.post("/score", body("c")["json"]).status_code == 200

    def test_an_engine_that_is_lost(self, served):
        self.fail_if(served.engine, [], RuntimeError())
        served.engine.core._forward = lambda *_: (_ for _ in ()).throw(EngineClosed("start anew"))
        response = served.post("/score", body("a")["json"])
        assert (response.status_code, response.json()["error"]["message"]) == (503, "start anew")
        assert served.get("/health").status_code == 503

    def test_a_pass_that_hangs(self, served):
        with held(served.engine) as word:
            asking = threading.Thread(target=served.ask, args=("POST", "/score"), kwargs=body("a"))
            asking.start()
            word.wait_for_pass()
            assert not served.scheduler.works(0.0)
            assert served.scheduler.works(3600.0)
            assert served.get("/health").status_code == 200
        asking.join()
        served.until(lambda: served.scheduler.began is None)
        assert served.scheduler.works(0.0)

    def test_a_stream_is_closed_before_another_begins(self, engine):
        want = engine.score(QUERY, ["a"])
        streams = []
        stream = engine.core.stream

        def watched(*arguments: Any, **options: Any) -> Any:
            streams.append("open")
            try:
                yield from stream(*arguments, **options)
            finally:
                streams.append("closed")

        def watch(*_: Any) -> None:
            if streams.count("open") == 2:
                raise RuntimeError("full disk")

        engine.core.stream = watched
        scheduler = Scheduler(lambda: engine, watch=watch)
        asked = job(engine, "a")
        scheduler.submit(asked)
        assert found(engine, asked) == want
        scheduler.close()
        assert streams == ["open", "closed"] * (len(streams) // 2)

    def test_what_loading_raises(self):
        def load() -> Any:
            raise OutOfMemory("too little")

        with pytest.raises(OutOfMemory, match="too little"):
            Scheduler(load)

    def test_a_model_that_cannot_run_is_not_served(self, engine):
        engine.core._forward = lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel"))
        with pytest.raises(RuntimeError, match="no kernel"):
            Scheduler(lambda: engine)


def test_no_thread_is_left(engine):
    served = Served(engine)
    served.post("/score", body("a")["json"])
    served.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("pyrerank")]
