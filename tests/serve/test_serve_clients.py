"""Clients that people use work with the server; those that are not installed are skipped."""

from collections.abc import Iterator

import numpy as np
import pytest
from serving import running

from pyrerank import Embedder, Reranker

pytestmark = pytest.mark.slow

QUERY = "What is the capital of China?"
DOCUMENTS = ["Gravity is a force.", "Beijing is the capital of China.", "steam", ""]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running("demo") as process:
        yield process.url


def test_cohere(url):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2("no key", base_url=url)
    response = client.rerank(model="demo", query=QUERY, documents=DOCUMENTS, top_n=3)
    want = Reranker("demo").rank(QUERY, DOCUMENTS, top_n=3)
    got = [(result.index, result.relevance_score) for result in response.results]
    assert got == [(each.index, each.score) for each in want]
    with pytest.raises(cohere.NotFoundError, match="The model `nonesuch` does not exist"):
        client.rerank(model="nonesuch", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.BadRequestError, match="documents is empty"):
        client.rerank(model="demo", query=QUERY, documents=[])


def test_openai(random_reranker):
    openai = pytest.importorskip("openai")
    keys = {"PYRERANK_API_KEYS": "one two"}
    with running(str(random_reranker), "--task", "embed", **keys) as process:
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="two")
        [card] = client.models.list()
        assert card.id == str(random_reranker)
        response = client.embeddings.create(model=card.id, input=DOCUMENTS)
        want = Embedder(random_reranker).embed(DOCUMENTS)
        got = np.float32([each.embedding for each in response.data])
        assert np.array_equal(got, want)
        assert response.usage.prompt_tokens > 0
        short = client.embeddings.create(model=card.id, input="a", dimensions=8)
        assert len(short.data[0].embedding) == 8
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=card.id, input="a", dimensions=0)
        assert caught.value.param == "dimensions"
        stranger = openai.OpenAI(base_url=f"{process.url}/v1", api_key="three")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_langchain(url):
    compressor = pytest.importorskip("langchain_cohere").CohereRerank(
        base_url=url, cohere_api_key="no key", model="demo", top_n=2
    )
    document = pytest.importorskip("langchain_core.documents").Document
    documents = [document(page_content=text) for text in DOCUMENTS]
    found = compressor.compress_documents(documents, QUERY)
    want = Reranker("demo").rank(QUERY, DOCUMENTS, top_n=2)
    got = [(each.page_content, each.metadata["relevance_score"]) for each in found]
    assert got == [(each.document, each.score) for each in want]


@pytest.mark.parametrize("integration", ["cohere_rerank.CohereRerank", "jinaai_rerank.JinaRerank"])
def test_llama_index(url, integration):
    module, name = integration.split(".")
    package = pytest.importorskip(f"llama_index.postprocessor.{module}")
    schema = pytest.importorskip("llama_index.core.schema")
    base = url if module == "cohere_rerank" else f"{url}/v1"
    processor = getattr(package, name)(top_n=2, model="demo", api_key="no key", base_url=base)
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in DOCUMENTS]
    found = processor.postprocess_nodes(nodes, query_str=QUERY)
    want = Reranker("demo").rank(QUERY, DOCUMENTS, top_n=2)
    assert [(each.text, each.score) for each in found] == [(w.document, w.score) for w in want]
