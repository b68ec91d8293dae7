"""Packing and padding: what each sequence has, and attends to."""

from itertools import accumulate

import torch
from hypothesis import given
from hypothesis import strategies as st
from passes import packed, sharing

from pyrerank.engine.batch import Batch, pack, pad
from pyrerank.engine.planner import plan
from pyrerank.prompts.items import Prompt, Span

prompts = st.lists(st.integers(0, 1000), min_size=1, max_size=50).map(lambda ids: Prompt(ids, 0))
few_words = st.lists(st.integers(1, 2), min_size=1, max_size=8).map(lambda ids: Prompt(ids, 0))


@given(st.lists(prompts, min_size=1, max_size=9))
def test_pack_keeps_every_prompt(prompts):
    batch = packed(prompts)
    assert batch.data.dtype == torch.int32 and batch.tokens == len(batch.ids)
    assert not len(batch.index) and batch.kv_rows is None and batch.shared == 0
    assert batch.kv_lengths == batch.lengths and batch.cu_keys.equal(batch.cu_seqlens)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.ids)
    assert batch.positions.shape == (3, batch.tokens)
    for i, prompt in enumerate(prompts):
        part = slice(bounds[i], bounds[i + 1])
        assert batch.ids[part].tolist() == prompt.ids
        assert batch.positions[:, part].tolist() == [list(range(len(prompt.ids)))] * 3
        assert batch.lengths[i] == len(prompt.ids)


@given(
    prompts=st.lists(few_words, min_size=1, max_size=20),
    budget=st.integers(1, 40),
    leave_prefix=st.booleans(),
)
def test_kv_rows_lead_over_all_tokens_of_a_prompt(prompts, budget, leave_prefix):
    prefix = torch.empty(0, dtype=torch.int32)
    for planned in plan([prompts], budget, share=True, leave_prefix=leave_prefix):
        batch = pack(planned.ids, planned.spans, planned.shared)
        assert (batch.tokens, batch.shared) == (planned.computed, planned.total_shared)
        assert batch.cu_keys.tolist() == list(accumulate(batch.kv_lengths, initial=0))
        assert (batch.kv_rows is None) == (not any(planned.shared))
        keys = torch.cat((prefix, batch.ids))  # each row's token
        rows = torch.arange(batch.tokens) if batch.kv_rows is None else batch.kv_rows.long()
        for ids, own in zip(planned.ids, rows.split(batch.kv_lengths), strict=True):
            assert keys[own].tolist() == ids
        places = batch.positions.split(batch.lengths, dim=1)
        for ids, place, shared in zip(planned.ids, places, planned.shared, strict=True):
            assert place[0].tolist() == list(range(shared, len(ids)))
        prefix = keys[batch.prefix_rows(planned.next_prefix)]
        assert prefix.tolist() == planned.ids[-1][: planned.next_prefix]


PAD = 7


@st.composite
def prompts_with_pictures(draw) -> Prompt:
    """Words 1 to 5, and spans of PAD."""
    ids, spans = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)), []
    for height, width, words in draw(st.lists(st.tuples(*[st.integers(1, 4)] * 3), max_size=3)):
        spans.append(Span(len(ids), height, width))
        ids = ids + [PAD] * (height * width) + [1] * words
    return Prompt(ids, 0, (), tuple(spans))


batches = st.lists(prompts_with_pictures(), min_size=1, max_size=6)


@given(batches)
def test_the_index_names_the_vision_tokens(prompts):
    batch = packed(prompts)
    assert batch.index.tolist() == (batch.ids == PAD).nonzero().flatten().tolist()
    # positions of words: the next number after all that came before, in all three
    for prompt, start in zip(prompts, batch.cu_seqlens.tolist(), strict=False):
        place = batch.positions[:, start : start + len(prompt.ids)]
        for i, id in enumerate(prompt.ids):
            if id != PAD:
                highest = place[:, :i].max().item() if i else -1
                assert place[:, i].tolist() == [highest + 1] * 3


@given(
    prompts=batches | st.lists(few_words, min_size=1, max_size=9),
    spare=st.integers(0, 40),
    missing=st.integers(0, 5),
    more=st.integers(1, 30),
    make=st.sampled_from([packed, sharing]),
)
def test_padding_changes_no_prompt(prompts, spare, missing, more, make):
    batch = make(prompts)
    tokens, sequences = batch.tokens + spare, len(prompts) + missing
    keys = batch.tokens + batch.shared + missing + spare + more
    padded = pad(batch, tokens, sequences, keys)
    assert padded.tokens == tokens and padded.lengths[-1] == spare
    assert padded.cu_seqlens.tolist() == list(accumulate(padded.lengths, initial=0))
    assert padded.cu_keys.tolist() == list(accumulate(padded.kv_lengths, initial=0))
    assert len(padded.lengths) == len(padded.kv_lengths) == sequences + 1
    assert padded.ids[: batch.tokens].equal(batch.ids)
    assert padded.positions[:, : batch.tokens].equal(batch.positions)
    # prompts see what they saw, every other sequence some token, each query a key
    rows = torch.arange(batch.tokens).int() if batch.kv_rows is None else batch.kv_rows
    assert padded.kv_rows[: len(rows)].equal(rows)
    assert len(padded.kv_rows) == keys and set(padded.kv_rows.tolist()) <= set(range(tokens))
    pairs = zip(padded.lengths, padded.kv_lengths, strict=True)
    assert all(own <= seen and seen > 0 for own, seen in pairs)
    last = padded.last_tokens()
    assert last.lengths == [1] * (sequences + 1) and last.kv_lengths == padded.kv_lengths
    assert last.cu_keys.equal(padded.cu_keys) and last.kv_rows.equal(padded.kv_rows)
    # the last token of a sequence that is not there is some row all the same
    assert ((padded.cu_seqlens[1:] - 1) >= 0).all()
    # every vision token is written, the first row perhaps again, no other row ever
    assert len(padded.index) == (tokens if len(batch.index) else 0)
    assert padded.index[: len(batch.index)].equal(batch.index)
    assert set(padded.index[len(batch.index) :].tolist()) <= {*batch.index[:1].tolist()}


@given(batches, st.booleans())
def test_tensors_are_views_of_data(prompts, share):
    batch = packed(prompts, share=share)
    padded = pad(batch, batch.tokens, len(prompts), batch.tokens + batch.shared + 1)
    for each in (batch, padded):
        for made in (each, each.moved(each.data.clone())):
            assert_views(made)
            last = made.last_tokens()
            assert_views(last)
            assert last.cu_keys.equal(each.cu_keys)
            assert (last.kv_rows is None) == (each.kv_rows is None)


def assert_views(batch: Batch) -> None:
    """Which cover all of data, one after the other."""
    views = [batch.ids, batch.positions, batch.cu_seqlens, batch.index, batch.cu_keys]
    views += [] if batch.kv_rows is None else [batch.kv_rows]
    end = 0
    for view in views:
        assert view._base is batch.data and view.is_contiguous()
        assert view.storage_offset() == end and view.dtype == torch.int32
        end += view.numel()
    assert end == len(batch.data)
    assert batch.positions.shape == (3, batch.tokens) and len(batch.ids) == sum(batch.lengths)
    assert len(batch.cu_seqlens) == len(batch.cu_keys) == len(batch.lengths) + 1
    assert batch.kv_rows is None or len(batch.kv_rows) == sum(batch.kv_lengths)
