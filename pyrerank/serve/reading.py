"""Reading: from the contents of a request to queued prompts, in threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyrerank.errors import NonFiniteScore
from pyrerank.media.images import Media
from pyrerank.media.reader import Reader
from pyrerank.prompts.items import Input, Pair, Prompt
from pyrerank.serve.contents import Size
from pyrerank.serve.errors import BadRequest, NotHere
from pyrerank.serve.schedule import Job, Scheduler

# Threads that read requests, by kind, so that no kind waits for another.  More would take an engine
# on a CPU its cores.  Those that fetch pictures mostly wait for other hosts.
THREADS = {"small": 2, "large": 1, "fetching": 2}
LOT = 64  # items that are made tokens at a time
CHARACTERS = 2**20  # of them, or of one that has more
CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE = (
    4,
    1000,
)  # about; they decide which thread reads a request


@dataclass(frozen=True)
class Entry:
    """One prompt to be.

    Attributes:
        name: what messages call it, and ``param`` if it is at fault: "documents[3]".
        read: makes it an item of the engine, or a prompt; raises ValueError or TypeError.
        others: beginnings of messages that blame another field, and that field.
    """

    name: str
    read: Callable[[Reader], Pair | Input | Prompt]
    others: dict[str, str]


class Reading:
    """Reads requests and queues their prompts.

    Args:
        scheduler: has the queue and the engine.
        media: how pictures are read; no files of this machine.
        max_tokens: most tokens of all prompts of a request.
    """

    def __init__(self, scheduler: Scheduler, media: Media, max_tokens: int) -> None:
        assert not media.files
        self._scheduler = scheduler
        self._media = media
        self._max_tokens = max_tokens
        self._threads = {
            kind: ThreadPoolExecutor(count, f"pyrerank-read-{kind}")
            for kind, count in THREADS.items()
        }

    def close(self) -> None:
        """Ends the threads, after what they have."""
        for threads in self._threads.values():
            threads.shutdown()

    async def rows(
        self, entries: Sequence[Entry], job: Job, truncate: int | None, size: Size
    ) -> list[torch.Tensor]:
        """The engine's rows for entries, in order; ``job.prompts`` has their prompts then.

        When it is cancelled, a thread may hold the entries until ``job.reading`` is done.

        Args:
            entries: what is read, and belongs to the request's body.
            job: the request's.
            truncate: the most tokens of a prompt; None and -1 are the model's limit.
            size: of all entries together.

        Raises:
            BadRequest: an entry that cannot be read; nothing was run.
            NonFiniteScore: a row that is not finite.
            DeviceError, RuntimeError: a pass that failed.
        """
        limit = None if truncate == -1 else truncate
        kind = "fetching" if size.fetched else "large" if self._is_large(size) else "small"
        job.small = kind == "small"
        held = [entries]  # a work item that is cancelled stays in the executor's queue
        job.reading = self._threads[kind].submit(self._queue, held, job, limit)
        try:
            rows = await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            if job.reading.cancel():
                held.clear()
            raise
        for entry, row in zip(entries, rows, strict=True):
            # here, because the engine would read all weights to name those that are not finite
            if not row.isfinite().all():
                raise NonFiniteScore(f"the model gave NaN or infinity for {entry.name}")
        return rows

    def _is_large(self, size: Size) -> bool:
        """Whether one pass will hardly hold it."""
        tokens = size.characters / CHARACTERS_PER_TOKEN + size.pictures * TOKENS_PER_PICTURE
        return tokens > self._scheduler.engine.token_budget

    def _queue(self, held: list[Sequence[Entry]], job: Job, limit: int | None) -> None:
        [entries] = held
        try:
            reader = Reader(replace(self._media, wanted=lambda: not job.done.cancelled()))
            prompts: list[Prompt] = []
            for start in range(0, len(entries), LOT):
                items = self._items(entries[start : start + LOT], reader, job)
                prompts += self._prompts(items, limit)
                if job.done.cancelled():
                    return
            tokens = sum(len(prompt.ids) for prompt in prompts)
            if tokens > self._max_tokens:
                raise BadRequest(
                    f"the request has {tokens} tokens in {len(prompts)} prompts, and the server "
                    f"takes {self._max_tokens}; send fewer at a time",
                    entries[0].name.partition("[")[0],
                )
            job.prompts = prompts
            self._scheduler.submit(job)
        except Exception as error:
            job.fail(error)

    def _items(
        self, entries: Sequence[Entry], reader: Reader, job: Job
    ) -> list[Pair | Input | Prompt]:
        read = []
        for entry in entries:
            if job.done.cancelled():
                return []
            try:
                read.append(entry.read(reader))
            except (ValueError, TypeError) as error:
                if isinstance(error, BadRequest):
                    raise
                blamed = [f for start, f in entry.others.items() if str(error).startswith(start)]
                raise BadRequest(str(error), [*blamed, entry.name][0]) from error
            except ImportError as error:
                raise NotHere(str(error), entry.name) from error
        return read

    def _prompts(self, read: Sequence[Pair | Input | Prompt], limit: int | None) -> list[Prompt]:
        items: list[Any] = [item for item in read if not isinstance(item, Prompt)]
        try:
            encoded = iter(
                [p for lot in _lots(items) for p in self._scheduler.engine.prompts(lot, limit)]
            )
        except ValueError as error:
            raise BadRequest(str(error), "truncate_prompt_tokens") from error
        return [item if isinstance(item, Prompt) else next(encoded) for item in read]


def _lots(items: Sequence[Pair | Input]) -> Iterator[list[Any]]:
    """Items in order, by their characters."""
    lot: list[Pair | Input] = []
    characters = 0
    for item in items:
        size = sum(len(content.text or "") for content in item.contents)
        if lot and characters + size > CHARACTERS:
            yield lot
            lot, characters = [], 0
        lot.append(item)
        characters += size
    yield lot
