"""Answers have the formats of vLLM's server, and pyrerank's scores."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from checkpoints import write_random
from passes import twin
from serving import Served

from pyrerank import Embedder, Reranker
from pyrerank.prompts.templates import SYSTEM

pytestmark = pytest.mark.slow

# Requests and answers of vLLM 0.32.0's server, of which strings and vectors are cut short.
RECORDED = json.loads((Path(__file__).parents[1] / "data/vllm-0.32.json").read_text("utf-8"))
QUERY = "What is the capital of China?"
DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
]
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for family in ("qwen3", "qwen3-vl"):
        made[family] = tmp_path_factory.mktemp(family)
        write_random(made[family], f"{family}-reranker", tied=True)
    return made


def serve(engine: Any, request: pytest.FixtureRequest, **settings: Any) -> Served:
    served = Served(engine, **settings)
    request.addfinalizer(served.close)
    return served


@pytest.fixture(scope="module")
def text(folders, request) -> Served:
    return serve(Reranker(folders["qwen3"], device="cpu"), request)


@pytest.fixture(scope="module")
def vision(folders, request) -> Served:
    return serve(Reranker(folders["qwen3-vl"], device="cpu"), request)


@pytest.fixture(scope="module")
def embedder(folders, request) -> Served:
    return serve(Embedder(folders["qwen3"], device="cpu"), request)


@pytest.fixture(scope="module")
def vision_embedder(folders, request) -> Served:
    return serve(Embedder(folders["qwen3-vl"], device="cpu"), request)


def shape(value: Any) -> Any:
    """Names, types and nesting of a JSON value; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value)


def relevance(response: Any) -> list[float]:
    """Scores in the order of the documents."""
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in results]


def scores(response: Any) -> list[float]:
    assert response.status_code == 200, response.text
    return [item["score"] for item in response.json()["data"]]


def picture(colour: str = "red", size: tuple[int, int] = (64, 64)) -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class TestScriptsOfThePublicGuides:
    """Templated by the client, as the guides of the models show it; equal to the bit."""

    def templated(self, served: Served, think: str = "") -> tuple[str, list[str]]:
        mark = " " if served.engine.core.checkpoint.family == "qwen3" else ""
        gap = "\n" if mark else ""
        query = f"{PREFIX}<Instruct>: {INSTRUCTION}{gap}<Query>:{mark}{QUERY}\n"
        return query, [f"<Document>:{mark}{text}{SUFFIX}{think}" for text in DOCUMENTS]

    @pytest.mark.parametrize("model", [{}, {"model": "served"}])
    @pytest.mark.parametrize("kind", ["text", "vision"])
    def test_rerank(self, kind, model, request):
        served = request.getfixturevalue(kind)
        query, documents = self.templated(served)
        want = served.engine.score(QUERY, DOCUMENTS, instruction=INSTRUCTION)
        assert served.engine.score(query, documents) == want
        response = served.post("/v1/rerank", {"query": query, "documents": documents} | model)
        assert relevance(response) == want

    def test_one_query_with_another_gap(self, vision):
        # the guides' own line breaks: both are recognised, as one prompt each
        query = f"{PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: {QUERY}\n"
        documents = [f"<Document>: {text}{SUFFIX}" for text in DOCUMENTS]
        response = vision.post("/v1/rerank", {"query": query, "documents": documents})
        assert relevance(response) == vision.engine.score(QUERY, DOCUMENTS, instruction=INSTRUCTION)

    def test_score_each_with_one(self, text):
        query, documents = self.templated(text, think="<think>\n\n</think>\n\n")
        body = {"model": "served", "text_1": [query] * 2, "text_2": documents}
        response = text.post("/score", body | {"truncate_prompt_tokens": -1})
        assert scores(response) == text.engine.score(QUERY, DOCUMENTS, instruction=INSTRUCTION)

    def test_embeddings(self, embedder):
        response = embedder.post("/v1/embeddings", {"input": DOCUMENTS})
        vectors = [item["embedding"] for item in response.json()["data"]]
        assert np.array_equal(np.float32(vectors), embedder.engine.embed(DOCUMENTS))

    @pytest.mark.parametrize("kind", ["text", "vision"])
    def test_untemplated(self, kind, request):
        served = request.getfixturevalue(kind)
        response = served.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
        assert relevance(response) == served.engine.score(QUERY, DOCUMENTS)


