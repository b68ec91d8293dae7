"""Planning and packing."""

from itertools import accumulate, pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrerank.batch import pack, pad, plan
from pyrerank.inputs import Prompt, Span

prompts = st.lists(st.integers(0, 1000), min_size=1, max_size=50).map(lambda ids: Prompt(ids, 0))


@given(prompts=st.lists(prompts, max_size=40), budget=st.integers(1, 100))
def test_plan_covers_every_prompt_once_under_the_budget(prompts, budget):
    runs = list(plan(prompts, budget))
    assert [prompt for run in runs for prompt in run] == prompts
    sizes = [[len(prompt.ids) for prompt in run] for run in runs]
    assert all(sum(run) <= budget or len(run) == 1 for run in sizes)
    # greedy: no run could have taken the next prompt
    assert all(sum(a) + b[0] > budget for a, b in pairwise(sizes))


@given(st.lists(prompts, min_size=1, max_size=9))
def test_pack_keeps_every_prompt(prompts):
    batch = pack(prompts)
    assert batch.data.dtype == torch.int32 and batch.tokens == len(batch.ids)
    assert not len(batch.index)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.ids)
    assert batch.positions.shape == (3, batch.tokens)
    for i, prompt in enumerate(prompts):
        part = slice(bounds[i], bounds[i + 1])
        assert batch.ids[part].tolist() == prompt.ids
        assert batch.positions[:, part].tolist() == [list(range(len(prompt.ids)))] * 3
        assert batch.lengths[i] == len(prompt.ids)


PAD = 7


@st.composite
def prompts_with_pictures(draw) -> Prompt:
    """Words 1 to 5, and runs of PAD."""
    ids, spans = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)), []
    for height, width, words in draw(st.lists(st.tuples(*[st.integers(1, 4)] * 3), max_size=3)):
        spans.append(Span(len(ids), height, width))
        ids = ids + [PAD] * (height * width) + [1] * words
    return Prompt(ids, 0, (), tuple(spans))


batches = st.lists(prompts_with_pictures(), min_size=1, max_size=6)


@given(batches)
def test_the_index_names_the_vision_tokens(prompts):
    batch = pack(prompts)
    assert batch.index.tolist() == (batch.ids == PAD).nonzero().flatten().tolist()
    # positions of words: the next number after all that came before, in all three
    for prompt, start in zip(prompts, batch.cu_seqlens.tolist(), strict=False):
        place = batch.positions[:, start : start + len(prompt.ids)]
        for i, id in enumerate(prompt.ids):
            if id != PAD:
                highest = place[:, :i].max().item() if i else -1
                assert place[:, i].tolist() == [highest + 1] * 3


@given(prompts=batches, spare=st.integers(0, 40), empty=st.integers(0, 5))
def test_padding_changes_no_prompt(prompts, spare, empty):
    batch = pack(prompts)
    tokens, sequences = batch.tokens + spare, len(prompts) + empty
    padded = pad(batch, tokens, sequences)
    assert padded.tokens == tokens and padded.lengths[-1] == spare
    assert padded.cu_seqlens.tolist() == list(accumulate(padded.lengths, initial=0))
    assert len(padded.lengths) == sequences + 1
    assert padded.ids[: batch.tokens].equal(batch.ids)
    assert padded.positions[:, : batch.tokens].equal(batch.positions)
    # every run of vision tokens is written, the first row perhaps again, no other row ever
    assert len(padded.index) == (tokens if len(batch.index) else 0)
    assert padded.index[: len(batch.index)].equal(batch.index)
    assert set(padded.index[len(batch.index) :].tolist()) <= {*batch.index[:1].tolist()}
