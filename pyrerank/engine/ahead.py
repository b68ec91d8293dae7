"""Work that is done ahead of whoever needs it, in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The items in order, of which the next is made while one is used.

    What making an item raises is raised in its place.  Closing the iterator waits for the item that
    is being made, and for no other.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "pyrerank-ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # not the end