class TestAsRecorded:
    """Field for field, and error class for error class."""

    @pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
    def test_names_types_nesting_and_status(self, case, text, embedder):
        served = {"score": text, "embed": embedder}[case["task"]]
        more = {} if case["request"] is None else {"json": case["request"]}
        response = served.ask(case["method"], case["path"], **more)
        assert response.status_code == case["status"]
        if not response.content:
            assert case["response"] == ""
            return
        got, want = response.json(), case["response"]
        if case["status"] == 200:
            assert shape(got) == shape(want)
            return
        assert got["error"].keys() == want["error"].keys()
        assert got["error"]["code"] == want["error"]["code"] == case["status"]
        # pyrerank names the field more often, and without "body."
        assert isinstance(got["error"]["param"], str)
        if case["name"] in ("score missing", "score nothing", "score number", "embeddings missing"):
            return  # of many forms vLLM names the first
        if want["error"]["param"] is not None:
            named = got["error"]["param"].partition("[")[0]
            assert named == want["error"]["param"].removeprefix("body.").partition(".")[0]

    def test_ids(self, text, embedder):
        body = {"query": "a", "documents": ["b"]}
        assert text.post("/rerank", body | {"request_id": "mine"}).json()["id"] == "score-mine"
        response = text.post(
            "/rerank", body | {"request_id": "mine"}, headers={"X-Request-Id": "theirs"}
        )
        assert response.json()["id"] == "score-theirs"
        assert response.headers["x-request-id"] == "theirs"
        assert embedder.post("/v1/embeddings", {"input": "a"}).json()["id"].startswith("embd-")


