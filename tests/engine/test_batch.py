"""Planning and packing."""

from itertools import accumulate

import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import packed, sharing

from pyrerank.engine.batch import in_windows, pack, pad, plan
from pyrerank.prompts.items import Prompt, Span

prompts = st.lists(st.integers(0, 1000), min_size=1, max_size=50).map(lambda ids: Prompt(ids, 0))


few_words = st.lists(st.integers(1, 2), min_size=1, max_size=8).map(lambda ids: Prompt(ids, 0))


@given(
    prompts=st.lists(prompts | few_words, max_size=40),
    budget=st.integers(1, 100),
    share=st.booleans(),
    sequences=st.integers(1, 50),
    most_shared=st.integers(0, 100),
    chained=st.booleans(),
)
def test_plan_covers_every_prompt_once_under_its_limits(
    prompts, budget, share, sequences, most_shared, chained
):
    limits = {"sequences": sequences, "most_shared": most_shared, "chained": chained}
    runs = list(plan([prompts], budget, share=share, **limits))
    taken = [pair for run in runs for pair in zip(run.members, run.prompts, strict=True)]
    assert sorted(member for member, _ in taken) == list(range(len(prompts)))
    assert all(prompts[member] is prompt for member, prompt in taken)
    if not share:
        assert [prompt for _, prompt in taken] == prompts
        assert not any(skip for run in runs for skip in [*run.shared, run.kept])
    sizes = [
        [len(p.ids) - skip for p, skip in zip(run.prompts, run.shared, strict=True)] for run in runs
    ]
    for run, size in zip(runs, sizes, strict=True):
        assert len(run.prompts) <= sequences
        assert len(run.prompts) == 1 or (sum(size) <= budget and sum(run.shared) <= most_shared)
    for run, size, later in zip(runs, sizes, runs[1:], strict=False):
        # greedy: the run could not have taken the next prompt
        first = later.prompts[0]
        common = common_start(run.prompts[-1].ids, first.ids) if share else 0
        assert (
            len(size) == sequences
            or sum(size) + len(first.ids) - common > budget
            or sum(run.shared) + common > most_shared
        )
        assert run.kept == later.shared[0] == (common if chained else 0)
    assert not runs or runs[-1].kept == 0


def common_start(a: list[int], b: list[int]) -> int:
    """Short of all of ``b``."""
    pairs = enumerate(zip(a, b[:-1], strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b) - 1))


@given(prompts=st.lists(few_words, min_size=1, max_size=40), budget=st.integers(1, 60))
def test_sharing_computes_each_node_of_the_tree_once(prompts, budget):
    computed = {}
    for run in plan([prompts], budget, share=True):
        for prompt, skip in zip(run.prompts, run.shared, strict=True):
            for end in range(skip + 1, len(prompt.ids) + 1):
                node = tuple(prompt.ids[:end])
                computed[node] = computed.get(node, 0) + 1
    nodes = {tuple(p.ids[:end]) for p in prompts for end in range(1, len(p.ids) + 1)}
    assert computed.keys() == nodes
    # once, but for last tokens: a prompt that is there again computes one
    wholes = [tuple(prompt.ids) for prompt in prompts]
    for node, times in computed.items():
        assert times == max(1, wholes.count(node))


def test_windows_share_with_each_other(monkeypatch):
    monkeypatch.setattr("pyrerank.engine.batch.WINDOW", 4)
    prompts = [Prompt([7] * 50 + [n], 0) for n in range(30)]
    runs = list(plan(in_windows(prompts), 20, share=True))
    assert sum(51 - skip for run in runs for skip in run.shared) == 50 + 30


def test_a_run_that_is_not_chained_computes_all_of_its_first_prompt():
    prompts = [Prompt([7] * 50 + [n], 0) for n in range(30)]
    runs = list(plan([prompts], 60, share=True, chained=False))
    assert [run.shared for run in runs] == [[0] + [50] * 9] * 3
    assert [run.kept for run in runs] == [0] * 3


@given(st.lists(prompts, min_size=1, max_size=9))
def test_pack_keeps_every_prompt(prompts):
    batch = packed(prompts)
    assert batch.data.dtype == torch.int32 and batch.tokens == len(batch.ids)
    assert not len(batch.index) and not len(batch.kv_rows)
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
    chained=st.booleans(),
)
def test_paths_lead_over_all_tokens_of_a_prompt(prompts, budget, chained):
    before = torch.empty(0, dtype=torch.int32)
    for run in plan([prompts], budget, share=True, chained=chained):
        batch = pack(run)
        assert batch.shared == sum(run.shared)
        if batch.kv_lengths:
            assert batch.cu_keys.tolist() == list(accumulate(batch.kv_lengths, initial=0))
        rows = torch.cat((before, batch.ids))  # as keys and values: those of before, then these
        lengths = batch.kv_lengths or batch.lengths
        paths = batch.kv_rows if batch.kv_lengths else torch.arange(batch.tokens)
        for prompt, length, path in zip(run.prompts, lengths, paths.split(lengths), strict=True):
            assert length == len(prompt.ids)
            assert rows[path.long()].tolist() == prompt.ids
        for prompt, place, skip in zip(
            run.prompts, batch.positions.split(batch.lengths, dim=1), run.shared, strict=True
        ):
            assert place[0].tolist() == list(range(skip, len(prompt.ids)))
        keep = batch.kept(run.kept)
        before = rows[[] if keep is None else keep]
        assert before.tolist() == run.prompts[-1].ids[: run.kept]


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
    rows = batch.kv_rows if batch.kv_lengths else torch.arange(batch.tokens)
    assert padded.kv_rows[: len(rows)].equal(rows.int())
    assert len(padded.kv_rows) == keys and set(padded.kv_rows.tolist()) <= set(range(tokens))
    pairs = zip(padded.lengths, padded.kv_lengths, strict=True)
    assert all(own <= seen and seen > 0 for own, seen in pairs)
    last = padded.last_tokens()
    assert last.lengths == [1] * (sequences + 1) and last.kv_lengths == padded.kv_lengths
    assert last.cu_keys.equal(padded.cu_keys) and last.kv_rows.equal(padded.kv_rows)
    # the last token of a sequence that is not there is some row all the same
    assert ((padded.cu_seqlens[1:] - 1) >= 0).all()
    # every run of vision tokens is written, the first row perhaps again, no other row ever
    assert len(padded.index) == (tokens if len(batch.index) else 0)
    assert padded.index[: len(batch.index)].equal(batch.index)
    assert set(padded.index[len(batch.index) :].tolist()) <= {*batch.index[:1].tolist()}
