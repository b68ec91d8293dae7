"""Truncation: what is cut from a prompt that is longer than its limit.

Only the texts of contents are cut, the last content first, each from its end.  Template,
instruction and pictures are never cut; an item whose limit they fill alone is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Encoding

from pyrerank.prompts.templates import Wording

# An instruction that leaves fewer tokens to the text is a mistake.  Moreover, words that touch the
# template may share a token with it, so that a few more tokens than the template's cannot be cut.
LEAST_CONTENT = 16


def check_room(name: str, wording: Wording, fixed: int, limit: int) -> None:
    """Raises ValueError if ``fixed`` tokens that are no content's leave no room in ``limit``."""
    has_text = any(end > start for _, start, end in wording.own)
    over = fixed + has_text * LEAST_CONTENT - limit
    if over > 0 and not all(isinstance(token, str) for token in wording.between):
        raise ValueError(
            f"{name}: its pictures are {over} tokens too many for a prompt of {limit} tokens; give "
            "fewer, or smaller ones, see pyrerank.Media"
        )
    if over > 0:
        raise ValueError(
            f"instruction is {over} tokens too long: a prompt of {limit} tokens must leave "
            f"{LEAST_CONTENT} for the text; shorten it, or raise max_tokens"
        )


def truncate(
    ids: Sequence[list[int]], wording: Wording, encodings: Mapping[int, Encoding], excess: int
) -> list[list[int]]:
    """Cuts ``excess`` tokens from ``ids``, the token ids of each text of ``wording``.

    ``encodings`` are the texts that hold contents, by their place.  A token that also covers
    characters of the template is not cut.

    Raises:
        ValueError: the texts of the contents have fewer tokens.
    """
    cut: dict[int, set[int]] = {i: set() for i in encodings}
    for i, start, end in reversed(wording.own):
        inside = [n for n, (a, b) in enumerate(encodings[i].offsets) if start <= a and b <= end]
        gone = inside[max(0, len(inside) - excess) :]
        cut[i].update(gone)
        excess -= len(gone)
    if excess:
        raise ValueError(f"a prompt may not be as short: {excess} tokens more are not of its text")
    return [
        [id for n, id in enumerate(part) if n not in cut[i]] if cut.get(i) else part
        for i, part in enumerate(ids)
    ]
