"""Scheduling: the prompts of many requests, merged into passes of one engine.

One thread has the engine.  As long as any prompt waits, prompts go through one `Engine.stream`, as
those of one call would.  Which prompts a pass has is decided as late as the engine allows, when the
pass before it begins:

- small jobs, of which a pass can hold all that is left, the oldest first;
- then large jobs, in turns of a few passes, so that what the prompts of one share is seldom
  computed anew;
- but small jobs that came after a pass without any prompt of a large job wait until large jobs have
  had one, so that nobody waits for ever.

So a small job waits for the pass that runs and for the one after it, however large the jobs are
that came before.  The prompts of a job are sorted when it is queued, and those of a pass are sorted
again, so that what they share is computed once, whoever sent it.  Each pass's rows are handed out
when it is done.
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

from pyrerank.engine.batch import common, head, key_of, plan
from pyrerank.engine.engine import Engine
from pyrerank.errors import EngineClosed
from pyrerank.prompts.items import Prompt

TURN = 4  # passes' tokens after which another large job has its turn
# Passes' tokens that wait with their pictures decoded, of small jobs and of large ones; what is
# more waits before that.
QUEUE = 32

log = logging.getLogger("pyrerank.serve")


@dataclass(eq=False)
class Job:
    """The prompts of one request, on their way to rows of results.

    Attributes:
        arrived: when the request came, of `time.monotonic`; the order of small jobs.
        done: the rows, in the order of the prompts; when it is cancelled, the job leaves the queue.
        prompts: set before the job is queued.
        small: whether it was taken for small before it was read; then large ones do not hold it
            back, whatever it turns out to be.
        waiting: tokens of the prompts that wait.
        computed: of each prompt, how many tokens were computed for it, and not for another before.
        times: when it was queued, started and done.
        reading: the work of the thread that reads the request's body; None before there is any.
        turn: how many passes had been filled when it was queued or its last turn ended; the order
            of large jobs.
        served: tokens that its turn has had of passes, without the first of each that are shared.
    """

    arrived: float = field(default_factory=time.monotonic)
    done: Future[list[torch.Tensor]] = field(default_factory=Future)
    prompts: Sequence[Prompt] = ()
    small: bool = False
    waiting: int = 0
    computed: dict[int, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    reading: Future[None] | None = None
    turn: int = 0
    served: int = 0
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)
    # numbers of the prompts, sorted, and how many tokens each computes after the one before it
    _order: list[int] = field(default_factory=list)
    _costs: list[int] = field(default_factory=list)
    _taken: int = 0  # how many wait no longer
    _left: int = 0  # what those that wait cost

    def mark(self, event: str) -> None:
        self.times.setdefault(event, time.monotonic())

    def sort(self, share: bool) -> None:
        """Makes the prompts ready to be taken; ``share``: whether passes share prefixes."""
        self.waiting = sum(len(prompt.ids) for prompt in self.prompts)
        [run] = plan([self.prompts], self.waiting, share=share, sequences=len(self.prompts))
        self._order = run.members
        each = zip(run.prompts, run.shared, strict=True)
        self._costs = [len(prompt.ids) - skip for prompt, skip in each]
        self._left = sum(self._costs)

    def is_large(self, budget: int) -> bool:
        """Whether one pass cannot hold what is left of it."""
        return self._left > budget and len(self._order) - self._taken > 1

    def take(self, room: int, before: Prompt | None, whole: bool) -> tuple[list[int], int]:
        """The next prompts that a pass has room for.

        Args:
            room: tokens that the pass may compute for them.
            before: what the first of them can share with; None: nothing.
            whole: whether the pass is empty, so that one prompt fits whatever its length.

        Returns:
            Numbers of the prompts, and how many tokens they compute at most.
        """
        numbers: list[int] = []
        total = 0
        for n, cost in zip(self._order[self._taken :], self._costs[self._taken :], strict=True):
            prompt = self.prompts[n]
            needs = cost
            if not numbers:
                shared = 0 if before is None else common(key_of(before), key_of(prompt))
                kept = head(before) if whole and before is not None else shared
                needs = len(prompt.ids) - min(shared, kept)
            if total + needs > room and (numbers or not whole):
                break
            numbers.append(n)
            total += needs
            self.waiting -= len(prompt.ids)
            self._left -= cost
            self.served += cost
        self._taken += len(numbers)
        return numbers, total

    def put(self, number: int, row: torch.Tensor, computed: int) -> None:
        """A prompt's row; the last one makes the job done."""
        self._rows[number] = row
        self.computed[number] = computed
        if len(self._rows) == len(self.prompts):
            self.mark("done")
            if self.done.set_running_or_notify_cancel():
                self.done.set_result([self._rows[n] for n in range(len(self.prompts))])

    def fail(self, error: Exception) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


# By their place in a stream, prompts that have no row yet: jobs, and numbers of their prompts.
Taken = dict[int, tuple[Job, int]]


