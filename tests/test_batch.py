"""Planning and packing."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrerank.batch import pack, plan
from pyrerank.inputs import Prompt

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