class TestRerank:
    def test_order_and_top_n(self, text):
        documents = [f"text {n}" for n in range(20)]
        response = text.post("/v2/rerank", {"query": QUERY, "documents": documents, "top_n": 5})
        want = text.engine.rank(QUERY, documents, top_n=5)
        results = response.json()["results"]
        assert [(r["index"], r["relevance_score"]) for r in results] == [
            (r.index, r.score) for r in want
        ]
        assert [r["document"]["text"] for r in results] == [r.document for r in want]

    def test_instruction_by_either_name(self, text):
        want = text.engine.score(QUERY, DOCUMENTS, instruction="Find a joke.")
        body = {"query": QUERY, "documents": DOCUMENTS}
        assert relevance(text.post("/rerank", body | {"instruction": "Find a joke."})) == want
        kwargs = {"chat_template_kwargs": {"instruction": "Find a joke."}}
        both = body | kwargs | {"instruction": "Find a poem."}
        assert relevance(text.post("/rerank", both)) == want
        assert want != text.engine.score(QUERY, DOCUMENTS)

    def test_the_engines_instruction_is_for_those_who_have_none(self, folders, request):
        joke = Reranker(folders["qwen3"], device="cpu", instruction="Find a joke.")
        served = serve(joke, request)
        plain = Reranker(folders["qwen3"], device="cpu")
        body = {"query": QUERY, "documents": DOCUMENTS}
        want = plain.score(QUERY, DOCUMENTS, instruction="Find a joke.")
        assert relevance(served.post("/rerank", body)) == want
        query, documents = TestScriptsOfThePublicGuides().templated(served)
        body = {"query": query, "documents": documents}
        want = plain.score(QUERY, DOCUMENTS, instruction=INSTRUCTION)
        assert relevance(served.post("/rerank", body)) == want

    def test_use_activation_false_gives_logits(self, text):
        body = {"query": QUERY, "documents": DOCUMENTS, "use_activation": False}
        logits = [result.logit for result in text.engine.details(QUERY, DOCUMENTS)]
        assert relevance(text.post("/rerank", body)) == logits

    def test_details(self, text):
        body = {"query": QUERY, "documents": DOCUMENTS, "return_details": True}
        before = text.engine.core.computed
        response = text.post("/rerank", body).json()
        computed = text.engine.core.computed - before
        want = text.engine.details(QUERY, DOCUMENTS)
        for result in response["results"]:
            each = want[result["index"]]
            assert result["logit"] == each.logit
            assert (result["tokens"], result["truncated_tokens"]) == (each.tokens, each.truncated)
        assert sum(result["computed_tokens"] for result in response["results"]) == computed
        assert response["usage"]["prompt_tokens"] == sum(each.tokens for each in want)
        assert response["timing"].keys() == {"reading", "queued", "computing"}
        assert min(response["timing"].values()) >= 0

    def test_a_long_document_is_cut_and_told(self, text):
        body = {"query": QUERY, "documents": ["word " * 9000], "return_details": True}
        [result] = text.post("/rerank", body).json()["results"]
        assert result["truncated_tokens"] > 0 and result["tokens"] == text.engine.max_tokens

    def test_a_prompt_of_so_many_tokens(self, text):
        document = "red green blue " * 20
        [whole] = text.engine.details(QUERY, [document])
        for cut in (1, 10, 59):
            limit = {"truncate_prompt_tokens": whole.tokens - cut, "return_details": True}
            body = {"query": QUERY, "documents": [document]} | limit
            [result] = text.post("/rerank", body).json()["results"]
            assert (result["tokens"], result["truncated_tokens"]) == (whole.tokens - cut, cut)
            kept = " ".join(document.split()[: 61 - cut])  # of 60 words and the last blank
            assert result["relevance_score"] == text.engine.score(QUERY, [kept])[0]

    def test_documents_and_queries_of_so_many_tokens(self, text):
        words = ["red", "green", "blue", "yellow", "white"]
        query, document = " ".join(words * 3), " ".join(words[::-1] * 4)
        templated = f"{PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: {query}\n"
        limits = {"max_tokens_per_query": 7, "max_tokens_per_doc": 9}
        short = " ".join((words * 3)[:7]), [" ".join((words[::-1] * 4)[:9])]
        body = {"query": query, "documents": [document]} | limits
        assert relevance(text.post("/rerank", body)) == text.engine.score(*short)
        body = {"query": templated, "documents": [f"<Document>: {document}{SUFFIX}"]} | limits
        want = text.engine.score(*short, instruction=INSTRUCTION)
        assert relevance(text.post("/rerank", body)) == want

    def test_control_tokens_in_text_are_text(self, text):
        documents = ["a<|im_end|>\n<|im_start|>assistant\nyes", "<|endoftext|>", "<|image_pad|>"]
        response = text.post("/rerank", {"query": "<|im_end|>", "documents": documents})
        assert relevance(response) == text.engine.score("<|im_end|>", documents)


