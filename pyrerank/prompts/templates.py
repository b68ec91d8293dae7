"""Prompts: the exact text that each family of models was trained on.

A prompt is plain texts with single tokens between them: control tokens, and runs of vision tokens.
This module knows their order; `inputs` turns them into token ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyrerank.media.reader import Content

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n"


class Own(NamedTuple):
    """Where a caller's own text lies: in which text of a prompt, and its characters in that."""

    text: int
    start: int
    end: int


# Each stands for a whole run: <|vision_start|>, as many of it as the picture has, <|vision_end|>.
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
_CONTROL = re.compile(r"(<\|\w+\|>|</?think>)")


@dataclass
class Wording:
    """A prompt in words: texts, each encoded by itself, with one token or run between two of them.

    Attributes:
        texts: one more than there are controls.
        controls: tokens, and `IMAGE` or `VIDEO` for a run of vision tokens.
        own: the texts of contents, in the order in which the prompt has them.
    """

    texts: list[str] = field(default_factory=lambda: [""])
    controls: list[str] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)

    def template(self, text: str, controls: re.Pattern[str] = _CONTROL) -> Wording:
        """Appends text of a template, in which the control tokens that ``controls`` finds are
        written out."""
        head, *rest = controls.split(text)
        self.texts[-1] += head
        self.controls += rest[::2]
        self.texts += rest[1::2]
        return self

    def control(self, token: str) -> Wording:
        """Appends one token."""
        self.controls.append(token)
        self.texts.append("")
        return self

    def text(self, text: str) -> Wording:
        """Appends text that is only text."""
        self.texts[-1] += text
        return self

    def content(self, content: Content) -> Wording:
        """Appends a content: videos, images, text.

        A run for each pair of frames of a video, with its time before it; one for an image.
        """
        for video in content.videos:
            for seconds in video.seconds:
                self.text(f"<{seconds:.1f} seconds>").template(VIDEO)
        self.template(IMAGE * len(content.images))
        text = content.text
        if text is None:
            text = "" if content.visuals else "NULL"
        start = len(self.texts[-1])
        self.own.append(Own(len(self.texts) - 1, start, start + len(text)))
        return self.text(text)


@dataclass(frozen=True)
class Template:
    """How one family words a reranker's prompt.

    ``<Instruct>: `` + instruction + ``query`` + query + ``document`` + document + ``tail``.
    ``max_tokens`` bounds the prompt without its last ``uncounted`` tokens.
    """

    default_instruction: str
    query: str
    document: str
    tail: str
    max_tokens: int
    uncounted: int

    def prompt(self, instruction: str, query: Content, document: Content) -> Wording:
        """The prompt of a pair."""
        wording = Wording().template(f"{HEAD}user\n<Instruct>: ").text(instruction)
        wording.template(self.query).content(query)
        return wording.template(self.document).content(document).template(self.tail)


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
    # without its last line break, every "<Query>:" would be tried, each to the end of the text
    match = _FORMATTED.fullmatch(query, len(head)) if query.endswith("\n") else None
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


# The scripts published with Qwen3-Embedding and Qwen3-VL-Embedding (model cards and
# github.com/QwenLM/Qwen3-VL-Embedding).
MAX_EMBEDDING_TOKENS = 8192
DEFAULT_REPRESENTATION = "Represent the user's input."


def text_embedding_prompt(
    instruction: str | None,
    prompt: str | None,
    content: Content,
    ends: tuple[Sequence[str], Sequence[str]],
    controls: re.Pattern[str],
) -> Wording:
    """The prompt of a Qwen3-Embedding, which takes an instruction with queries and none with
    documents.

    Args:
        prompt: a folder's own text before ``content``, where there is no instruction.
        ends: the tokens that the tokenizer puts before and after.
        controls: finds control tokens in ``prompt``.
    """
    wording = Wording()
    for token in ends[0]:
        wording.control(token)
    if instruction is not None:
        wording.text(f"Instruct: {instruction}\nQuery:")
    else:
        wording.template(prompt or "", controls)
    wording.content(content)
    for token in ends[1]:
        wording.control(token)
    return wording


def embedding_prompt(instruction: str | None, content: Content) -> Wording:
    """The prompt of a Qwen3-VL-Embedding, which has a default instruction; a full stop is added to
    one that ends without punctuation."""
    chosen = (DEFAULT_REPRESENTATION if instruction is None else instruction).strip()
    if chosen and not unicodedata.category(chosen[-1]).startswith("P"):
        chosen += "."
    wording = Wording().template("<|im_start|>system\n").text(chosen)
    return wording.template("<|im_end|>\n<|im_start|>user\n").content(content).template(TAIL)


def chat_prompt(
    parts: Sequence[str],
    instruction: str | None,
    contents: Mapping[str, Content],
    controls: re.Pattern[str],
) -> Wording:
    """The prompt of a folder's own chat template.

    Args:
        parts: texts of the template at even places, between them what stands there: "system",
            which is the instruction, and the roles of contents; see `pyrerank.weights.chat`.
        contents: by role.
        controls: finds control tokens in the template's texts.
    """
    wording = Wording()
    for place, part in enumerate(parts):
        if place % 2 == 0:
            wording.template(part, controls)
        elif part == "system":
            wording.text(instruction or "")
        else:
            wording.content(contents[part])
    return wording


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
    if not text.endswith(TAIL):  # tried first: the pattern would look for it from many places
        return None, text
    match = _FORMATTED_EMBEDDING.fullmatch(text)
    return (match["instruction"], match["text"]) if match else (None, text)
