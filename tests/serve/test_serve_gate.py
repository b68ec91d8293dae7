"""The gate asks for keys, holds limits, notices clients that leave, logs, and counts."""

import asyncio
import json
import logging
import re
from typing import Any

import httpx
import pytest
from passes import twin
from prometheus_client.parser import text_string_to_metric_families
from serving import PATIENCE, Served, held

from pyrerank import Reranker
from pyrerank.serve.settings import Settings

pytestmark = pytest.mark.slow

BODY = {"query": "a secret question", "documents": ["a secret answer", "b"]}
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def loaded(random_reranker) -> Reranker:
    return Reranker(random_reranker, device="cpu")


@pytest.fixture
def serve(loaded, request):
    def serve(**settings: Any) -> Served:
        served = Served(twin(loaded), **settings)
        request.addfinalizer(served.close)
        return served

    return serve


def error(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    found: dict[str, Any] = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert found["code"] == response.status_code
    return found


class TestKeys:
    PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/v1/embeddings")

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer nope",
            "Bearer first-ke",
            "Basic first-key",
            "first-key",
        ],
    )
    def test_missing_and_wrong(self, serve, header):
        served = serve(api_keys=KEYS)
        headers = {} if header is None else {"authorization": header}
        asked = [("POST", path) for path in self.PATHS]
        asked += [("GET", path) for path in ("/v1/models", "/metrics", "/openapi.json", "/nope")]
        for method, path in asked:
            response = served.ask(method, path, headers=headers)
            assert error(response)["code"] == 401
            assert response.headers["www-authenticate"] == "Bearer"
        assert served.get("/health", headers=headers).status_code == 200

    @pytest.mark.parametrize("key", KEYS)
    def test_right(self, serve, key):
        headers = {"authorization": f"Bearer {key}"}
        assert serve(api_keys=KEYS).post("/rerank", BODY, headers=headers).status_code == 200

    @pytest.mark.parametrize("keys", [("",), ("a", ""), ("a b\n",), ("schlüssel",)])
    def test_keys_that_no_header_carries(self, keys):
        with pytest.raises(ValueError, match="API key"):
            Settings(names=("a",), api_keys=keys)


class TestLimits:
    def test_a_body_that_says_it_is_large(self, serve):
        served = serve(max_body=100)
        assert served.post("/rerank", {"query": "a", "documents": ["b"]}).status_code == 200
        response = served.post("/rerank", {"query": "a", "documents": ["b" * 100]})
        assert "100 bytes" in error(response)["message"] and response.status_code == 413

    @pytest.mark.parametrize(
        ("settings", "status"), [({"max_body": 100}, 413), ({"max_bodies": 100}, 429)]
    )
    def test_a_body_that_does_not_say(self, serve, settings, status):
        async def pieces():
            for _ in range(1000):
                yield b" " * 50

        response = serve(**settings).ask("POST", "/rerank", content=pieces())
        assert error(response)["code"] == status

    def test_a_queue_that_is_full(self, serve):
        served = serve(max_requests=2)

        async def ask() -> None:
            async with served.client(timeout=PATIENCE) as client:
                with held(served.engine) as word:
                    first = asyncio.ensure_future(client.post("/rerank", json=BODY))
                    await asyncio.to_thread(word.wait_for_pass)
                    second = asyncio.ensure_future(client.post("/rerank", json=BODY))
                    await asyncio.to_thread(served.until, lambda: served.scheduler.waiting > 0)
                    refused = await client.post("/rerank", json=BODY)
                    assert error(refused)["code"] == 429
                    assert 1 <= int(refused.headers["retry-after"]) <= 60
                    assert (await client.get("/health")).status_code == 200
                assert (await first).status_code == (await second).status_code == 200
                assert (await client.post("/rerank", json=BODY)).status_code == 200

        asyncio.run(ask())

    def test_bytes_of_all_requests(self, serve):
        """Of those who say how much they will send, who is too much is not waited for."""

        async def never():
            await asyncio.Event().wait()
            yield b""

        served = serve(max_bodies=200, timeout=1.0)
        for size, status in ((100, 408), (201, 429), (200, 408)):
            headers = {"content-length": str(size)}
            response = served.ask("POST", "/rerank", content=never(), headers=headers)
            assert error(response)["code"] == status

    def test_an_answer_that_takes_too_long(self, serve):
        served = serve(timeout=0.05)
        with held(served.engine):
            response = served.post("/rerank", BODY)
            assert "no answer within 0.05 seconds" in error(response)["message"]
            assert response.status_code == 504
        # what nobody waits for is gone
        served.until(lambda: not served.scheduler._queue)

    def test_a_body_that_takes_too_long(self, serve):
        async def pieces():
            yield b"{"
            await asyncio.Event().wait()

        response = serve(timeout=0.05).ask("POST", "/rerank", content=pieces())
        assert error(response)["code"] == 408

    @pytest.mark.parametrize(
        "settings",
        [
            {"names": ()},
            {"names": ("",)},
            {"max_requests": 0},
            {"timeout": -1.0},
            {"batch_wait": -1.0},
        ],
    )
    def test_settings_outside_the_described(self, settings):
        with pytest.raises(ValueError):
            Settings(**{"names": ("a",)} | settings)


