"""Ranks the documents that ship with the package, and shows the rankings as a page.

The model is the one that ``model="demo"`` names; README.md in this folder says what it can do.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrerank.reranker import Reranker
from pyrerank.weights.find import DEMO

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Ranking:
    """A query, and how its documents were ranked.

    Attributes:
        query: a content: a text, or an object whose ``image`` is a path within this folder.
        documents: contents of the same form.
        scores: the number of each document and its score, with the best first.
    """

    query: Any
    documents: list[Any]
    scores: list[tuple[int, float]]


def rankings(device: str | None = None) -> Iterator[Ranking]:
    """Ranks the documents that ship, query by query.  ``device`` is as in `Reranker`."""
    engine = Reranker(DEMO, device=device)
    for line in (FOLDER / "queries.jsonl").read_text("utf-8").splitlines():
        case = json.loads(line)
        documents = case["documents"]
        ranked = engine.rank(_found(case["query"]), [_found(document) for document in documents])
        scores = [(hit.index, hit.score) for hit in ranked]
        yield Ranking(case["query"], documents, scores)


def _found(content: Any) -> Any:
    """Makes a content whose picture can be found from any working directory."""
    return content if isinstance(content, str) else {"image": str(FOLDER / content["image"])}


def page(ranked: Iterable[Ranking]) -> str:
    """Shows the rankings as an HTML page that needs no other file."""
    sections = []
    for ranking in ranked:
        rows = "".join(
            f'<li><meter value="{score:.6f}"></meter> <b>{score:.3f}</b> '
            f"{_element(ranking.documents[index])}</li>\n"
            for index, score in ranking.scores
        )
        sections.append(f"<h2>{_element(ranking.query)}</h2>\n<ol>\n{rows}</ol>\n")
    return (FOLDER / "page.html").read_text("utf-8").replace("RANKINGS", "".join(sections))


def _element(content: Any) -> str:
    if isinstance(content, str):
        return f"<span>{html.escape(content)}</span>"
    data = base64.b64encode((FOLDER / content["image"]).read_bytes()).decode()
    name = html.escape(f"[{content['image']}]")
    return f'<img src="data:image/png;base64,{data}" alt="{name}" title="{name}">'
