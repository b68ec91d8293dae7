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
    """Where a content's text lies: in which text of a wording, and at which characters."""

    text: int
    start: int
    end: int


class Vision(NamedTuple):
    """A span: ``<|vision_start|>``, rows x columns times ``pad``, ``<|vision_end|>``."""

    pad: str
    rows: int
    columns: int


@dataclass
class Wording:
    """A prompt in words.

    Attributes:
        texts: plain texts, each of which is encoded by itself.
        between: the control tokens and spans, one between two texts.
        own: the texts of contents, in the order in which the prompt has them.
    """

    texts: list[str] = field(default_factory=lambda: [""])
    between: list[str | Vision] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)

    def parts(
        self,
        parts: Sequence[str],
        instruction: str | None,
        contents: Mapping[str, Content],
        controls: re.Pattern[str] = _CONTROL,
    ) -> Wording:
        """Appends a template, in whose texts ``controls`` finds control tokens.

        ``parts`` are its texts, and between each two of them "system", which is the instruction, or
        the role of a content.
        """
        for place, part in enumerate(parts):
            if place % 2 == 0:
                head, *rest = controls.split(part)
                self.texts[-1] += head
                self.between += rest[::2]
                self.texts += rest[1::2]
            elif part == "system":
                self.texts[-1] += instruction or ""
            else:
                self._content(contents[part])
        return self

    def tokens(self, *tokens: str | Vision) -> Wording:
        self.between += tokens
        self.texts += [""] * len(tokens)
        return self

    def _content(self, content: Content) -> None:
        """Appends a content; before each span of a video comes its time."""
        for video in content.videos:
            for seconds in video.seconds:
                self.texts[-1] += f"<{seconds:.1f} seconds>"
                self.tokens(_span("<|video_pad|>", video))
        self.tokens(*(_span("<|image_pad|>", image) for image in content.images))
        text = content.text
        if text is None:
            text = "" if content.visuals else "NULL"
        start = len(self.texts[-1])
        self.own.append(Own(len(self.texts) - 1, start, start + len(text)))
        self.texts[-1] += text

    @property
    def places(self) -> list[int]:
        """Which of the texts hold contents."""
        return sorted({own.text for own in self.own})

    @property
    def other_tokens(self) -> int:
        """How many tokens the prompt has besides those of its texts."""
        return sum(
            1 if isinstance(token, str) else token.rows * token.columns + 2
            for token in self.between
        )

    def without_contents(self) -> list[str]:
        """The texts, without those of contents."""
        texts = list(self.texts)
        for i, start, end in reversed(self.own):
            texts[i] = texts[i][:start] + texts[i][end:]
        return texts


def _span(pad: str, visual: Visual) -> Vision:
    _, height, width, _ = visual.frames.shape
    return Vision(pad, height // SIDE, width // SIDE)


@dataclass(frozen=True)
class Template:
    """How one family words a reranker's prompt, in `Wording.parts`, of ``max_tokens`` at most."""

    default_instruction: str
    parts: tuple[str, ...]
    max_tokens: int


# Strings and limits are those of the scripts published with Qwen3-Reranker and Qwen3-VL-Reranker
# (model cards and github.com/QwenLM/Qwen3-VL-Embedding).
_OPENING = f"{HEAD}user\n<Instruct>: "
TEMPLATES = {
    "qwen3": Template(
        "Given a web search query, retrieve relevant passages that answer the query",
        (_OPENING, "system", "\n<Query>: ", "query", "\n<Document>: ", "document", TAIL + THOUGHT),
        max_tokens=8192,
    ),
    "qwen3-vl": Template(
        "Given a search query, retrieve relevant candidates that answer the query.",
        (_OPENING, "system", "<Query>:", "query", "\n<Document>:", "document", TAIL),
        max_tokens=10240 + 5,  # the script truncates before it puts five closing tokens back
    ),
}

# Those of the scripts published with Qwen3-Embedding, for an input with an instruction, and with
# Qwen3-VL-Embedding.
TEXT_EMBEDDING = ("Instruct: ", "system", "\nQuery:", "user", "")
EMBEDDING = (
    "<|im_start|>system\n", "system", "<|im_end|>\n<|im_start|>user\n", "user", TAIL
)  # fmt: skip
MAX_EMBEDDING_TOKENS = 8192
DEFAULT_REPRESENTATION = "Represent the user's input."


def representation(instruction: str | None) -> str:
    """The instruction of a Qwen3-VL-Embedding, which ends with punctuation."""
    chosen = (DEFAULT_REPRESENTATION if instruction is None else instruction).strip()
    if chosen and not unicodedata.category(chosen[-1]).startswith("P"):
        chosen += "."
    return chosen
