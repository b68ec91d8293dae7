"""Prompts: the exact text that each family of models was trained on.

A reranker's prompt is ``head + user turn + tail``.  Head and tail are fixed and hold all control
tokens; the user turn is plain text made of an instruction, a query and a document.  An embedder's
is ``before + content + after``, around whose texts stand control tokens too.  This module knows
strings only: `inputs` turns them into token ids.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n"


class UserTurn(NamedTuple):
    """The text between head and tail, and where in it, in characters, query and document lie; the
    document reaches to the end."""

    text: str
    query_start: int
    query_end: int
    document_start: int


@dataclass(frozen=True)
class Template:
    """How one family words its prompt.

    The user turn is ``user\\n<Instruct>: `` + instruction + ``query`` + query + ``document`` +
    document.  ``max_tokens`` bounds the prompt without its last ``uncounted`` tokens.
    """

    default_instruction: str
    query: str
    document: str
    tail: str
    max_tokens: int
    uncounted: int

    def user_turn(self, instruction: str, query: str, document: str) -> UserTurn:
        """Puts the three texts between the template's words."""
        before = f"user\n<Instruct>: {instruction}{self.query}"
        query_end = len(before) + len(query)
        text = f"{before}{query}{self.document}{document}"
        return UserTurn(text, len(before), query_end, query_end + len(self.document))


# Strings and limits: the scripts published with Qwen3-Reranker and Qwen3-VL-Reranker (model cards
# and github.com/QwenLM/Qwen3-VL-Embedding), which truncate the VL prompt before its closing five
# tokens are put back.
TEMPLATES = {
    "qwen3": Template(
        default_instruction=(
            "Given a web search query, retrieve relevant passages that answer the query"
        ),
        query="\n<Query>: ",
        document="\n<Document>: ",
        tail=TAIL + THOUGHT,
        max_tokens=8192,
        uncounted=0,
    ),
    "qwen3-vl": Template(
        default_instruction=(
            "Given a search query, retrieve relevant candidates that answer the query."
        ),
        query="<Query>:",
        document="\n<Document>:",
        tail=TAIL,
        max_tokens=10240,
        uncounted=5,
    ),
}

_FORMATTED = re.compile(
    r"<Instruct>: (?P<instruction>.*?)"
    r"(?:\n<Query>:(?P<space> )(?P<spaced>.*)|<Query>:(?P<tight>.*))\n",
    re.DOTALL,
)


def unformat(query: str, document: str) -> tuple[str | None, str, str]:
    """Undoes a template that the caller already applied.

    The examples published for other servers send head, instruction and query as the query, and
    ``"<Document>: " + document + tail`` as the document.  Recognised by these exact affixes, such a
    pair scores as the plain pair does.

    Returns:
        (instruction, query, document); instruction is None, and the texts are as given, when the
        query does not start with the template.

    Raises:
        ValueError: the query starts with the template, but it or the document does not go on as
            the template does.
    """
    head = HEAD + "user\n"
    if not query.startswith(head):
        return None, query, document
    match = _FORMATTED.fullmatch(query, len(head))
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


class Wording(NamedTuple):
    """An embedder's prompt: texts, between which control tokens stand; one of them is the content.

    Attributes:
        texts: plain texts, each encoded by itself.
        controls: what stands between them and after the last, each a single token or none.
        content: index of the text that ends with the content.
        start: where in that text, in characters, the content starts.
    """

    texts: tuple[str, ...]
    controls: tuple[str, ...]
    content: int
    start: int


# The scripts published with Qwen3-Embedding and Qwen3-VL-Embedding (model cards and
# github.com/QwenLM/Qwen3-VL-Embedding).
MAX_EMBEDDING_TOKENS = 8192
DEFAULT_REPRESENTATION = "Represent the user's input."


def embedding_prompt(family: str, instruction: str | None, text: str) -> Wording:
    """The prompt that embeds ``text``.

    Qwen3-Embedding takes an instruction with queries and none with documents; Qwen3-VL-Embedding
    has a default, and a full stop is added to one that ends without punctuation.
    """
    if family == "qwen3":
        before = "" if instruction is None else f"Instruct: {instruction}\nQuery:"
        return Wording((before + text,), ("<|endoftext|>",), 0, len(before))
    chosen = (DEFAULT_REPRESENTATION if instruction is None else instruction).strip()
    if chosen and not unicodedata.category(chosen[-1]).startswith("P"):
        chosen += "."
    texts = ("", f"system\n{chosen}", "\n", f"user\n{text}", "\n", "assistant\n")
    controls = ("<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "")
    return Wording(texts, controls, 3, len("user\n"))


_FORMATTED_EMBEDDING = re.compile(
    r"<\|im_start\|>system\n(?P<instruction>.*?)<\|im_end\|>\n"
    r"<\|im_start\|>user\n(?P<text>.*)<\|im_end\|>\n<\|im_start\|>assistant\n",
    re.DOTALL,
)


def unformat_embedding(family: str, text: str) -> tuple[str | None, str]:
    """Undoes a template that the caller already applied to an input of an embedder.

    Returns:
        (instruction, text); instruction is None, and the text as given but for a closing
        end-of-text token of Qwen3-Embedding, when there is no template.  (Qwen3-Embedding's own
        ``Instruct: ...\\nQuery:...`` is plain text, and stays.)
    """
    if family == "qwen3":
        return None, text.removesuffix("<|endoftext|>")
    match = _FORMATTED_EMBEDDING.fullmatch(text)
    return (match["instruction"], match["text"]) if match else (None, text)
