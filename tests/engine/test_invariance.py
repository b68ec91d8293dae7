"""On the CPU a pair has the same bits in any batch, in any order, however much of it is shared.

Without the kernels of csrc/cpu only attention depends on what is shared; see test_engine.py.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from checkpoints import write_random
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrerank import Embedder, Reranker
from pyrerank.kernels import cpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not cpu.takes(torch.zeros(1)), reason="installed without the kernels of csrc/cpu"
    ),
]

TEXT = "The steam engine was improved by James Watt; 蒸汽机的热源是什么？ It drove mills and more. "
WORDS = TEXT.split()


def picture(seed: int, height: int, width: int) -> PIL.Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(colours)


CONTENTS = {
    "nothing in common": ["alpha", "Beta", "γ", "4", "", "de", "!"],
    "one token in common": [f"{a} {b}" for a in "AB" for b in "cdef"],
    "all but one token": [TEXT * 3 + end for end in "abcdef"],
    "one the start of the next": [" ".join((WORDS * 9)[:count]) for count in range(1, 120, 7)],
    "longer than a pass": [TEXT * 20 + end for end in "ab"] + [TEXT * 20, "short"],
    "a picture in common": [
        {"image": picture(0, 70, 90), "text": t} for t in ("a", "b", "a b", "")
    ],
    "pictures": [{"image": picture(seed, 40 + 30 * seed, 64)} for seed in range(5)],
    "pictures with a start in common": [
        {"image": [picture(0, 70, 90), picture(seed, 33, 64)], "text": "end"}
        for seed in range(1, 4)
    ],
}


SWITCHES = [
    (True, True, 1024),
    (True, True, 200),
    (True, True, 1),
    (True, False, 300),
    (False, True, 1024),
    (False, False, 500),
]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def engine(request, tmp_path_factory) -> Reranker:
    folder: Path = tmp_path_factory.mktemp("vl")
    write_random(folder, "qwen3-vl-reranker", tied=True, dtype=torch.bfloat16, seed=3)
    return Reranker(folder, dtype=request.param, device="cpu")


@pytest.fixture
def switched(engine: Reranker) -> Reranker:
    before = engine.core.share_prefixes, engine.core.prune_last_layer, engine.token_budget
    yield engine
    engine.core.share_prefixes, engine.core.prune_last_layer, engine.core.token_budget = before


def logits(engine: Reranker, query: object, documents: list[object]) -> list[float]:
    return [result.logit for result in engine.details(query, documents)]


@pytest.mark.parametrize("kind", list(CONTENTS))
@pytest.mark.parametrize("query", ["steam", {"image": picture(9, 64, 64), "text": "like this"}])
def test_each_optimisation_changes_no_bit(switched, kind, query):
    documents = CONTENTS[kind]
    alone = [logits(switched, query, [document])[0] for document in documents]
    assert len(set(alone)) == len(documents)
    for share, prune, budget in SWITCHES:
        switched.core.share_prefixes, switched.core.prune_last_layer = share, prune
        switched.core.token_budget = budget
        assert logits(switched, query, documents) == alone, (share, prune, budget)


@settings(max_examples=15)
@given(data=st.data())
def test_any_batch(engine, data):
    every = [content for contents in CONTENTS.values() for content in contents]
    chosen = data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=12))
    pairs = [(data.draw(st.sampled_from(["", "steam"])), every[n]) for n in chosen]
    queries, documents = map(list, zip(*pairs, strict=True))
    got = [result.logit for result in engine.details(queries, documents)]
    one = data.draw(st.integers(0, len(pairs) - 1))
    assert got[one] == logits(engine, queries[one], [documents[one]])[0]


def test_any_number_of_threads(engine):
    documents = [content for contents in CONTENTS.values() for content in contents]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(logits(engine, "steam", documents))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_embeddings(tmp_path):
    write_random(tmp_path, "qwen3-vl-reranker", tied=True, dtype=torch.bfloat16, seed=3)
    embedder = Embedder(tmp_path, dtype="bfloat16", device="cpu")
    inputs = [content for contents in CONTENTS.values() for content in contents]
    together = embedder.embed(inputs)
    for vector, content in zip(together, inputs, strict=True):
        assert np.array_equal(vector, embedder.embed([content])[0])


@pytest.mark.parametrize("kind", list(CONTENTS))
def test_what_a_stream_leaves_changes_no_bit_of_the_next(switched, kind):
    prompts = switched.core.encoder.encode(
        [
            switched.core.encoder.pair("a pair", q, d)
            for q in ("steam", "mills")
            for d in CONTENTS[kind]
        ]
    )
    head = (
        len(
            switched.core.encoder.encode([switched.core.encoder.pair("a pair", "steam", "x")])[
                0
            ].ids
        )
        - len("steam x")
        - 9
    )

    def rows(keep: bool) -> tuple[list[list[float]], int]:
        """Of a stream for each prompt; and what they computed."""
        computed, found = switched.core.computed, []
        for prompt in prompts:
            [(_, row)] = switched.core.stream([[prompt]], keep=keep)
            found += row.tolist()
        return found, switched.core.computed - computed

    list(switched.core.stream([[prompts[0]]]))  # leaves nothing
    alone, all_tokens = rows(keep=False)
    assert all_tokens == sum(len(prompt.ids) for prompt in prompts)
    kept, fewer = rows(keep=True)
    assert kept == alone
    assert fewer <= all_tokens - (len(prompts) - 1) * head


def test_a_stream_that_fails_or_ends_early_leaves_nothing(switched, monkeypatch):
    [prompt] = switched.core.encoder.encode(
        [switched.core.encoder.pair("a pair", "steam", "mills")]
    )
    [(_, want)] = switched.core.stream([[prompt]], keep=True)
    with monkeypatch.context() as patch:
        patch.setattr(switched.core, "_forward", lambda run, batch, prefix: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(switched.core.stream([[prompt]], keep=True))
    early = switched.core.stream([[prompt], [prompt]], keep=True)
    next(early)
    early.close()
    computed = switched.core.computed
    [(_, rows)] = switched.core.stream([[prompt]], keep=True)
    assert switched.core.computed - computed == len(prompt.ids)
    assert rows.tolist() == want.tolist()
