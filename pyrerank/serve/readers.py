"""The threads that read requests: each request's contents become prompts in the scheduler's queue.

This module knows neither HTTP nor the fields of requests: it calls functions that read entries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyrerank.errors import NonFiniteScore
from pyrerank.media.reader import Reader
from pyrerank.media.sources import Media
from pyrerank.prompts.items import Input, Pair, Prompt
from pyrerank.serve.contents import Size
from pyrerank.serve.errors import BadRequest, NotHere
from pyrerank.serve.schedule import Job, Scheduler

# How many threads read requests of each kind.  Each kind has its own, so that none waits for
# another: threads that fetch pictures mostly wait for other hosts.  More threads would take cores
# from an engine on the CPU.
THREADS = {"small": 2, "large": 1, "fetching": 2}
# Items become tokens in chunks of at most so many items and characters; an item that has more
# characters is a chunk of its own.
CHUNK = 64
CHUNK_CHARACTERS = 2**20
# estimates, from which a request is taken for small or large before it is read
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_PICTURE = 1000


@dataclass(frozen=True)
class Entry:
    """One entry of a request's field, which is to become one prompt.

    Attributes:
        name: how messages, and the ``param`` of an error, call the entry: "documents[3]".
        read: reads the entry into an item of the engine, or into a prompt; raises ValueError or
            TypeError.
        others: fields that may be at fault in place of the entry, by the beginnings of the messages
            that say so.
    """

    name: str
    read: Callable[[Reader], Pair | Input | Prompt]
    others: dict[str, str]


class Readers:
    """The pool of threads that read requests and queue their prompts.

    Args:
        scheduler: has the queue and the engine.
        media: says how pictures are read; it must not allow files of this machine.
        max_tokens: the most tokens that all prompts of a request may have together.
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
        """Ends the threads, after they have read what was given to them."""
        for threads in self._threads.values():
            threads.shutdown()

    async def rows(
        self, entries: Sequence[Entry], job: Job, truncate: int | None, size: Size
    ) -> list[torch.Tensor]:
        """Reads entries, waits for their passes, and returns the engine's rows in order.

        Afterwards ``job.prompts`` holds the prompts.  When this coroutine is cancelled, a thread
        may hold the entries, and with them the request's body, until ``job.body_read`` is done.

        Args:
            entries: the entries, which refer to the request's body.
            job: the job of the request.
            truncate: the most tokens of a prompt; None and -1 stand for the model's limit.
            size: how much all entries together hold.

        Raises:
            BadRequest: an entry cannot be read; then no pass was made for any of them.
            NonFiniteScore: a row is not finite.
            DeviceError, RuntimeError: a pass failed.
        """
        limit = None if truncate == -1 else truncate
        kind = "fetching" if size.fetched else "large" if self._is_large(size) else "small"
        job.small = kind == "small"
        # An executor holds a cancelled call, with its arguments, until a thread comes to it.  The
        # list is emptied then, which lets go of the entries at once.
        held = [entries]
        job.body_read = self._threads[kind].submit(self._queue, held, job, limit)
        try:
            rows = await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            if job.body_read.cancel():
                held.clear()
            raise
        for entry, row in zip(entries, rows, strict=True):
            # It is checked here, because the engine would read all weights to name the bad ones.
            if not row.isfinite().all():
                raise NonFiniteScore(f"the model gave NaN or infinity for {entry.name}")
        return rows

    def _is_large(self, size: Size) -> bool:
        """Whether a request of this size will hardly fit into one pass."""
        tokens = size.characters / CHARACTERS_PER_TOKEN + size.pictures * TOKENS_PER_PICTURE
        return tokens > self._scheduler.engine.token_budget

    def _queue(self, held: list[Sequence[Entry]], job: Job, limit: int | None) -> None:
        [entries] = held
        try:
            reader = Reader(replace(self._media, wanted=lambda: not job.done.cancelled()))
            prompts: list[Prompt] = []
            for start in range(0, len(entries), CHUNK):
                read = self._read(entries[start : start + CHUNK], reader, job)
                prompts += self._encode(read, limit)
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

    def _read(
        self, entries: Sequence[Entry], reader: Reader, job: Job
    ) -> list[Pair | Input | Prompt]:
        """What each entry is read into; nothing if the job is cancelled meanwhile."""
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

    def _encode(self, read: Sequence[Pair | Input | Prompt], limit: int | None) -> list[Prompt]:
        """Makes prompts of the items among what was read."""
        items: list[Any] = [item for item in read if not isinstance(item, Prompt)]
        encode = self._scheduler.engine.core.encoder.encode
        try:
            encoded = iter([p for chunk in _chunks(items) for p in encode(chunk, limit)])
        except ValueError as error:
            raise BadRequest(str(error), "truncate_prompt_tokens") from error
        return [item if isinstance(item, Prompt) else next(encoded) for item in read]


def _chunks(items: Sequence[Pair | Input]) -> Iterator[list[Any]]:
    """Divides items, in order, into chunks that are bounded in characters."""
    chunk: list[Pair | Input] = []
    characters = 0
    for item in items:
        size = sum(len(content.text or "") for content in item.contents.values())
        if chunk and characters + size > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
        chunk.append(item)
        characters += size
    yield chunk
