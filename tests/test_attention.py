"""Attention over packed sequences, on the CPU, against attention over each sequence in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import packed

from pyrerank.attention import by_sequence, causal_mask, dense, full
from pyrerank.batch import Batch, pad
from pyrerank.inputs import Prompt

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)
heads = st.sampled_from([(1, 1), (4, 2), (6, 2), (8, 1)])


def reference(q, k, v, lengths, causal=True):
    """Softmax of the scores, sequence by sequence and head by head."""
    out = torch.empty_like(q, dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            scores = q[rows, head] @ k[rows, kv].T / q.shape[2] ** 0.5
            hidden = torch.full((length, length), causal).triu(1)
            out[rows, head] = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[rows, kv]
        start += length
    return out


def random(lengths: list[int], heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
    tokens = sum(lengths)
    return tuple(torch.randn(tokens, n, 16) for n in (heads, kv_heads, kv_heads))


@pytest.mark.parametrize("attend", [by_sequence, dense])
@settings(max_examples=30)
@given(lengths=lengths, heads=heads)
def test_every_sequence_sees_itself_and_the_past(attend, lengths, heads):
    q, k, v = random(lengths, *heads)
    batch = packed([Prompt([0] * length, 0) for length in lengths])
    got = attend(q, k, v, batch)
    assert got.shape == q.shape
    torch.testing.assert_close(got.double(), reference(q, k, v, lengths), atol=2e-6, rtol=0)


@pytest.mark.parametrize("mask", [2048, 8])
@settings(max_examples=30)
@given(data=st.data(), heads=heads)
def test_a_sequence_goes_on_from_tokens_of_others(mask, data, heads):
    """Its queries are the last rows of what is seen by the whole sequence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrerank.attention.MASK", mask)
        causal_mask.cache_clear()
        lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
        own = [data.draw(st.integers(1, length)) for length in lengths]
        q, k, v = random(lengths, *heads)
        rows = torch.randperm(len(k))  # where keys and values lie does not matter
        back = rows.argsort().int()
        ends = torch.tensor([0, *own]).cumsum(0).int()
        tokens = torch.zeros(4 * sum(own), dtype=torch.int32)
        batch = Batch(torch.cat((tokens, ends, back)), own, lengths)
        mine = torch.cat([part[-n:] for part, n in zip(q.split(lengths), own, strict=True)])
        got = by_sequence(mine, k[rows], v[rows], batch)
        whole = reference(q, k, v, lengths).split(lengths)
        want = torch.cat([part[-n:] for part, n in zip(whole, own, strict=True)])
        torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)
    causal_mask.cache_clear()


@settings(max_examples=30)
@given(lengths=lengths, heads=heads)
def test_every_sequence_sees_all_of_itself(lengths, heads):
    q, k, v = random(lengths, *heads)
    got = full(q, k, v, lengths)
    want = reference(q, k, v, lengths, causal=False)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)


@given(lengths=lengths, empty=st.integers(0, 3), spare=st.integers(0, 20))
def test_dense_reads_ends_from_the_tensor_and_takes_empty_sequences(lengths, empty, spare):
    batch = packed([Prompt([0] * length, 0) for length in lengths])
    padded = pad(batch, batch.tokens + spare, len(lengths) + empty)
    # lengths of some other batch: a graph keeps those that it was captured with
    unknown = Batch(padded.data, [0] * (len(padded.lengths) - 1) + [padded.tokens])
    q, k, v = random([*lengths, spare], 4, 2)
    got = dense(q, k, v, unknown)
    want = reference(q, k, v, [*lengths, spare])
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)


def test_dense_takes_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("pyrerank.attention.DENSE_ROWS", 7)
    q, k, v = random([5, 11, 20], 4, 2)
    got = dense(q, k, v, packed([Prompt([0] * n, 0) for n in (5, 11, 20)]))
    torch.testing.assert_close(got.double(), reference(q, k, v, [5, 11, 20]), atol=2e-6, rtol=0)
