"""Items and prompts: an item is what a call asks for, a prompt is what the model is shown of it.

An item is read and validated, and a template that the caller had applied to it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from pyrerank.checks import check_list, entries
from pyrerank.media.images import Visual
from pyrerank.media.reader import Content, is_parts


@dataclass(frozen=True)
class Pair:
    """One query and one document, for a reranker.

    ``instruction`` is None where a folder's own chat template has a default.
    """

    instruction: str | None
    query: Content
    document: Content

    @property
    def contents(self) -> dict[str, Content]:
        """The contents by their roles, in the order of the prompt."""
        return {"query": self.query, "document": self.document}


@dataclass(frozen=True)
class Input:
    """One input of an embedder.

    ``prompt`` is the folder's text for inputs that come without an instruction.
    """

    instruction: str | None
    content: Content
    prompt: str | None = None

    @property
    def contents(self) -> dict[str, Content]:
        return {"user": self.content}


class Span(NamedTuple):
    """Consecutive vision tokens of a prompt, of an image or a pair of frames of a video.

    ``start`` is the place of the first one; ``height`` and ``width`` count rows and columns.
    """

    start: int
    height: int
    width: int


@dataclass(frozen=True)
class Prompt:
    """A whole prompt as token ids.

    ``truncated`` counts the text tokens that were cut to fit the limit; ``visuals`` and ``spans``
    are in the order of the prompt.
    """

    ids: list[int]
    truncated: int
    visuals: tuple[Visual, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The exact prompt of a pair.

    Attributes:
        text: the prompt, in which control tokens are written out.
        ids: its token ids.
        truncated: how many text tokens were cut to fit the model's limit.
    """

    text: str
    ids: list[int]
    truncated: int


def pair_up(query: object, documents: object) -> list[tuple[object, object]]:
    """Pairs one query with every document, or queries and documents one to one.

    Raises:
        TypeError: documents that are not a list.
        ValueError: no documents, or lists of different lengths.
    """
    listed = check_list("documents", documents)
    queries = None if is_parts(query) else entries(query)
    if queries is None:
        return [(query, document) for document in listed]
    if len(queries) != len(listed):
        raise ValueError(
            f"query has {len(queries)} entries and documents has {len(listed)}; give one query "
            "for all documents, or lists of equal length"
        )
    return list(zip(queries, listed, strict=True))


Item = TypeVar("Item", bound=Pair | Input)


def unique(items: Iterable[Item]) -> list[Item]:
    """Each item once, sorted so that prompts that begin alike lie together.

    A planner that sorts a few hundred at a time then finds most of the tokens that they share.
    """

    def words(item: Item) -> tuple[str, list[tuple[list[bytes], str]]]:
        contents = [([v.digest for v in c.visuals], c.text or "") for c in item.contents.values()]
        return item.instruction or getattr(item, "prompt", None) or "", contents

    return sorted(dict.fromkeys(items), key=words)
