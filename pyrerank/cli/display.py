"""Prints rankings and warnings on a terminal.  It knows nothing of models or commands."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any


def print_scores(results: Iterable[tuple[int, float]], documents: list[Any]) -> None:
    """Prints a line for each result: the score, the document's number, and as much of the document
    as the line has room for.

    Args:
        results: pairs of a document's number and its score.
        documents: contents, in the form that JSON gives them.
    """
    width = shutil.get_terminal_size((100, 0)).columns - 17
    for index, score in results:
        print(f"{score:.6f}  [{index}]".ljust(16), _clip(in_words(documents[index]), width))


def in_words(document: str | dict[str, Any]) -> str:
    """Describes a document by the names of its pictures, in brackets, followed by its text."""
    if isinstance(document, str):
        return document
    names = [name for kind in ("video", "image") for name in _leaves(document.get(kind))]
    # A data: URI is shortened to its media type, because its data would fill the terminal.
    names = [n.partition(",")[0] if n[:5].lower() == "data:" else n for n in names]
    return " ".join([*(f"[{name}]" for name in names), *_leaves(document.get("text"))])


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning to stderr; takes the arguments of `warnings.showwarning`."""
    print(f"pyrerank: warning: {message}", file=sys.stderr)


def _leaves(value: Any) -> list[str]:
    """The values in nested lists; a value that is no list is the only one, and None is none."""
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [] if value is None else [value]


def _clip(text: str, width: int) -> str:
    """Shortens a text to one line of ``width`` columns, of which Chinese characters take two."""
    text = " ".join(text.split())
    columns = 0
    for end, char in enumerate(text):
        columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if columns > width:
            return text[: end - 1] + "…"
    return text