class TestTelling:
    def test_the_log_has_no_text(self, serve, caplog):
        caplog.set_level(logging.INFO, "pyrerank")
        served = serve(api_keys=KEYS)
        headers = {"authorization": "Bearer first-key", "x-request-id": "my-id"}
        assert served.post("/rerank", BODY, headers=headers).status_code == 200
        assert served.post("/rerank", BODY | {"query": 5}, headers=headers).status_code == 400
        assert served.get("/secret%20path?a=secret", headers=headers).status_code == 404
        good, bad, lost = (
            json.loads(r.message) for r in caplog.records if r.name == "pyrerank.access"
        )
        assert good["id"] == "my-id" and good["status"] == 200 and good["path"] == "/rerank"
        assert (good["prompts"], good["seconds"] >= good["waited"] >= 0) == (2, True)
        assert (bad["status"], lost["status"]) == (400, 404)
        assert "prompts" not in bad
        assert not re.search("secret (question|answer)|a=secret|first-key", caplog.text)

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä", 'a"b', "a\tb"])
    def test_a_request_id_that_could_be_anything_is_replaced(self, serve, given):
        headers = {"x-request-id": given.encode()}
        response = serve().get("/health", headers=headers)
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])

    def test_metrics(self, serve):
        served = serve()
        response = served.post("/rerank", BODY)
        served.post("/rerank", BODY)
        served.post("/v1/rerank", {})
        served.get("/nope")
        page = served.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=")
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }
        assert samples["pyrerank_requests_total", "/rerank", "200"] == 2
        assert samples["pyrerank_requests_total", "/v1/rerank", "400"] == 1
        assert samples["pyrerank_requests_total", "other", "404"] == 1
        assert samples["pyrerank_request_seconds_count", "/rerank"] == 2
        assert samples["pyrerank_queue_seconds_count",] == 2
        billed = 2 * response.json()["usage"]["prompt_tokens"]
        assert samples["pyrerank_billed_tokens_total",] == billed
        assert samples["pyrerank_computed_tokens_total",] == served.engine.core.computed
        assert samples["pyrerank_pass_prompts_sum",] == sum(served.passes)
        assert samples["pyrerank_requests_here",] == samples["pyrerank_queue_tokens",] == 0
        assert samples["pyrerank_pass_tokens_sum",] < billed  # shared

    def test_cors(self, serve):
        ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
        closed = serve()
        assert "access-control-allow-origin" not in closed.get("/health", headers=ask).headers
        assert closed.ask("OPTIONS", "/rerank", headers=ask).status_code == 405
        served = serve(cors_origins=("https://a.example",), api_keys=KEYS)
        allowed = served.ask("OPTIONS", "/rerank", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = served.ask("OPTIONS", "/rerank", headers=ask | {"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = served.post("/rerank", BODY, headers={"origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
