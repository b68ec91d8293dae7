"""Every field that a published client may send is done, refused by name, or harmless."""

import base64
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import Served

from pyrerank import Embedder, Reranker
from pyrerank.serve import wire

pytestmark = pytest.mark.slow

RERANK = {"query": "a", "documents": ["b", "c"]}
SCORE = {"queries": "a", "documents": ["b", "c"]}
EMBED = {"input": ["a", "b"]}
# Of published clients and servers; they change no result.
HARMLESS = {
    "user",
    "priority",
    "cache_salt",
    "api_version",
    "extra_headers",
    "extra_body",
    "extra_query",
    "max_chunks_per_doc",
    "overlap_tokens",
}
HARMLESS |= {
    "add_generation_prompt",
    "continue_final_message",
    "timeout",
    "request_options",
    "self",
}


@pytest.fixture(scope="module")
def reranker(random_reranker) -> Iterator[Served]:
    served = Served(Reranker(random_reranker, device="cpu"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def embedder(random_reranker) -> Iterator[Served]:
    served = Served(Embedder(random_reranker, device="cpu"))
    yield served
    served.close()


def refused(response: Any, param: str) -> None:
    assert response.status_code == 400, response.text[:300]
    assert response.json()["error"]["param"] == param, response.text


def result(response: Any) -> Any:
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer.get("results") or answer["data"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        # vLLM
        *(("truncation_side", "left"), ("padding", "max_length"), ("chat_template", "{{ a }}")),
        *(("mm_processor_kwargs", {"max_pixels": 9}), ("media_io_kwargs", {"video": {"fps": 9}})),
        *(("activation", False), ("softmax", False), ("chat_template_kwargs", {"task": "b"})),
        ("chat_template_kwargs", {"enable_thinking": True}),
        # Cohere
        ("rank_fields", ["title", "text"]),
        ("relevant_spans", {"mode": "enabled"}),
        # Jina, Voyage, TEI, DashScope, SiliconFlow
        *(("max_doc_length", 64), ("max_query_length", 8), ("return_embeddings", True)),
        ("truncate", "START"),
        *(("top_k", 1), ("raw_scores", True), ("return_text", True), ("instruct", "Find b.")),
        *(("truncation_direction", "Left"), ("task", "text-matching")),
        *(("fps", 2), ("max_frames", 8), ("max_pixels", 1024), ("min_pixels", 1024)),
        # types: a word, a fraction, a truth value is no number, and a number is no truth value
        *(("top_n", "one"), ("top_n", 1.5), ("top_n", True), ("top_n", -1), ("top_n", [1])),
        *(("use_activation", 2), ("use_activation", "maybe"), ("return_documents", [])),
        *(("return_details", 7), ("max_tokens_per_doc", "9.5"), ("max_tokens_per_query", True)),
        *(("truncate_prompt_tokens", False), ("truncate_prompt_tokens", 90.5), ("model", 5)),
        *(("request_id", 5), ("chat_template_kwargs", "instruction"), ("top_n", float("nan"))),
        *(("raw_scores", 0), ("truncate", 1)),
    ],
    ids=str,
)
def test_what_would_change_a_ranking_is_refused_by_name(reranker, field, value):
    body = json.dumps(RERANK | {field: value})
    headers = {"content-type": "application/json"}
    refused(reranker.ask("POST", "/v1/rerank", content=body, headers=headers), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        # vLLM
        *(("use_activation", 2), ("normalize", False), ("add_special_tokens", False)),
        *(("return_multivector", True), ("text_type", "query"), ("output_type", "sparse")),
        *(("embed_dtype", "float16"), ("endianness", "big"), ("encoding_format", "bytes")),
        *(("truncation_side", "left"), ("padding", "max_length")),
        # Jina
        *(("task", "retrieval.query"), ("late_chunking", True), ("normalized", False)),
        *(("embedding_type", "binary"), ("embedding_type", ["float", "base64"])),
        # Cohere, Voyage, NIM, TEI
        *(("input_type", "search_query"), ("embedding_types", ["int8"]), ("output_dimension", 8)),
        *(("output_dtype", "int8"), ("max_tokens", 4), ("truncate", "START"), ("truncate_dim", 8)),
        *(("prompt_name", "query"), ("prompt", "query: ")),
        # of the other paths, and types
        *(("max_tokens_per_doc", 4), ("max_tokens_per_query", 4)),
        *(("dimensions", "all"), ("dimensions", 8.5), ("dimensions", True), ("dimensions", 0)),
        *(("add_special_tokens", 7), ("encoding_format", 5)),
    ],
    ids=str,
)
def test_what_would_change_a_vector_is_refused_by_name(embedder, field, value):
    refused(embedder.post("/v1/embeddings", EMBED | {field: value}), field)


