"""The scheduler merges the prompts of many requests into passes of one engine.

One thread uses the engine.  As long as prompts wait, they go through one `Core.stream`, as the
prompts of one call do.  The scheduler decides as late as the engine allows which prompts a pass
has, namely when the pass before it begins, and takes in this order:

- First come small jobs, whose remaining prompts all fit into one pass; the oldest is the first.
- Then come large jobs.  Each has a turn of a few passes, so that tokens which its prompts have in
  common are seldom computed again.
- If a pass has no prompt of a large job, small jobs that arrive after it wait until large jobs have
  had a pass.  So nobody waits for ever.

A small job therefore waits for the pass that the device computes and for the next one, however
large the jobs before it are.  The prompts of a job are sorted when it is queued, and those of a
pass are sorted again, so that common tokens are computed once, whoever sent them.  When a pass is
done, its rows are handed out.

This module knows nothing of requests, their fields, or HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from pyrerank.engine.core import Core
from pyrerank.engine.engine import Engine
from pyrerank.engine.planner import common, key_of, likely_prefix, plan
from pyrerank.errors import EngineClosed
from pyrerank.prompts.items import Prompt

# After prompts that fill so many passes, the turn goes to another large job.
TURN = 4
# The queue holds the tokens of so many passes of small jobs, and as many of large ones.  Their
# pictures are decoded and take memory, so further jobs wait in the threads that read them.
QUEUE = 32

log = logging.getLogger("pyrerank.serve")


@dataclass(eq=False)
class Job:
    """The prompts of one request, on their way to rows of results.

    Attributes:
        arrived: when the request came, by `time.monotonic`.  Small jobs are taken in this order.
        done: gets the rows, in the order of the prompts.  A job whose ``done`` is cancelled leaves
            the queue.
        prompts: the prompts; they are set before the job is queued.
        small: whether the request was taken for small before it was read.  Then the job does not
            wait for room among large ones, even if it turns out to be large.
        waiting: how many tokens the prompts that wait have.
        computed: how many tokens were computed for each prompt, by its number; the tokens that it
            shares with the prompt before it do not count.
        times: when the job was "queued", "started" and "done".
        body_read: is done when no thread reads the request's body any more; None before one does.
        turn: how many passes were filled before the job was queued, or before its last turn ended.
            Large jobs are taken in this order.
        served: how many tokens passes have computed for the job in its turn.
    """

    arrived: float = field(default_factory=time.monotonic)
    done: Future[list[torch.Tensor]] = field(default_factory=Future)
    prompts: Sequence[Prompt] = ()
    small: bool = False
    waiting: int = 0
    computed: dict[int, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    body_read: Future[None] | None = None
    turn: int = 0
    served: int = 0
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)
    # the numbers of the prompts, sorted, and how many tokens each computes after the one before it
    _order: list[int] = field(default_factory=list)
    _costs: list[int] = field(default_factory=list)
    _taken: int = 0  # how many of the sorted prompts wait no longer
    _cost: int = 0  # how many tokens the prompts that wait compute

    def mark(self, event: str) -> None:
        self.times.setdefault(event, time.monotonic())

    def sort(self, share: bool) -> None:
        """Makes the prompts ready to be taken; ``share`` says whether prompts share prefixes."""
        self.waiting = sum(len(prompt.ids) for prompt in self.prompts)
        [whole] = plan([self.prompts], self.waiting, share=share)
        self._order = whole.members
        each = zip(whole.prompts, whole.shared, strict=True)
        self._costs = [len(prompt.ids) - shared for prompt, shared in each]
        self._cost = sum(self._costs)

    def is_large(self, budget: int) -> bool:
        """Whether the prompts that wait do not fit into one pass of ``budget`` tokens."""
        return self._cost > budget and len(self._order) - self._taken > 1

    def take(self, room: int, previous: Prompt | None, empty: bool) -> tuple[list[int], int]:
        """Takes the next prompts for which a pass has room.

        Args:
            room: how many tokens the pass may compute for them.
            previous: the prompt before them, with which the first of them may share a prefix; None
                if there is none, or if it is not known.
            empty: whether the pass has no prompt yet; then it takes one prompt of any length.

        Returns:
            The numbers of the prompts, and how many tokens they compute at most.
        """
        numbers: list[int] = []
        total = 0
        for n, cost in zip(self._order[self._taken :], self._costs[self._taken :], strict=True):
            prompt = self.prompts[n]
            needs = cost
            if not numbers:
                shared = 0 if previous is None else common(key_of(previous), key_of(prompt))
                if empty and previous is not None:  # the pass before may leave no more
                    shared = min(shared, likely_prefix(previous))
                needs = len(prompt.ids) - shared
            if total + needs > room and (numbers or not empty):
                break
            numbers.append(n)
            total += needs
            self.waiting -= len(prompt.ids)
            self._cost -= cost
            self.served += cost
        self._taken += len(numbers)
        return numbers, total

    def put(self, number: int, row: torch.Tensor, computed: int) -> None:
        """Sets the row of a prompt; the last one makes the job done."""
        self._rows[number] = row
        self.computed[number] = computed
        if len(self._rows) == len(self.prompts):
            self.mark("done")
            if self.done.set_running_or_notify_cancel():
                self.done.set_result([self._rows[n] for n in range(len(self.prompts))])

    def fail(self, error: Exception) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


# Prompts that a stream has taken and that have no row yet: the job of each and its number there, by
# its place in the stream.
Taken = dict[int, tuple[Job, int]]


class Scheduler:
    """A queue of jobs, and the thread that works it off.

    Args:
        load: makes the engine, in the thread that will use it.
        batch_wait: how many seconds the oldest job waits for others that fill a pass with it.
        watch: is called after each pass with its number of prompts, the number of tokens that it
            computed, and the seconds that it took.

    Attributes:
        engine: the loaded engine, which has computed one prompt to see that it can.
        waiting: how many tokens the prompts that wait have.
        lost: says why the engine can never be used again; None while it can.
        began: when the pass that is being computed began, by `time.monotonic`; None between passes.

    Raises: what ``load`` and a pass raise.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        batch_wait: float = 0.0,
        watch: Callable[[int, int, float], None] = lambda prompts, tokens, seconds: None,
    ) -> None:
        self.waiting = 0
        self.lost: str | None = None
        self.began: float | None = None
        self._batch_wait = batch_wait
        self._watch = watch
        self._queue: list[Job] = []  # in the order of arrival
        self._filled = 0  # how many passes were filled
        # Small jobs that were queued before so many passes were filled go before large ones.
        self._early = 0
        self._last: Prompt | None = None  # the last prompt of the last pass, if it is known
        self._changed = threading.Condition()
        self._closed = False
        loaded: Future[Engine] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(load, loaded), name="pyrerank-engine", daemon=True
        )
        self._thread.start()
        self.engine = loaded.result()

    def submit(self, job: Job) -> None:
        """Queues a job that has its prompts.

        Waits, in the caller's thread, while the queue is full of jobs of its kind, small or large.
        """
        job.mark("queued")
        job.sort(self.engine.core.share_prefixes)
        job.done.add_done_callback(lambda _: self._drop(job))
        budget = self.engine.token_budget

        def is_large(job: Job) -> bool:
            return job.is_large(budget) and not job.small

        def has_room() -> bool:
            alike = (each.waiting for each in self._queue if is_large(each) == is_large(job))
            return job.done.done() or sum(alike) < QUEUE * budget

        with self._changed:
            self._changed.wait_for(has_room)
            if not job.done.done():
                job.turn = self._filled
                insort(self._queue, job, key=lambda queued: queued.arrived)
                self.waiting += job.waiting
                self._changed.notify_all()

    def works(self, seconds: float) -> bool:
        """Whether the engine can be used, and no pass has taken longer than ``seconds`` so far."""
        began = self.began
        return self.lost is None and (began is None or time.monotonic() - began <= seconds)

    def close(self) -> None:
        """Works off the queue, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
                self.waiting -= job.waiting
            self._changed.notify_all()

    def _work(self, load: Callable[[], Engine], loaded: Future[Engine]) -> None:
        try:
            engine = load()
            engine.warmup()
            core = engine.core
            for _ in core.stream([[Prompt([0], 0)]]):
                pass
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(engine)
        while self._wait(core.token_budget):
            taken: Taken = {}
            try:
                self._compute(core, self._windows(core, taken), taken)
            except Exception as error:
                log.error("a pass failed: %s: %s", type(error).__name__, error)
                self._compute_apart(core, taken)

    def _wait(self, budget: int) -> bool:
        """Waits for a job, and for up to `batch_wait` seconds until jobs fill a pass.

        Returns False if the scheduler was closed and the queue is empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._queue:
                seconds = self._queue[0].times["queued"] + self._batch_wait - time.monotonic()
                self._changed.wait_for(
                    lambda: self.waiting >= budget or self._closed, timeout=max(seconds, 0)
                )
            return bool(self._queue) or not self._closed

    def _windows(self, core: Core[Any, Any], taken: Taken) -> Iterator[list[Prompt]]:
        """Yields the prompts of each pass, until none waits, and adds them to ``taken``."""
        places = count()
        while chosen := self._fill(core):
            taken.update((next(places), each) for each in chosen)
            yield [job.prompts[n] for job, n in chosen]
            yield []  # ends the pass, so that the next is filled when this one begins

    def _fill(self, core: Core[Any, Any]) -> list[tuple[Job, int]]:
        """Takes the prompts of one pass: the job of each, and its number there.

        There are none if none waits.
        """
        budget = room = core.token_budget
        chosen: list[tuple[Job, int]] = []
        with self._changed:
            self._filled += 1
            kinds: dict[bool, list[Job]] = {False: [], True: []}
            for job in self._queue:
                kinds[job.is_large(budget)].append(job)
            large = sorted(kinds[True], key=lambda job: job.turn)
            early = [job for job in kinds[False] if job.turn <= self._early]
            late = [job for job in kinds[False] if job.turn > self._early]
            if not large:
                self._early = self._filled
            previous = self._last if core.graphs is None else None
            for job in (*early, *large, *late):
                waited = job.waiting
                numbers, tokens = job.take(room, previous, empty=not chosen)
                if not numbers:
                    break
                job.mark("started")
                chosen += [(job, n) for n in numbers]
                room -= tokens
                self.waiting -= waited - job.waiting
                previous = job.prompts[numbers[-1]] if core.share_prefixes else None
                if job in large:
                    self._early = self._filled
                    if job.served >= TURN * budget:
                        job.turn, job.served = self._filled, 0
                if job.waiting:
                    break
                self._queue.remove(job)
            # The engine sorts a pass of several jobs, after which another prompt may be the last.
            self._last = previous if len({job for job, _ in chosen}) == 1 else None
            self._changed.notify_all()
        return chosen

    def _compute(
        self, core: Core[Any, Any], windows: Iterable[Sequence[Prompt]], taken: Taken
    ) -> None:
        """Hands out the rows of the windows, pass by pass, and removes them from ``taken``."""
        self.began, computed = time.monotonic(), core.computed
        try:
            with closing(core.stream(windows, keep=True)) as passes:
                for done, rows in passes:
                    seconds = time.monotonic() - self.began
                    self._watch(len(rows), core.computed - computed, seconds)
                    each = zip(done.members, rows, done.prompts, done.shared, strict=True)
                    for member, row, prompt, shared in each:
                        job, n = taken.pop(member)
                        job.put(n, row, len(prompt.ids) - shared)
                    self.began, computed = time.monotonic(), core.computed
        finally:
            self.began = None

    def _compute_apart(self, core: Core[Any, Any], taken: Taken) -> None:
        """Computes each job that has no rows by itself, so that only those that fail again get the
        error."""
        for job in dict.fromkeys(job for job, _ in taken.values()):
            if job.done.done():
                continue
            own = dict(enumerate((j, n) for j, n in taken.values() if j is job))
            try:
                self._compute(core, [[job.prompts[n] for _, n in own.values()]], own)
            except Exception as error:
                if isinstance(error, EngineClosed):
                    self.lost = str(error)
                job.fail(error)
