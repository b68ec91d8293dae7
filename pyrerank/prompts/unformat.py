"""Undoing a template that a caller already applied: such an item becomes the plain one.

The template is recognised by its exact beginning and end.  A text that only looks like it stays as
it is.
"""

from __future__ import annotations

import re

from pyrerank.prompts.templates import HEAD, TAIL, THOUGHT

_QUERY = re.compile(
    r"<Instruct>: (?P<instruction>.*?)"
    r"(?:\n<Query>:(?P<space> )(?P<spaced>.*)|<Query>:(?P<tight>.*))\n",
    re.DOTALL,
)
_INPUT = re.compile(
    r"<\|im_start\|>system\n(?P<instruction>.*?)<\|im_end\|>\n"
    r"<\|im_start\|>user\n(?P<text>.*)<\|im_end\|>\n<\|im_start\|>assistant\n",
    re.DOTALL,
)


def unformat_pair(query: str, document: str) -> tuple[str | None, str, str]:
    """Undoes the template of a pair, as the examples published for other servers apply it.

    Returns:
        (instruction, query, document); where the query does not start with the template,
        instruction is None, and the texts are as given.

    Raises:
        ValueError: the query starts with the template, but it or the document does not go on so.
    """
    head = HEAD + "user\n"
    if not query.startswith(head):
        return None, query, document
    # without its last line break, every "<Query>:" would be tried, each to the end of the text
    match = _QUERY.fullmatch(query, len(head)) if query.endswith("\n") else None
    if match is None:
        raise ValueError(
            "query starts with the reranker's prompt but does not go on with '<Instruct>: ...', "
            "'<Query>: ...' and a final newline; give the bare query, or the whole published prefix"
        )
    opening = "<Document>:" + (match["space"] or "")
    body = document.removesuffix(THOUGHT).removesuffix(TAIL)
    if not document.startswith(opening) or len(body) == len(document.removesuffix(THOUGHT)):
        raise ValueError(
            f"the query is formatted as a prompt, so the document must start with {opening!r} and "
            f"end with {TAIL!r}; format both or neither"
        )
    inner = match["tight"] if match["space"] is None else match["spaced"]
    return match["instruction"], inner, body.removeprefix(opening)


def unformat_input(family: str, text: str) -> tuple[str | None, str]:
    """Undoes the template of an embedder's input: (instruction, if it has one, and text).

    Of Qwen3-Embedding only a closing end-of-text token is removed.  Its own
    ``Instruct: ...\\nQuery:...`` is plain text, and stays.
    """
    if family == "qwen3":
        return None, text.removesuffix("<|endoftext|>")
    if not text.endswith(TAIL):  # tried first: the pattern would look for it from many places
        return None, text
    match = _INPUT.fullmatch(text)
    return (match["instruction"], match["text"]) if match else (None, text)


def check_agreed(name: str, own: str, instruction: str | None) -> None:
    """Raises ValueError if a template has one instruction, and the caller gave another."""
    if instruction not in (None, own):
        raise ValueError(
            f"{name}: it is formatted with the instruction {own!r}, and instruction= says "
            f"{instruction!r}; give one of them"
        )