@pytest.mark.parametrize("field", wire.NOT_DONE)
def test_values_that_change_nothing_are_taken(reranker, embedder, field):
    neutral, _ = wire.NOT_DONE[field]
    plain = [
        result(reranker.post("/rerank", RERANK)),
        result(embedder.post("/v1/embeddings", EMBED)),
    ]
    for value in (*neutral, None):
        more = {field: value}
        got = [
            result(reranker.post("/rerank", RERANK | more)),
            result(embedder.post("/v1/embeddings", EMBED | more)),
        ]
        assert got == plain


@pytest.mark.parametrize("more", [{"truncate": "NONE"}, {"truncate": False}, {"truncation": False}])
def test_a_text_that_may_not_be_cut(reranker, embedder, more):
    refused(
        reranker.post("/rerank", RERANK | {"documents": ["b", "c " * 9000]} | more), "documents[1]"
    )
    refused(embedder.post("/v1/embeddings", EMBED | {"input": "c " * 9000} | more), "input[0]")


def test_what_products_send_is_taken(reranker, embedder):
    """As RAGFlow, LlamaIndex, LiteLLM and LangChain send it, with their own defaults."""
    plain = result(reranker.post("/rerank", RERANK | {"return_documents": False, "top_n": 1}))
    for more in (
        {"return_documents": False, "top_n": 1, "max_chunks_per_doc": 1024, "overlap_tokens": 80},
        {"return_documents": "false", "top_n": "1", "return_len": "true"},
        {"return_documents": False, "top_n": 1.0, "return_details": None},
    ):
        assert result(reranker.post("/rerank", RERANK | more)) == plain
    plain = result(embedder.post("/v1/embeddings", EMBED))
    for more in (
        {"encoding_format": None, "dimensions": None, "return_details": None},
        {"input_type": "passage", "truncate": "NONE"},
        {"input_type": "document", "encoding_format": "float"},
    ):
        assert result(embedder.post("/v1/embeddings", EMBED | more)) == plain


@pytest.mark.parametrize(
    "document",
    [
        {"id": "1", "type": "pdf", "text": "b"},
        {"text": "b", "type": None},
        {"text": "b", "images": [], "videos": 0, "image_url": None, "instruction": None},
        {"text": "b", "content": None, "title": "c"},
    ],
    ids=str,
)
def test_fields_of_a_document_are_the_callers_own(reranker, document):
    [plain] = result(reranker.post("/rerank", RERANK | {"documents": ["b"]}))
    [got] = result(reranker.post("/rerank", RERANK | {"documents": [document]}))
    assert got["relevance_score"] == plain["relevance_score"]


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"text": "b", "image_url": "data:image/png;base64,AA=="}, "'image_url'"),
        ({"text": "b", "video_url": {"url": "http://a/b.mp4"}}, "'video_url'"),
        ({"text": "b", "img": "data:image/png;base64,AA=="}, "'img'"),
        ({"text": "b", "images": ["data:image/png;base64,AA=="]}, "'images'"),
        ({"text": "b", "instruction": "Find c."}, "'instruction'"),
        ({"video": ["data:image/png;base64,AA=="], "fps": 0.1}, "'fps'"),
        ({"image": "data:image/png;base64,AA==", "max_pixels": 1024}, "'max_pixels'"),
    ],
    ids=str,
)
def test_fields_of_a_document_that_others_heed_are_refused(reranker, document, named):
    response = reranker.post("/rerank", RERANK | {"documents": [document]})
    refused(response, "documents[0]")
    assert named in response.json()["error"]["message"]


def test_fields_that_nobody_documents_are_ignored(reranker, embedder):
    more = {"colour": "red", "user": "me", "priority": 7, "cache_salt": "salt"}
    assert result(reranker.post("/rerank", RERANK | more)) == result(
        reranker.post("/rerank", RERANK)
    )
    assert result(embedder.post("/v1/embeddings", EMBED | more)) == result(
        embedder.post("/v1/embeddings", EMBED)
    )


