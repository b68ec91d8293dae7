"""Buckets and padding; capture and replay themselves need a device: tests/npu."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from passes import packed

from pyrerank.engine.batch import SHARED_PER_TOKEN, pack
from pyrerank.engine.graphs import SMALLEST, Bucket, buckets
from pyrerank.engine.planner import plan
from pyrerank.prompts.items import Prompt

prompts = st.lists(
    st.lists(st.integers(1, 2), min_size=1, max_size=50).map(lambda ids: Prompt([7] * 40 + ids, 0)),
    min_size=1,
    max_size=30,
)


@given(budget=st.integers(1, 20_000), data=st.data())
def test_at_most_a_fifth_of_a_bucket_is_padding(budget, data):
    sizes = [bucket.tokens for bucket in buckets(budget)]
    assert sizes == sorted(set(sizes)) and sizes[-1] >= budget
    tokens = data.draw(st.integers(min(SMALLEST, budget), budget))
    bucket = next(size for size in sizes if size >= tokens)
    assert bucket - tokens <= bucket / 5 or bucket == SMALLEST


def test_the_default_budget_has_few_buckets():
    found = buckets(8192)
    assert len(found) == 25
    assert (found[-1].tokens, found[-1].sequences) == (8192, 512)


@given(prompts=prompts, budget=st.integers(1, 400), share=st.booleans())
def test_a_bucket_holds_every_pass_that_is_planned_for_it(prompts, budget, share):
    found = buckets(budget)
    limits = {"most_sequences": found[-1].sequences, "most_shared": SHARED_PER_TOKEN * budget}
    for planned in plan([prompts], budget, share=share, leave_prefix=False, **limits):
        batch = pack(planned.ids, planned.spans, planned.shared)
        if batch.tokens > budget:
            assert len(planned.prompts) == 1
            continue
        bucket = next(bucket for bucket in found if bucket.holds(batch))
        padded = bucket.pad(batch)
        assert padded.tokens == bucket.tokens and len(padded.kv_rows) == bucket.keys
        assert len(padded.lengths) == bucket.sequences + 1
        for other in found:
            if other.tokens < bucket.tokens:
                assert not other.holds(batch)


def test_what_a_bucket_does_not_hold():
    bucket = Bucket(4, 2)
    word, other = Prompt([1], 0), Prompt([2], 0)
    assert bucket.holds(packed([Prompt([1, 2, 3], 0), word]))
    assert not bucket.holds(packed([Prompt([1, 2, 3, 4], 0), word]))
    assert not bucket.holds(packed([word, word, other]))
    for shared in (12, 13):  # the prefix of the pass before
        batch = pack([[1] * (shared + 1), [2]], [(), ()], [shared, 0])
        assert batch.shared == shared and bucket.holds(batch) == (shared == 12)
    assert not bucket.holds(replace(packed([word]), features=torch.zeros(1, 1, 1)))
    assert not replace(bucket, vision=True).holds(packed([word]))
