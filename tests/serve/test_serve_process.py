"""`pyrerank serve` works as its operators meet it: as a process on the loopback address."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from serving import PATIENCE, Process, running

from pyrerank import Reranker
from pyrerank.cli.main import main

pytestmark = pytest.mark.slow

QUERY = "What is the capital of China?"
DOCUMENTS = ["Beijing is the capital of China.", "Gravity is a force.", "steam", ""]


@pytest.fixture(scope="module")
def reranker(random_reranker) -> Iterator[Process]:
    with running(random_reranker, "--served-model-name", "reranker") as process:
        yield process


def metric(url: str, name: str) -> float:
    [value] = re.findall(rf"^{name} (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
    return float(value)


class TestLoad:
    def test_a_load_generator(self, reranker, random_reranker):
        """What vLLM's `bench serve` sends for reranking: 1,000 requests at once."""
        rng = np.random.default_rng(0)
        words = ["steam", "engine", "river", "capital", "of", "China", "gravity", "moon", "tide"]
        texts = [[" ".join(rng.choice(words, 9)) for _ in range(3)] for _ in range(1000)]
        before = metric(reranker.url, "pyrerank_billed_tokens_total")

        async def send() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(timeout=300, limits=limits) as client:
                return await asyncio.gather(
                    *(
                        client.post(
                            f"{reranker.url}/v1/rerank",
                            json={
                                "model": "reranker",
                                "query": query,
                                "documents": documents,
                                "truncate_prompt_tokens": -1,
                            },
                            headers={"x-request-id": f"bench-{n}"},
                        )
                        for n, (query, *documents) in enumerate(texts)
                    )
                )

        responses = asyncio.run(send())
        assert {response.status_code for response in responses} == {200}
        assert [r.headers["x-request-id"] for r in responses[:3]] == [
            "bench-0",
            "bench-1",
            "bench-2",
        ]
        billed = sum(response.json()["usage"]["prompt_tokens"] for response in responses)
        assert metric(reranker.url, "pyrerank_billed_tokens_total") - before == billed
        want = Reranker(random_reranker).score(
            [query for query, *documents in texts for _ in documents],
            [document for _, *documents in texts for document in documents],
        )
        got = []
        for response in responses:
            got += sorted((r["index"], r["relevance_score"]) for r in response.json()["results"])
        assert [score for _, score in got] == want


class TestEnding:
    def test_all_that_was_accepted_is_answered(self, random_reranker):
        body = {"query": QUERY, "documents": [f"{n} {'text ' * 30}" for n in range(60)]}
        with running(random_reranker) as process:

            async def stop_under_load() -> list[httpx.Response]:
                async with httpx.AsyncClient(timeout=300) as client:
                    sent = [
                        asyncio.ensure_future(client.post(f"{process.url}/rerank", json=body))
                        for _ in range(12)
                    ]
                    while metric(process.url, "pyrerank_requests_here") < len(sent):
                        await asyncio.sleep(0)
                    process.process.send_signal(signal.SIGTERM)
                    return await asyncio.gather(*sent)

            responses = asyncio.run(stop_under_load())
            assert process.process.wait(PATIENCE) == 0
        want = Reranker(random_reranker).score(QUERY, body["documents"])
        for response in responses:
            got = sorted((r["index"], r["relevance_score"]) for r in response.json()["results"])
            assert [score for _, score in got] == want
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/health")
        logged = [json.loads(line) for line in process.lines if line.startswith("{")]
        assert sum(entry["path"] == "/rerank" for entry in logged) == 12

    def test_a_second_server_at_the_port(self, random_reranker, reranker, capsys):
        port = reranker.url.rpartition(":")[2]
        assert main(["serve", "--model", str(random_reranker), "--port", port]) == 2
        assert (
            f"cannot bind to 127.0.0.1 port {port}: Address already in use"
            in capsys.readouterr().err
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--fetch"], "give --fetch-host, not --fetch"),
            (["--max-requests", "0"], "max_requests must be positive, got 0"),
            (["--api-key-file", os.devnull], "holds no API key"),
            (["--api-key-file", "nonesuch"], "No such file"),
            (["--host", "192.0.2.1"], "cannot bind to 192.0.2.1"),
        ],
    )
    def test_mistakes(self, random_reranker, capsys, arguments, message):
        assert main(["serve", "--model", str(random_reranker), *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_what_serving_needs_is_named(self, random_reranker, capsys, monkeypatch):
        for module in ("command", "protocol"):
            monkeypatch.delitem(sys.modules, f"pyrerank.serve.{module}", raising=False)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        assert main(["serve", "--model", str(random_reranker)]) == 2
        assert "serving needs pip install 'pyrerank[serve]'" in capsys.readouterr().err

    def test_a_checkpoint_whose_task_nothing_tells(self, random_reranker, tmp_path, capsys):
        (tmp_path / "model").symlink_to(random_reranker)
        os.chdir(tmp_path)
        assert main(["serve", "--model", "model"]) == 2
        assert "add --task score or --task embed" in capsys.readouterr().err
