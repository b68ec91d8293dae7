"""The scheduler chooses the prompts of passes so that nobody waits for long.

The engine of these tests computes nothing, so passes are counted and not timed.  Requests come
while a pass is computed and the next one is filled already, as with a real engine.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrerank.engine.planner import Pass, plan
from pyrerank.prompts.items import Prompt
from pyrerank.serve import schedule
from pyrerank.serve.schedule import Job, Scheduler

pytestmark = pytest.mark.slow

BUDGET = 100
PATIENCE = 60.0


class Counted:
    """An engine, and its core, whose rows are the first and the last token of each prompt.

    passes: the prompts of each pass.
    computed: tokens that went through it.
    """

    share_prefixes, graphs = True, None

    def __init__(self, budget: int = BUDGET) -> None:
        self.core = self
        self.token_budget = budget
        self.passes: list[list[Prompt]] = []
        self.computed = 0
        self.meanwhile: Callable[[int], None] = lambda number: None

    def warmup(self) -> None:
        """Nothing."""

    def stream(
        self, windows: Iterable[Sequence[Prompt]], *, keep: bool = False
    ) -> Iterator[tuple[Pass, torch.Tensor]]:
        passes = plan(windows, self.token_budget, share=True)
        planned = next(passes, None)
        while planned is not None:
            following = next(passes, None)  # the next pass is filled when this one begins
            self.passes.append(planned.prompts)
            self.computed += planned.computed
            self.meanwhile(len(self.passes))
            yield planned, torch.tensor([[p.ids[0], p.ids[-1]] for p in planned.prompts])
            planned = following


@pytest.fixture(scope="module", autouse=True)
def _submitting_never_waits() -> Iterator[None]:
    """Jobs are queued by the thread that runs the passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "QUEUE", math.inf)
        yield


def len_of(prompt: Prompt) -> int:
    return len(prompt.ids)


def job(query: int, documents: Iterable[int], *, shared: int = 10, own: int = 5) -> Job:
    """A job whose prompts share ``shared`` tokens, and have ``own`` of their own."""
    job = Job()
    job.prompts = [Prompt([query] * shared + [1000 + n] * own, 0) for n in documents]
    return job


def run(arrivals: dict[int, list[Job]], budget: int = BUDGET) -> Counted:
    """Has jobs come while passes run, which are counted from 1 on; 0 is before the first.

    All are answered in the end, with rows of their own prompts.
    """
    engine = Counted(budget)
    scheduler = Scheduler(lambda: engine)  # type: ignore[arg-type, return-value]
    engine.passes.clear()
    left = deque(sorted(arrivals.items()))

    def meanwhile(number: int) -> None:
        while left and left[0][0] < number:
            submit()

    def submit() -> None:
        for each in left.popleft()[1]:
            scheduler.submit(each)

    engine.meanwhile = meanwhile
    before = Job(prompts=[Prompt([0], 0)])  # in its pass come those of 0
    scheduler.submit(before)
    before.done.result(PATIENCE)
    for _, jobs in sorted(arrivals.items()):
        if left and left[0][1] is jobs:  # nothing runs that they could come in
            submit()
        for each in jobs:
            rows = each.done.result(PATIENCE)
            assert [row.tolist() for row in rows] == [[p.ids[0], p.ids[-1]] for p in each.prompts]
    scheduler.close()
    engine.passes.pop(0)
    engine.computed -= 2  # of the scheduler's own prompt, and of the one before
    return engine


def waited(engine: Counted, job: Job, came: int) -> int:
    """Passes that ran, or went on, while a job that came during one waited for its first."""
    first = next(n for n, pass_ in enumerate(engine.passes, 1) if job.prompts[0] in pass_)
    return first - came


@pytest.mark.parametrize(
    ("shared", "own"), [(10, 5), (10, 60), (10, 300), (300, 5), (90, 9)], ids=str
)
@pytest.mark.parametrize("came", [1, 2, 3, 7, 19])
def test_one_document_behind_many_waits_for_two_passes(shared, own, came):
    large = job(1, range(400), shared=shared, own=own)
    small = job(2, [0], shared=shared, own=own)
    engine = run({0: [large], came: [small]})
    assert len(engine.passes) > 20
    assert waited(engine, small, came) <= 2


def test_one_document_beside_many_others_and_a_large_request():
    """As many as a pass holds are in one; each of them waits as it would alone."""
    large = job(1, range(400))
    small = [job(2 + n, [0]) for n in range(5)]
    engine = run({0: [large], 4: small})
    assert [waited(engine, each, 4) for each in small] == [2] * 5


def test_requests_of_equal_size_are_answered_in_the_order_in_which_they_came():
    jobs = [job(1 + n, range(4)) for n in range(40)]
    engine = run({0: [jobs[0]], 1: jobs[:0:-1]})
    first = [waited(engine, each, 0) for each in jobs]
    assert first == sorted(first)


def test_no_request_waits_for_ever():
    """Small ones come faster than they can be answered; large ones go on nevertheless."""
    large = job(1, range(60))
    small = {n: [job(n * 10 + i, [0], own=20) for i in range(4)] for n in range(1, 80)}
    engine = run({0: [large], **small})
    alone = run({0: [job(1, range(60))]})
    done = max(n for n, pass_ in enumerate(engine.passes) if any(p in pass_ for p in large.prompts))
    assert done < 12 * len(alone.passes) < len(engine.passes)


def test_large_requests_take_turns():
    large = [job(1 + n, range(200)) for n in range(3)]
    engine = run({0: large})
    asked = [pass_[0].ids[0] for pass_ in engine.passes]
    changes = [n for n, (a, b) in enumerate(pairwise(asked), 1) if a != b]
    assert 3 < len(changes) <= len(asked) / (schedule.TURN - 1)
    assert all(waited(engine, each, 0) <= 3 * schedule.TURN for each in large)


@pytest.mark.parametrize("shared", [10, 60, 300])
def test_sharing_costs_little_more_than_in_one_call(shared):
    """A request's documents stay together, though others come: their query is rarely repeated."""
    large = [job(1 + n, range(300), shared=shared) for n in range(3)]
    prompts = [prompt for each in large for prompt in each.prompts]
    [one_call] = plan([prompts], math.inf, share=True)
    alone = sum(map(len_of, one_call.prompts)) - sum(one_call.shared)
    engine = run({0: large})
    assert engine.computed <= alone + shared * len(engine.passes) / (schedule.TURN - 1)
    assert len(engine.passes) <= 1.2 * engine.computed / BUDGET + 1


jobs = st.builds(
    job,
    st.integers(1, 3),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    shared=st.integers(1, 150),
    own=st.integers(1, 60),
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.dictionaries(st.integers(1, 12), st.lists(jobs, min_size=1, max_size=4)),
    first=jobs,
    budget=st.integers(1, 200),
)
def test_every_prompt_is_run_once_in_passes_that_hold_it(arrivals, first, budget):
    engine = run({**arrivals, 0: [first]}, budget)
    every = [p for each in [[first], *arrivals.values()] for j in each for p in j.prompts]
    ran = [prompt for pass_ in engine.passes for prompt in pass_]
    assert sorted(map(id, ran)) == sorted(map(id, every))
