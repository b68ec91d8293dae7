"""Scheduling: the prompts of many requests, merged into passes of one engine.

One thread has the engine.  As long as any prompt waits, prompts go through one `Engine.stream`, as
those of one call would: the oldest, as many as fill a few passes, are sorted, so that what they
share is computed once, whoever sent it; then the next.  Each pass's rows are handed out when it is
done.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from pyrerank.engine import Engine
from pyrerank.errors import EngineClosed
from pyrerank.inputs import Prompt

WINDOW = 4  # passes' tokens that are sorted together: with more, the oldest may wait longer
QUEUE = 32  # passes' tokens that wait with their pictures decoded; what is more waits before that

log = logging.getLogger("pyrerank.serve")


@dataclass(eq=False)
class Job:
    """The prompts of one request, on their way to rows of results.

    Attributes:
        arrived: when the request came, of `time.monotonic`; the order of jobs.
        done: the rows, in the order of the prompts; when it is cancelled, the job leaves the queue.
        prompts: set before the job is queued.
        waiting: tokens of the prompts that wait.
        computed: of each prompt, how many tokens were computed for it, and not for another before.
        times: when it was queued, started and done.
    """

    arrived: float = field(default_factory=time.monotonic)
    done: Future[list[torch.Tensor]] = field(default_factory=Future)
    prompts: Sequence[Prompt] = ()
    waiting: int = 0
    computed: dict[int, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    _rows: dict[int, torch.Tensor] = field(default_factory=dict)
    _taken: int = 0

    def mark(self, event: str) -> None:
        self.times.setdefault(event, time.monotonic())

    def take(self, room: int) -> list[tuple[Job, int]]:
        """The next prompts, of at least ``room`` tokens or all that are left."""
        first = self._taken
        enough = self.waiting - room
        while self._taken < len(self.prompts) and self.waiting > enough:
            self.waiting -= len(self.prompts[self._taken].ids)
            self._taken += 1
        return [(self, n) for n in range(first, self._taken)]

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
        self._batch_wait = batch_wait
        self._watch = watch
        self._queue: list[Job] = []  # by arrival
        self._changed = threading.Condition()
        self._closed = False
        loaded: Future[Engine[Any, Any]] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(load, loaded), name="pyrerank-engine", daemon=True
        )
        self._thread.start()
        self.engine = loaded.result()

    def submit(self, job: Job) -> None:
        """Queues a job that has its prompts; waits, in the caller's thread, while enough is
        queued."""
        job.mark("queued")
        job.waiting = sum(len(prompt.ids) for prompt in job.prompts)
        job.done.add_done_callback(lambda _: self._drop(job))
        most = QUEUE * self.engine.token_budget
        with self._changed:
            self._changed.wait_for(lambda: self.waiting < most or job.done.done())
            if not job.done.done():
                insort(self._queue, job, key=lambda queued: queued.arrived)
                self.waiting += job.waiting
                self._changed.notify_all()

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
                self._run(engine, self._windows(engine.token_budget, taken), taken)
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

    def _windows(self, budget: int, taken: Taken) -> Iterator[list[Prompt]]:
        """The oldest prompts, lot by lot, until none waits; adds them to ``taken``."""
        places = count()
        while lot := self._take(WINDOW * budget):
            taken.update((next(places), each) for each in lot)
            yield [job.prompts[n] for job, n in lot]

    def _take(self, room: int) -> list[tuple[Job, int]]:
        lot = []
        with self._changed:
            while self._queue and room > 0:
                job = self._queue[0]
                job.mark("started")
                before = job.waiting
                lot += job.take(room)
                room -= before - job.waiting
                self.waiting -= before - job.waiting
                if not job.waiting:
                    self._queue.pop(0)
            self._changed.notify_all()
        return lot

    def _run(
        self, engine: Engine[Any, Any], windows: Iterable[Sequence[Prompt]], taken: Taken
    ) -> None:
        """Hands out the rows of the windows, pass by pass, and removes them from ``taken``."""
        start, before = time.monotonic(), engine.computed
        for run, rows in engine.stream(windows, keep=True):
            self._watch(len(rows), engine.computed - before, time.monotonic() - start)
            each = zip(run.members, rows, run.prompts, run.shared, strict=True)
            for member, row, prompt, shared in each:
                job, n = taken.pop(member)
                job.put(n, row, len(prompt.ids) - shared)
            start, before = time.monotonic(), engine.computed

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