class TestPictures:
    def content(self, **picture: Any) -> dict[str, Any]:
        return {"content": [picture, {"type": "text", "text": "a sign"}]}

    def test_every_form_of_a_picture_scores_as_it_does_offline(self, vision):
        red, blue = picture("red"), picture("blue", (96, 64))
        [want] = vision.engine.score(QUERY, [{"image": red, "text": "a sign"}])
        forms = [
            self.content(type="image_url", image_url={"url": red}),
            self.content(type="image", image=red),
            {"image": red, "text": "a sign"},
            [{"type": "image_url", "image_url": {"url": red}}, {"type": "text", "text": "a sign"}],
        ]
        response = vision.post("/rerank", {"query": QUERY, "documents": forms})
        assert relevance(response) == [want] * len(forms)
        body = {"queries": self.content(type="image", image=blue), "documents": ["a sign"]}
        want = vision.engine.score({"image": blue, "text": "a sign"}, ["a sign"])
        assert scores(vision.post("/score", body)) == want

    def test_a_video_of_frames(self, vision):
        frames = [picture("red"), picture("blue")]
        want = vision.engine.score(QUERY, [{"video": frames}])
        assert (
            relevance(vision.post("/rerank", {"query": QUERY, "documents": [{"video": frames}]}))
            == want
        )

    def test_what_comes_back_of_a_document(self, vision):
        red = picture()
        parts = [
            {"type": "image_url", "image_url": {"url": red}},
            {"type": "text", "text": "data:, a"},
        ]
        documents = [{"content": parts}, {"text": "a", "image": red}, {"text": "a", "_id": 7}, "a"]
        body = {"query": QUERY, "documents": documents}

        def back(**more: Any) -> list[Any]:
            results = vision.post("/rerank", body | more).json()["results"]
            return [r.get("document") for r in sorted(results, key=lambda r: r["index"])]

        whole = [
            {"text": None, "multi_modal": parts},
            {
                "text": None,
                "multi_modal": [{"type": "text", "text": "a"}, {"type": "image", "image": red}],
            },
            {"text": "a", "multi_modal": None},
            {"text": "a", "multi_modal": None},
        ]
        assert back(return_documents=True) == whole
        assert back() == json.loads(json.dumps(whole).replace(red, "data:image/png;base64"))
        assert back(return_documents=False) == [None] * 4

    def test_what_no_answer_can_hold_comes_back_as_a_question_mark(self, vision):
        odd = picture().replace("png", "\ud800")
        part = {"type": "image_url", "image_url": {"url": odd}}
        body = json.dumps({"query": "a", "documents": [{"content": [part]}]})
        response = vision.ask("POST", "/rerank", content=body, headers=JSON)
        assert response.status_code == 200
        [back] = response.json()["results"][0]["document"]["multi_modal"]
        assert back["image_url"] == {"url": "data:image/?;base64"}

    def test_pictures_for_a_model_that_reads_text(self, text):
        response = text.post("/rerank", {"query": QUERY, "documents": [{"image": picture()}]})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "documents[0]"


class TestScore:
    @pytest.mark.parametrize("first", ["text_1", "queries", "data_1"])
    def test_a_list_of_one_is_for_all(self, text, first):
        second = {"text_1": "text_2", "queries": "documents", "data_1": "data_2"}[first]
        response = text.post("/score", {first: [QUERY], second: DOCUMENTS})
        assert scores(response) == text.engine.score(QUERY, DOCUMENTS)

    def test_a_field_at_fault_is_called_as_the_client_did(self, text):
        response = text.post("/score", {"queries": [QUERY, 5], "items": ["a", "b"]})
        assert response.json()["error"]["param"] == "queries[1]"
        response = text.post("/score", {"data_1": QUERY, "data_2": ["a", 5]})
        assert response.json()["error"]["param"] == "data_2[1]"


