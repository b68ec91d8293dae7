"""The exact wording of prompts that each family of models was trained on.

A prompt is a `Wording`: plain texts, and between them control tokens or spans of vision tokens.
`pyrerank.prompts.encoder` turns it into token ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyrerank.media.images import SIDE, Visual
from pyrerank.media.reader import Content

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n"
_CONTROL = re.compile(r"(<\|\w+\|>|</?think>)")


class Own(NamedTuple):
    """Where the text of a content lies: in which text of a wording, and at which characters."""

    text: int
    start: int
    end: int


class Vision(NamedTuple):
    """A span of vision tokens: ``<|vision_start|>``, rows x columns times ``pad``, and
    ``<|vision_end|>``."""

    pad: str
    rows: int
    columns: int


@dataclass
class Wording:
    """A prompt in words.

    Attributes:
        texts: plain texts, each of which is encoded by itself.
        between: what stands between two texts, one less than there are texts: a control token, or
            a span.
        own: the texts of contents, in the order in which the prompt has them.
    """

    texts: list[str] = field(default_factory=lambda: [""])
    between: list[str | Vision] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)

    def template(self, text: str, controls: re.Pattern[str] = _CONTROL) -> Wording:
        """Appends text of a template, in which the control tokens that ``controls`` finds are
        written out."""
        head, *rest = controls.split(text)
        self.texts[-1] += head
        self.between += rest[::2]
        self.texts += rest[1::2]
        return self

    def token(self, token: str | Vision) -> Wording:
        """Appends a control token, or a span."""
        self.between.append(token)
        self.texts.append("")
        return self

    def text(self, text: str) -> Wording:
        """Appends text, in which nothing is a control token."""
        self.texts[-1] += text
        return self

    def content(self, content: Content) -> Wording:
        """Appends a content: its videos, its images, its text.

        A video has a span for each pair of frames, with its time before it; an image has one.
        """
        for video in content.videos:
            for seconds in video.seconds:
                self.text(f"<{seconds:.1f} seconds>").token(_span("<|video_pad|>", video))
        for image in content.images:
            self.token(_span("<|image_pad|>", image))
        text = content.text
        if text is None:
            text = "" if content.visuals else "NULL"
        start = len(self.texts[-1])
        self.own.append(Own(len(self.texts) - 1, start, start + len(text)))
        return self.text(text)

    @property
    def other_tokens(self) -> int:
        """How many tokens the prompt has besides those of its texts."""
        return sum(
            1 if isinstance(token, str) else token.rows * token.columns + 2
            for token in self.between
        )

    def without_contents(self) -> list[str]:
        """The texts, without what is a content's."""
        texts = list(self.texts)
        for i, start, end in reversed(self.own):
            texts[i] = texts[i][:start] + texts[i][end:]
        return texts


def _span(pad: str, visual: Visual) -> Vision:
    _, height, width, _ = visual.frames.shape
    return Vision(pad, height // SIDE, width // SIDE)


@dataclass(frozen=True)
class Template:
    """How one family words a reranker's prompt.

    ``<Instruct>: `` + instruction + ``query`` + query + ``document`` + document + ``tail``, which
    has at most ``max_tokens`` tokens.
    """

    default_instruction: str
    query: str
    document: str
    tail: str
    max_tokens: int

    def prompt(self, instruction: str, query: Content, document: Content) -> Wording:
        """The prompt of a pair."""
        wording = Wording().template(f"{HEAD}user\n<Instruct>: ").text(instruction)
        wording.template(self.query).content(query)
        return wording.template(self.document).content(document).template(self.tail)


# Strings and limits are those of the scripts published with Qwen3-Reranker and Qwen3-VL-Reranker
# (model cards and github.com/QwenLM/Qwen3-VL-Embedding).
TEMPLATES = {
    "qwen3": Template(
        default_instruction=(
            "Given a web search query, retrieve relevant passages that answer the query"
        ),
        query="\n<Query>: ",
        document="\n<Document>: ",
        tail=TAIL + THOUGHT,
        max_tokens=8192,
    ),
    "qwen3-vl": Template(
        default_instruction=(
            "Given a search query, retrieve relevant candidates that answer the query."
        ),
        query="<Query>:",
        document="\n<Document>:",
        tail=TAIL,
        max_tokens=10240 + 5,  # the script truncates before it puts five closing tokens back
    ),
}

# Those of the scripts published with Qwen3-Embedding and Qwen3-VL-Embedding.
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
        wording.token(token)
    if instruction is not None:
        wording.text(f"Instruct: {instruction}\nQuery:")
    else:
        wording.template(prompt or "", controls)
    wording.content(content)
    for token in ends[1]:
        wording.token(token)
    return wording


def embedding_prompt(instruction: str | None, content: Content) -> Wording:
    """The prompt of a Qwen3-VL-Embedding, which has a default instruction; a full stop is added to
    an instruction that ends without punctuation."""
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
        parts: texts of the template at even places, and between them what stands there: "system",
            which is the instruction, or the role of a content; see `pyrerank.weights.chat`.
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
