"""Checks of callers' arguments: numbers, switches, texts, and lists in all their forms."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

SINGLE = (str, bytes, bytearray, memoryview, Mapping)  # these are iterable, and no lists


def check_int(name: str, value: object, wanted: str, least: int, most: float = float("inf")) -> int:
    """Returns ``value``, which may be of any integer type, as an int.

    Raises:
        ValueError: it is a bool or no integer, or not from ``least`` to ``most``; the message says
            that ``name`` must be ``wanted``.
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is True or False.

    Raises:
        TypeError: it is something else, such as the text "false", which Python takes for true.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def entries(value: object) -> list[Any] | None:
    """The entries of a list, a tuple, another sequence, or an array or a Series of one dimension.

    None stands for a value that is none of these: a single content, a set, an iterator.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (*SINGLE, Set)) or len(getattr(value, "shape", (0,))) != 1:
        return None
    for convert in ("tolist", "to_list", "to_pylist"):  # numpy, pandas, polars, pyarrow
        if hasattr(value, convert):
            listed = getattr(value, convert)()
            return listed if isinstance(listed, list) else None
    return list(value) if isinstance(value, Sequence) else None


def check_list(name: str, value: object) -> list[Any]:
    """Returns the `entries` of ``value``.

    Raises:
        TypeError: it has none.
        ValueError: it is empty.
    """
    listed = entries(value)
    if listed is None:
        shape = getattr(value, "shape", None)
        remedy = "wrap a single content in a list"
        if shape:
            remedy = f"its shape is {tuple(shape)}: give one column"
        elif isinstance(value, Iterable) and shape is None and not isinstance(value, SINGLE):
            remedy = f"make it one: list({name})"
        raise TypeError(f"{name} must be a list, got {type(value).__name__}; {remedy}")
    if not listed:
        raise ValueError(f"{name} is empty; give at least one")
    return listed


def check_text(name: str, value: object) -> str:
    """Returns ``value`` if it is text that can be encoded.

    Raises:
        TypeError: it is not a str.
        ValueError: it holds a lone surrogate, which no tokenizer can encode.
    """
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise TypeError(f"{name} must be str, got {type(value).__name__}{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate, U+{ord(value[error.start]):04X}, at character "
            f"{error.start}: not valid Unicode text; decode it with errors='replace' at its source"
        ) from None
    return value


def warn(message: str, category: type[Warning]) -> None:
    """Warns, and names the line outside of pyrerank that led here."""
    level = 2
    while sys._getframe(level - 1).f_globals.get("__name__", "").startswith("pyrerank."):
        level += 1
    warnings.warn(message, category, stacklevel=level)