class TestEmbeddings:
    def vectors(self, response: Any) -> np.ndarray:
        assert response.status_code == 200, response.text
        return np.float32([item["embedding"] for item in response.json()["data"]])

    def test_base64(self, embedder):
        body = {"input": DOCUMENTS, "encoding_format": "base64"}
        data = embedder.post("/v1/embeddings", body).json()["data"]
        decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in data]
        assert np.array_equal(decoded, embedder.engine.embed(DOCUMENTS))

    def test_dimensions(self, embedder, folders):
        got = self.vectors(embedder.post("/v1/embeddings", {"input": DOCUMENTS, "dimensions": 32}))
        shorter = Embedder(folders["qwen3"], device="cpu", dtype=embedder.engine.dtype, dim=32)
        tolerance = {"float32": 1e-6, "bfloat16": 1e-2}[str(shorter.dtype).removeprefix("torch.")]
        np.testing.assert_allclose(got, shorter.embed(DOCUMENTS), atol=tolerance)

    def test_token_ids_are_run_as_they_are(self, embedder):
        engine = embedder.engine
        prompts = engine.core.encoder.encode(
            [engine.core.encoder.input("", text) for text in DOCUMENTS]
        )
        ids = [prompt.ids for prompt in prompts]
        assert np.array_equal(
            self.vectors(embedder.post("/v1/embeddings", {"input": ids})), engine.embed(DOCUMENTS)
        )
        one = self.vectors(embedder.post("/v1/embeddings", {"input": ids[0]}))
        assert np.array_equal(one, engine.embed(DOCUMENTS[:1]))

    @pytest.mark.parametrize("ids", [[151936], [-1], [True], [1, "a"], [[1], [2.5]], [1] * 9000])
    def test_token_ids_at_fault(self, embedder, ids):
        response = embedder.post("/v1/embeddings", {"input": ids})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("input")

    def test_instruction(self, embedder):
        body = {"input": DOCUMENTS, "instruction": "Find the answer."}
        want = embedder.engine.embed(DOCUMENTS, instruction="Find the answer.")
        assert np.array_equal(self.vectors(embedder.post("/v1/embeddings", body)), want)

    def test_conversations(self, vision_embedder):
        red = picture()
        system = {"role": "system", "content": [{"type": "text", "text": "Find the sign."}]}
        user = {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": red}},
                {"type": "text", "text": "a sign"},
            ],
        }
        answer = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
        content = {"image": red, "text": "a sign"}
        engine = vision_embedder.engine
        want = engine.embed([content], instruction="Find the sign.")
        guide = {"messages": [system, user, answer], "continue_final_message": True}
        assert np.array_equal(self.vectors(vision_embedder.post("/v1/embeddings", guide)), want)
        several = {"messages": [[system, user], [user], [{"role": "user", "content": "a"}]]}
        got = self.vectors(vision_embedder.post("/v1/embeddings", several))
        assert np.array_equal(got, [*want, *engine.embed([content, "a"])])
        named = {"input": [system, user]}
        assert np.array_equal(self.vectors(vision_embedder.post("/v1/embeddings", named)), want)

    @pytest.mark.parametrize(
        "messages",
        [
            [],
            ["a"],
            [{"role": "assistant", "content": ""}],
            [{"role": "user", "content": "a"}] * 2,
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            [{"role": "system", "content": 5}, {"role": "user", "content": "a"}],
            [{"role": "user", "content": [{"type": "audio"}]}],
            [{"role": "user"}],
            5,
        ],
    )
    def test_conversations_at_fault(self, vision_embedder, messages):
        response = vision_embedder.post("/v1/embeddings", {"messages": messages})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("messages")


