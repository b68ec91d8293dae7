"""`ahead`: the next item is made in a thread while the caller uses the one before."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Yields the items in order; while one is used, a thread makes the next.  An exception that
    making an item raises is raised in its place.  Closing waits for the item that is being made."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "pyrerank-ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # not the end