class Scheduler:
    """A queue, and the thread that works it off.

    Args:
        load: makes the engine, in the thread that will run it.
        batch_wait: seconds that the oldest job waits for others to fill a pass with.
        watch: called after each pass with its number of prompts, its computed tokens, and the
            seconds that it took.

    Attributes:
        engine: the loaded engine, which has run a prompt.
        waiting: tokens of prompts that wait.
        lost: why the engine can never be used again; None while it can.
        began: when the pass that runs began, of `time.monotonic`; None where none runs.

    Raises: as ``load``, and as a pass does.
    """

    def __init__(
        self,
        load: Callable[[], Engine[Any, Any]],
        batch_wait: float = 0.0,
        watch: Callable[[int, int, float], None] = lambda prompts, tokens, seconds: None,
    ) -> None:
        self.waiting = 0
        self.lost: str | None = None
        self.began: float | None = None
        self._batch_wait = batch_wait
        self._watch = watch
        self._queue: list[Job] = []  # by arrival
        self._passes = 0  # that were filled
        # Small jobs that were queued when this many passes were filled go before large ones.
        self._early = 0
        self._before: Prompt | None = None  # the last prompt of the last pass, where that is known
        self._changed = threading.Condition()
        self._closed = False
        loaded: Future[Engine[Any, Any]] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(load, loaded), name="pyrerank-engine", daemon=True
        )
        self._thread.start()
        self.engine = loaded.result()

    def submit(self, job: Job) -> None:
        """Queues a job that has its prompts; waits, in the caller's thread, while enough of its
        kind, small or large, is queued."""
        job.mark("queued")
        job.sort(self.engine.share_prefixes)
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
                job.turn = self._passes
                insort(self._queue, job, key=lambda queued: queued.arrived)
                self.waiting += job.waiting
                self._changed.notify_all()

    def works(self, seconds: float) -> bool:
        """Whether the engine can be used, and no pass has run for longer than ``seconds``."""
        began = self.began
        return self.lost is None and (began is None or time.monotonic() - began <= seconds)

    def close(self) -> None:
        """Works off what is queued, and ends the thread."""
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

    def _work(self, load: Callable[[], Engine[Any, Any]], loaded: Future[Engine[Any, Any]]) -> None:
        try:
            engine = load()
            engine.warmup()
            for _ in engine.stream([[Prompt([0], 0)]]):
                pass
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(engine)
        while self._wait(engine.token_budget):
            taken: Taken = {}
            try:
                self._run(engine, self._windows(engine, taken), taken)
            except Exception as error:
                log.error("a pass failed: %s: %s", type(error).__name__, error)
                self._run_apart(engine, taken)

    def _wait(self, budget: int) -> bool:
        """Waits for jobs, and for as many as fill a pass; False when the scheduler is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._queue:
                left = self._queue[0].times["queued"] + self._batch_wait - time.monotonic()
                self._changed.wait_for(
                    lambda: self.waiting >= budget or self._closed, timeout=max(left, 0)
                )
            return bool(self._queue) or not self._closed

    def _windows(self, engine: Engine[Any, Any], taken: Taken) -> Iterator[list[Prompt]]:
        """The prompts of each pass, until none waits; adds them to ``taken``."""
        places = count()
        while lot := self._take(engine):
            taken.update((next(places), each) for each in lot)
            yield [job.prompts[n] for job, n in lot]
            yield []  # the end of the pass: the next is filled when this one begins

    def _take(self, engine: Engine[Any, Any]) -> list[tuple[Job, int]]:
        """The prompts of one pass; none if none waits."""
        budget = room = engine.token_budget
        lot: list[tuple[Job, int]] = []
        with self._changed:
            self._passes += 1
            kinds: dict[bool, list[Job]] = {False: [], True: []}
            for job in self._queue:
                kinds[job.is_large(budget)].append(job)
            large = sorted(kinds[True], key=lambda job: job.turn)
            early = [job for job in kinds[False] if job.turn <= self._early]
            late = [job for job in kinds[False] if job.turn > self._early]
            if not large:
                self._early = self._passes
            before = self._before if engine.graphs is None else None
            for job in (*early, *large, *late):
                waited = job.waiting
                numbers, tokens = job.take(room, before, whole=not lot)
                if not numbers:
                    break
                job.mark("started")
                lot += [(job, n) for n in numbers]
                room -= tokens
                self.waiting -= waited - job.waiting
                before = job.prompts[numbers[-1]] if engine.share_prefixes else None
                if job in large:
                    self._early = self._passes
                    if job.served >= TURN * budget:
                        job.turn, job.served = self._passes, 0
                if job.waiting:
                    break
                self._queue.remove(job)
            # in a pass of several jobs, another prompt may be sorted to the end
            self._before = before if len({job for job, _ in lot}) == 1 else None
            self._changed.notify_all()
        return lot

    def _run(
        self, engine: Engine[Any, Any], windows: Iterable[Sequence[Prompt]], taken: Taken
    ) -> None:
        """Hands out the rows of the windows, pass by pass, and removes them from ``taken``."""
        self.began, before = time.monotonic(), engine.computed
        try:
            with closing(engine.stream(windows, keep=True)) as passes:
                for run, rows in passes:
                    self._watch(len(rows), engine.computed - before, time.monotonic() - self.began)
                    each = zip(run.members, rows, run.prompts, run.shared, strict=True)
                    for member, row, prompt, shared in each:
                        job, n = taken.pop(member)
                        job.put(n, row, len(prompt.ids) - shared)
                    self.began, before = time.monotonic(), engine.computed
        finally:
            self.began = None

    def _run_apart(self, engine: Engine[Any, Any], taken: Taken) -> None:
        """Runs each job that was left without rows by itself: only those that fail then get the
        error."""
        for job in dict.fromkeys(job for job, _ in taken.values()):
            if job.done.done():
                continue
            left = dict(enumerate((j, n) for j, n in taken.values() if j is job))
            try:
                self._run(engine, [[job.prompts[n] for _, n in left.values()]], left)
            except Exception as error:
                if isinstance(error, EngineClosed):
                    self.lost = str(error)
                job.fail(error)