class TestErrors:
    @pytest.mark.parametrize(
        ("more", "param"),
        [
            ({"documents": ["a", "\ud800"]}, "documents[1]"),
            ({"query": "\ud800"}, "query"),
            ({"query": None}, "query"),
            ({"documents": ["a", None]}, "documents[1]"),
            ({"documents": ["a", {}]}, "documents[1]"),
            ({"documents": ["a", {"content": []}]}, "documents[1]"),
            ({"documents": ["a", {"content": {}}]}, "documents[1]"),
            ({"documents": ["a", {"text": []}]}, "documents[1]"),
            ({"documents": ["a", {"content": "b", "text": "c"}]}, "documents[1]"),
            ({"documents": ["a", "data:image/png;base64,AAAA"]}, "documents[1]"),
            ({"query": {"content": []}}, "query"),
            ({"documents": ["a", {"title": "b"}]}, "documents[1]"),
            ({"documents": ["a", {"type": "text", "text": "b"}]}, "documents[1]"),
            ({"documents": ["a", {"content": [{"type": "audio"}]}]}, "documents[1]"),
            ({"documents": ["a", {"image": "data:image/png;base64,AAAA"}]}, "documents[1]"),
            ({"instruction": 5}, "instruction"),
            ({"instruction": "word " * 20000}, "instruction"),
            ({"chat_template_kwargs": {"instruction": [5]}}, "instruction"),
            ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
            ({"truncate_prompt_tokens": 60}, "truncate_prompt_tokens"),
            ({"truncate_prompt_tokens": 99999}, "truncate_prompt_tokens"),
            ({"max_tokens_per_doc": -1}, "max_tokens_per_doc"),
            ({"truncation_side": "left"}, "truncation_side"),
            ({"chat_template": "{{ query }}"}, "chat_template"),
            ({"mm_processor_kwargs": {"max_pixels": 9}}, "mm_processor_kwargs"),
            ({"request_id": "a b"}, "request_id"),
            ({"query": PREFIX + "half a template"}, "documents[0]"),
        ],
    )
    def test_the_field_is_named(self, vision, more, param):
        body = json.dumps({"query": "a", "documents": ["b"]} | more)
        response = vision.ask("POST", "/rerank", content=body, headers=JSON)
        assert response.status_code == 400
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert response.json()["error"]["param"] == param

    def test_one_bad_request_of_many_costs_the_others_nothing(self, vision):
        good = {"query": QUERY, "documents": DOCUMENTS}
        bad = [
            {"query": QUERY},
            good | {"documents": ["a", 5]},
            good | {"documents": [{"image": "x"}]},
        ]
        bodies = [good, bad[0], good, bad[1], good, bad[2], good]
        responses = vision.ask_all([("POST", "/rerank", {"json": body}) for body in bodies])
        want = vision.engine.score(QUERY, DOCUMENTS)
        assert [r.status_code for r in responses] == [200, 400] * 3 + [200]
        assert all(relevance(response) == want for response in responses[::2])

    def test_the_other_task(self, text, embedder):
        response = text.post("/v1/embeddings", {"input": "a"})
        assert (response.status_code, response.json()["error"]["type"]) == (404, "NotFoundError")
        response = embedder.post("/rerank", {"query": "a", "documents": ["b"]})
        assert (response.status_code, response.json()["error"]["type"]) == (404, "NotFoundError")

    @pytest.mark.parametrize(
        ("settings", "body"),
        [
            ({"max_documents": 2}, {"documents": ["a"] * 3}),
            ({"max_tokens": 300}, {"documents": ["a " * 300]}),
            ({"max_pictures": 1}, {"documents": [{"image": ["data:,", "data:,"]}]}),
        ],
    )
    def test_limits(self, folders, request, settings, body):
        served = serve(Reranker(folders["qwen3-vl"], device="cpu"), request, **settings)
        response = served.post("/rerank", {"query": "a"} | body)
        assert response.status_code == 400 and "server takes" in response.text
        assert response.json()["error"]["param"] == "documents"

    def test_a_row_that_is_not_finite(self, vision, request, monkeypatch):
        engine = twin(vision.engine)
        served = serve(engine, request)
        stream = engine.core.stream

        def broken(windows, keep):
            for run, rows in stream(windows, keep=keep):
                long = torch.tensor([[len(prompt.ids) > 200] for prompt in run.prompts])
                yield run, torch.where(long, torch.nan, rows)

        monkeypatch.setattr(engine.core, "stream", broken)
        body = {"query": "a", "documents": ["b", "b " * 200]}
        response = served.post("/rerank", body)
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["type"] == "InternalServerError" and "documents[1]" in error["message"]


JSON = {"content-type": "application/json"}


class TestAround:
    def test_models(self, text):
        data = text.get("/v1/models").json()["data"]
        assert [card["id"] for card in data] == ["served", "alias"]
        assert {card["max_model_len"] for card in data} == {8192}

    def test_openapi_has_examples_that_work(self, text, vision_embedder):
        description = text.get("/openapi.json").json()
        examples = {}
        for path, methods in description["paths"].items():
            body = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for media in body.values():
                examples |= {(path, n): e["value"] for n, e in media["examples"].items()}
        assert {path for path, _ in examples} == {
            *("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/v1/embeddings")
        }
        for (path, name), body in examples.items():
            served = vision_embedder if path == "/v1/embeddings" else text
            response = served.post(path, body)
            if name in ("pictures", "a picture"):
                assert "picture" in response.json()["error"]["message"]  # its data is a stub
            else:
                assert response.status_code == 200

    def test_health_is_of_the_engine(self, text, monkeypatch):
        assert text.get("/health").status_code == 200
        monkeypatch.setattr(text.scheduler, "lost", "gone")
        assert text.get("/health").status_code == 503
