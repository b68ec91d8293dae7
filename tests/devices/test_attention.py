"""Attention over packed sequences, on the CPU, against attention over each sequence in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import packed, sharing

from pyrerank.devices.attention import BySequence, Dense, causal_mask
from pyrerank.devices.select import resolve
from pyrerank.engine.batch import Batch, pad
from pyrerank.prompts.items import Prompt

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)
CPU = resolve("cpu")
ATTENDS = {"kernel": CPU.attention(torch.float32, captured=False), "torch": BySequence()}
each_attends = pytest.mark.parametrize("attend", ATTENDS.values(), ids=ATTENDS)

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


@each_attends
@settings(max_examples=30)
@given(lengths=lengths, heads=heads)
def test_every_sequence_sees_itself_and_the_past(attend, lengths, heads):
    q, k, v = random(lengths, *heads)
    batch = packed([Prompt([0] * length, 0) for length in lengths])
    got = attend(q, k, v, batch)
    assert got.shape == q.shape
    torch.testing.assert_close(got.double(), reference(q, k, v, lengths), atol=2e-6, rtol=0)


@each_attends
@pytest.mark.parametrize("mask", [2048, 8])
@settings(max_examples=30)
@given(data=st.data(), heads=heads)
def test_a_sequence_goes_on_from_tokens_of_others(attend, mask, data, heads):
    """Its queries are the last rows of what is seen by the whole sequence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrerank.devices.attention.MASK", mask)
        causal_mask.cache_clear()
        lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
        own = [data.draw(st.integers(1, length)) for length in lengths]
        q, k, v = random(lengths, *heads)
        rows = torch.randperm(len(k))  # where keys and values lie does not matter
        back = rows.argsort().int()
        ends, key_ends = (torch.tensor([0, *each]).cumsum(0).int() for each in (own, lengths))
        tokens = torch.zeros(4 * sum(own), dtype=torch.int32)
        batch = Batch(torch.cat((tokens, ends, key_ends, back)), own, lengths)
        mine = torch.cat([part[-n:] for part, n in zip(q.split(lengths), own, strict=True)])
        got = attend(mine, k[rows], v[rows], batch)
        whole = reference(q, k, v, lengths).split(lengths)
        want = torch.cat([part[-n:] for part, n in zip(whole, own, strict=True)])
        torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)
    causal_mask.cache_clear()


@settings(max_examples=30)
@given(lengths=lengths, heads=heads)
def test_every_sequence_sees_all_of_itself(lengths, heads):
    q, k, v = random(lengths, *heads)
    got = CPU.full_attention(q, k, v, lengths)
    want = reference(q, k, v, lengths, causal=False)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("rows", [128, 7])
@pytest.mark.parametrize("last", [False, True], ids=["all tokens", "last tokens"])
@settings(max_examples=30)
@given(
    prompts=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=12), min_size=1, max_size=9),
    missing=st.integers(0, 3),
    spare=st.integers(0, 20),
    heads=heads,
)
def test_dense_reads_all_from_the_tensor(last, rows, prompts, missing, spare, heads):
    """Of a padded pass that shares prefixes."""
    batch = sharing([Prompt([7, *ids], 0) for ids in prompts])
    keys = batch.tokens + batch.shared + missing + spare + 5
    padded = pad(batch, batch.tokens + spare, len(prompts) + missing, keys)
    # lengths of some other batch: a graph keeps those that it was captured with
    others = len(padded.lengths) - 1
    lengths, kv_lengths = ([0] * others + [total] for total in (padded.tokens, keys))
    captured = replace(padded, lengths=lengths, kv_lengths=kv_lengths)
    if last:
        padded, captured = padded.last_tokens(), captured.last_tokens()
    q, (_, k, v) = random([padded.tokens], *heads)[0], random([batch.tokens + spare], *heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrerank.devices.attention.DENSE_ROWS", rows)
        got = Dense()(q, k, v, captured)
    want = []
    paths = padded.kv_rows.split(padded.kv_lengths)
    for part, path in zip(q.split(padded.lengths), paths, strict=True):
        # queries are the last of a sequence as long as its keys
        whole = torch.cat((part.new_zeros(len(path) - len(part), *part.shape[1:]), part))
        seen = reference(whole, k[path], v[path], [len(path)])
        want.append(seen[len(path) - len(part) :])
    torch.testing.assert_close(got.double(), torch.cat(want), atol=2e-6, rtol=0)