def test_every_argument_of_published_clients_is_known():
    cohere = pytest.importorskip("cohere")
    openai = pytest.importorskip("openai")
    for known, call in (
        (wire.RerankRequest, cohere.Client.rerank),
        (wire.RerankRequest, cohere.ClientV2.rerank),
        (wire.EmbeddingRequest, openai.resources.Embeddings.create),
    ):
        fields = set(inspect.signature(call).parameters)
        assert fields <= known.model_fields.keys() | wire.NOT_DONE.keys() | HARMLESS


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"items": ["d"]}, "items"),
        ({"text_1": "a", "text_2": ["d"]}, "queries"),
        ({"data_1": "a"}, "data_1"),
    ],
)
def test_scores_are_of_two_fields(reranker, more, field):
    refused(reranker.post("/score", SCORE | more), field)


def test_a_document_is_one_content(reranker):
    for both in ({"content": "b", "text": "c"}, {"content": [], "image": "data:,"}):
        refused(reranker.post("/rerank", RERANK | {"documents": ["b", both]}), "documents[1]")


class TestTokenIds:
    IDS = (5, 6, 7, 8)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("truncate_prompt_tokens", 3),
            ("truncate_prompt_tokens", 0),
            ("instruction", "Find it."),
        ],
    )
    def test_are_run_as_they_are(self, embedder, field, value):
        for ids in ([*self.IDS], [[5], [*self.IDS]]):
            refused(embedder.post("/v1/embeddings", {"input": ids, field: value}), field)

    @pytest.mark.parametrize(
        "more",
        [
            {"truncate_prompt_tokens": 4},
            {"truncate_prompt_tokens": -1},
            {"add_special_tokens": False},
        ],
    )
    def test_fields_that_change_nothing(self, embedder, more):
        plain = result(embedder.post("/v1/embeddings", {"input": [*self.IDS]}))
        assert result(embedder.post("/v1/embeddings", {"input": [*self.IDS]} | more)) == plain


class TestConversations:
    def user(self) -> dict[str, str]:
        return {"role": "user", "content": "a"}

    def test_one_instruction(self, embedder):
        system = {"role": "system", "content": "Find it."}
        body = {"messages": [system, self.user()], "instruction": "Find b."}
        refused(embedder.post("/v1/embeddings", body), "instruction")

    @pytest.mark.parametrize("more", [{}, {"add_special_tokens": False}])
    def test_special_tokens_are_those_of_the_prompt(self, embedder, more):
        body = {"messages": [self.user()]}
        assert result(embedder.post("/v1/embeddings", body | more))
        response = embedder.post("/v1/embeddings", body | {"add_special_tokens": True})
        refused(response, "add_special_tokens")


class TestNumbers:
    def test_of_embeddings_have_the_digits_that_float32_needs(self, embedder):
        body = EMBED | {"dimensions": 90}
        [item, _] = result(embedder.post("/v1/embeddings", body))
        [same, _] = result(embedder.post("/v1/embeddings", body | {"encoding_format": "base64"}))
        vector = np.frombuffer(base64.b64decode(same["embedding"]), "<f4")
        assert item["embedding"] == [float(str(number)) for number in vector]
        assert np.array_equal(np.float32(item["embedding"]), vector)
        assert len(json.dumps(item["embedding"])) < 0.7 * len(json.dumps(vector.tolist()))

    def test_a_vector_that_is_cut_to_nothing_is_an_error(self, embedder, monkeypatch):
        stream = embedder.engine.core.stream

        def last_numbers(*arguments: Any, **options: Any) -> Iterator[Any]:
            for run, rows in stream(*arguments, **options):
                yield run, torch.cat((torch.zeros_like(rows[:, :-1]), rows[:, -1:]), dim=1)

        monkeypatch.setattr(embedder.engine.core, "stream", last_numbers)
        assert embedder.post("/v1/embeddings", EMBED).status_code == 200
        response = embedder.post("/v1/embeddings", EMBED | {"dimensions": 8})
        assert response.status_code == 500
        assert "a vector of length 0 for input[0]" in response.json()["error"]["message"]

    def test_without_activation_vectors_have_the_length_that_the_model_gave(self, embedder):
        [raw, _] = result(embedder.post("/v1/embeddings", EMBED | {"use_activation": False}))
        [unit, _] = result(embedder.post("/v1/embeddings", EMBED | {"use_activation": True}))
        length = np.linalg.norm(raw["embedding"])
        assert abs(length - 1) > 0.1
        np.testing.assert_allclose(
            np.array(raw["embedding"]) / length, unit["embedding"], rtol=1e-5
        )


def test_the_documents_have_all_of_it():
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text("utf-8")
    table = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", page, re.M)
    assert table == [
        (name, instead, ", ".join(f"`{json.dumps(value)}`" for value in neutral))
        for name, (neutral, instead) in wire.NOT_DONE.items()
    ]
