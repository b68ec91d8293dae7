"""Buckets and padding; capture and replay themselves need a device: tests/npu."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import packed

from pyrerank.batch import pad
from pyrerank.graph import SMALLEST, buckets
from pyrerank.inputs import Prompt

prompts = st.lists(
    st.lists(st.integers(1, 1000), min_size=1, max_size=50).map(lambda ids: Prompt(ids, 0)),
    min_size=1,
    max_size=9,
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
    assert (found[-1].tokens, found[-1].sequences) == (8192, 256)


@given(prompts=prompts, spare=st.integers(0, 30), empty=st.integers(0, 5))
def test_padding_adds_rows_and_sequences_behind_the_prompts(prompts, spare, empty):
    batch = packed(prompts)
    padded = pad(batch, batch.tokens + spare, len(prompts) + empty)
    assert padded.tokens == batch.tokens + spare == sum(padded.lengths)
    assert len(padded.lengths) == len(prompts) + empty + 1
    assert padded.lengths[: len(prompts)] == batch.lengths
    assert torch.equal(padded.ids[: batch.tokens], batch.ids)
    assert torch.equal(padded.positions[:, : batch.tokens], batch.positions)
    ends = torch.tensor([0, *padded.lengths]).cumsum(0)
    assert padded.cu_seqlens.tolist() == ends.tolist()
    # the last token of a sequence that is not there is some row all the same
    assert ((padded.cu_seqlens[1:] - 1) >= 0).all()
