"""The workloads of `engine.py`: texts of `tests/data/xquad`, drawn anew for every round.

Lengths are in tokens, and count texts alone; the template of the prompt adds to them.  Pages are
drawn by Pillow, with sides that are multiples of 32, so that no engine resizes them.
"""

from __future__ import annotations

import json
import random
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from tokenizers import Tokenizer

XQUAD = Path(__file__).resolve().parents[1] / "tests/data/xquad/en"
QUERY_TOKENS = 30
PIECE = 10  # how many words of a passage follow each other in a document

Job = dict[str, Any]  # {"query", "documents"}, or {"inputs"}; see peers/worker.py


@dataclass
class Source:
    """Makes texts and pages.

    Attributes:
        tokenizer: counts lengths.
        folder: pages are written there.
        random: decides everything, so equal states make equal texts.
    """

    tokenizer: Tokenizer
    folder: Path
    random: random.Random

    @cached_property
    def _words(self) -> list[str]:
        return [word for text in _texts("corpus") for word in text.split()]

    @cached_property
    def _random_words(self) -> list[str]:
        """Tokens of a space and letters, each of which stays one token in any order."""
        spelled = sorted(self.tokenizer.get_vocab())
        return [" " + token[1:] for token in spelled if re.fullmatch("Ġ[a-z]+", token)]

    def _cut(self, text: str, tokens: int) -> str:
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        assert len(offsets) >= tokens, (len(offsets), tokens)
        return text[: offsets[tokens - 1][1]]

    def query(self) -> str:
        questions = _texts("queries")
        # six are enough, because a question has five tokens at least
        return self._cut(" ".join(self.random.sample(questions, 6)), QUERY_TOKENS)

    def document(self, tokens: int) -> str:
        """Joins pieces of passages; so many are possible that none comes twice."""
        words: list[str] = []
        while len(words) < tokens:  # enough, because a word is a token at least
            start = self.random.randrange(len(self._words) - PIECE)
            words += self._words[start : start + PIECE]
        return self._cut(" ".join(words), tokens)

    def random_tokens(self, tokens: int) -> str:
        return "".join(self.random.choices(self._random_words, k=tokens))

    def page(self, width: int, height: int) -> dict[str, str]:
        picture = PIL.Image.new("RGB", (width, height), "white")
        font = PIL.ImageFont.load_default(16)
        lines = textwrap.wrap(self.document(width * height // 256), width // 8)
        draw = PIL.ImageDraw.Draw(picture)
        draw.multiline_text((8, 8), "\n".join(lines), fill="black", font=font)
        file = self.folder / f"{self.random.getrandbits(64):016x}.png"
        picture.save(file)
        return {"image": str(file)}


def _texts(name: str) -> list[str]:
    lines = (XQUAD / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@dataclass(frozen=True)
class Workload:
    """A kind of call.

    Attributes:
        title: its name in tables, where ``{}`` is the number of documents.
        documents: how many documents it has.
        make: makes a document or an input.
        on_cpu: how many documents it has on a CPU; None stands for as many.
        pairs: whether each document has a query of its own.
        embed: whether documents are embedded, without a query.
        vision: whether a model must read pictures.
        peers: whether other engines than ours do it as well.
    """

    title: str
    documents: int
    make: Callable[[Source], Any]
    on_cpu: int | None = None
    pairs: bool = False
    embed: bool = False
    vision: bool = False
    peers: bool = True

    def job(self, source: Source, documents: int) -> Job:
        """Makes a new call, which no cache can hold."""
        texts = [self.make(source) for _ in range(documents)]
        if self.embed:
            return {"inputs": texts}
        queries = [source.query() for _ in range(documents if self.pairs else 1)]
        return {"query": queries if self.pairs else queries[0], "documents": texts}


WORKLOADS = {
    "1x32": Workload("1 query x {} documents of 200 tokens", 32, lambda s: s.document(200)),
    "1x100": Workload("1 query x {} documents of 100 tokens", 100, lambda s: s.document(100)),
    "pairs": Workload(
        "{} distinct pairs, documents of 100 tokens", 100, lambda s: s.document(100), pairs=True
    ),
    "images": Workload(
        "1 query x {} images of 512 x 512", 8, lambda s: s.page(512, 512), vision=True
    ),
    "pages": Workload(
        "1 query x {} page images of 896 x 1120", 20, lambda s: s.page(896, 1120), on_cpu=4,
        vision=True,
    ),
    "random": Workload(
        "1 query x {} requests of 200 random tokens", 1000, lambda s: s.random_tokens(200),
        on_cpu=50,
    ),
    "embed": Workload(
        "{} embeddings of 200 tokens", 100, lambda s: s.document(200), on_cpu=32, embed=True
    ),
} | {
    f"short-{count}": Workload(
        "1 query x {} documents of 20 random tokens", count, lambda s: s.random_tokens(20),
        peers=False,
    )
    for count in (100, 1000, 10000)
}  # fmt: skip


def first(job: Job, count: int) -> Job:
    """The job with its first ``count`` documents or inputs."""
    return {
        name: value[:count] if isinstance(value, list) else value for name, value in job.items()
    }
