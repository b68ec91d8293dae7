"""Planning: every prompt once, under the limits, and nothing computed twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from passes import trie

from pyrerank.engine.planner import LIKELY_PREFIX, in_windows, likely_prefix, plan
from pyrerank.prompts.items import Prompt, Span

prompts = st.lists(st.integers(0, 1000), min_size=1, max_size=50).map(lambda ids: Prompt(ids, 0))
few_words = st.lists(st.integers(1, 2), min_size=1, max_size=8).map(lambda ids: Prompt(ids, 0))


@given(
    prompts=st.lists(prompts | few_words, max_size=40),
    budget=st.integers(1, 100),
    share=st.booleans(),
    most_sequences=st.integers(1, 50),
    most_shared=st.integers(0, 100),
    leave_prefix=st.booleans(),
)
def test_plan_covers_every_prompt_once_under_its_limits(
    prompts, budget, share, most_sequences, most_shared, leave_prefix
):
    limits = {"most_sequences": most_sequences, "most_shared": most_shared}
    passes = list(plan([prompts], budget, share=share, leave_prefix=leave_prefix, **limits))
    taken = [pair for each in passes for pair in zip(each.members, each.prompts, strict=True)]
    assert sorted(member for member, _ in taken) == list(range(len(prompts)))
    assert all(prompts[member] is prompt for member, prompt in taken)
    if not share:
        assert [prompt for _, prompt in taken] == prompts
        assert not any(shared for each in passes for shared in [*each.shared, each.next_prefix])
    for each in passes:
        pairs = zip(each.prompts, each.shared, strict=True)
        assert each.computed == sum(len(prompt.ids) - shared for prompt, shared in pairs)
        assert each.total_shared == sum(each.shared)
        assert len(each.prompts) <= most_sequences
        assert len(each.prompts) == 1 or (
            each.computed <= budget and each.total_shared <= most_shared
        )
    for each, later in pairwise(passes):
        # greedy: the pass could not have taken the next prompt
        first = later.prompts[0]
        common = common_start(each.prompts[-1].ids, first.ids) if share else 0
        assert (
            len(each.prompts) == most_sequences
            or each.computed + len(first.ids) - common > budget
            or each.total_shared + common > most_shared
        )
        assert each.next_prefix == later.shared[0] == (common if leave_prefix else 0)
    assert not passes or passes[-1].next_prefix == 0


def common_start(a: list[int], b: list[int]) -> int:
    """Short of all of ``b``."""
    pairs = enumerate(zip(a, b[:-1], strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b) - 1))


@given(prompts=st.lists(few_words, min_size=1, max_size=40), budget=st.integers(1, 60))
def test_sharing_computes_each_node_of_the_tree_once(prompts, budget):
    passes = list(plan([prompts], budget, share=True))
    computed = [
        tuple(prompt.ids[:end])
        for each in passes
        for prompt, shared in zip(each.prompts, each.shared, strict=True)
        for end in range(shared + 1, len(prompt.ids) + 1)
    ]
    assert len(computed) == sum(each.computed for each in passes) == trie(prompts)
    # once, but for last tokens: a prompt that is there again computes one
    wholes = [tuple(prompt.ids) for prompt in prompts]
    for node in computed:
        assert computed.count(node) == max(1, wholes.count(node))


def test_windows_share_with_each_other(monkeypatch):
    monkeypatch.setattr("pyrerank.engine.planner.WINDOW", 4)
    prompts = [Prompt([7] * 50 + [n], 0) for n in range(30)]
    passes = list(plan(in_windows(prompts), 20, share=True))
    assert sum(each.computed for each in passes) == 50 + 30


def test_where_no_prefix_is_left_a_pass_computes_all_of_its_first_prompt():
    prompts = [Prompt([7] * 50 + [n], 0) for n in range(30)]
    passes = list(plan([prompts], 60, share=True, leave_prefix=False))
    assert [each.shared for each in passes] == [[0] + [50] * 9] * 3
    assert [each.next_prefix for each in passes] == [0] * 3


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("leave_prefix", [True, False])
def test_an_empty_window_ends_a_pass(share, leave_prefix):
    """It leaves what the next prompt probably shares, and at least what its own prompts share."""
    words = [[7] * 1000 + [n] for n in range(4)]
    a, b, c, d = (Prompt(ids, 0) for ids in words)
    windows = [[], [a], [], [], [b, c], [], [d]]
    options = {"share": share, "leave_prefix": leave_prefix}
    passes = list(plan(windows, 10_000, **options))
    assert [each.members for each in passes] == [[0], [1, 2], [3]]
    shared = [[0], [LIKELY_PREFIX if leave_prefix else 0, 1000], [1000 if leave_prefix else 0]]
    assert [each.shared for each in passes] == (shared if share else [[0], [0, 0], [0]])
    for each, later in pairwise(passes):
        assert each.next_prefix == later.shared[0]


def test_a_likely_prefix_has_no_picture():
    assert likely_prefix(Prompt([1] * 9, 0)) == 9
    assert likely_prefix(Prompt([1] * 999, 0)) == LIKELY_PREFIX
    assert likely_prefix(Prompt([1] * 999, 0, (), (Span(5, 2, 2), Span(20, 2, 2)))) == 5
