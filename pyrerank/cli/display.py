"""Rankings as lines of a terminal."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any


def print_scores(results: Iterable[tuple[int, float]], documents: list[Any]) -> None:
    """A line each: the score, the document's number, and what fits of the document.

    results: numbers of documents, and their scores.
    documents: contents, in the form that JSON gives them.
    """
    width = shutil.get_terminal_size((100, 0)).columns - 17
    for index, score in results:
        print(f"{score:.6f}  [{index}]".ljust(16), _clip(in_words(documents[index]), width))


def in_words(document: str | dict[str, Any]) -> str:
    """A document as words: its text, after its pictures' names in brackets."""
    if isinstance(document, str):
        return document
    names = [name for kind in ("video", "image") for name in _leaves(document.get(kind))]
    # of a data: URI what it is, not what it holds
    names = [n.partition(",")[0] if n[:5].lower() == "data:" else n for n in names]
    return " ".join([*(f"[{name}]" for name in names), *_leaves(document.get("text"))])


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning to stderr; takes the arguments of `warnings.showwarning`."""
    print(f"pyrerank: warning: {message}", file=sys.stderr)


def _leaves(value: Any) -> list[str]:
    """What a value, or a list of values or lists, or None, holds."""
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [] if value is None else [value]


def _clip(text: str, width: int) -> str:
    """The text on one line of at most ``width`` columns; Chinese characters take two."""
    text = " ".join(text.split())
    columns = 0
    for end, char in enumerate(text):
        columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if columns > width:
            return text[: end - 1] + "…"
    return text
