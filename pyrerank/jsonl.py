"""JSON lines in, results out: streaming, resumable, one bad line never stops the others.

`process` takes each line through a task (`ScoreTask`, `EmbedTask`) to an output of
`pyrerank.outputs`; neither knows of the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pyrerank.inputs import check_list, check_text
from pyrerank.media import Media, Reader
from pyrerank.outputs import JsonLines, NpyRows

if TYPE_CHECKING:
    from pyrerank.embedder import Embedder
    from pyrerank.reranker import Reranker

# Pairs or inputs run and written together: the most that an interruption costs.  Chunks are cut by
# the input alone, so a resumed run forms the same batches, and the same bits, as an unbroken one.
CHUNK = 64

FIELDS = ("query", "document", "documents", "instruction", "id")


@dataclass(frozen=True)
class Line:
    """One line of the input: its object, and the record that answers it so far, which has an
    ``error`` if the line is bad.
    """

    record: dict[str, Any]
    item: dict[str, Any]


@dataclass(frozen=True)
class ScoreTask:
    """Lines with ``query``, ``document`` (a content) or ``documents`` (a list of contents),
    optionally ``instruction`` and ``id``.

    query: a content, for lines that have no query; None: they are in error.
    ranked: lines must have ``documents``; results are sorted, the ``top_n`` first are kept, and
        they carry their documents.
    """

    engine: Reranker
    media: Media
    query: object = None
    ranked: bool = False
    top_n: int | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n must be a positive int or None, got {self.top_n}")

    def read(self, item: dict[str, Any], reader: Reader) -> list[Any]:
        """The pairs of a line.  Raises TypeError or ValueError for a bad one."""
        unknown = sorted(item.keys() - set(FIELDS))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; a line has {', '.join(FIELDS)}")
        if self.query is None and "query" not in item:
            raise ValueError("no 'query', in the line or on the command line")
        if ("document" in item) == ("documents" in item):
            raise ValueError("a line needs either 'document' or 'documents'")
        if self.ranked and "document" in item:
            raise ValueError("ranking needs 'documents', a list; 'document' is one content")
        documents = {"document": item.get("document")}
        if "documents" in item:
            check_list("documents", item["documents"])
            documents = {f"documents[{i}]": given for i, given in enumerate(item["documents"])}
        query = item.get("query", self.query)
        return [
            self.engine.pair(name, query, document, item.get("instruction"), reader)
            for name, document in documents.items()
        ]

    def answer(self, item: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        if "document" in item:
            return asdict(results[0])
        answers = [{"index": i} | asdict(result) for i, result in enumerate(results)]
        if self.ranked:
            answers = sorted(answers, key=lambda answer: -answer["logit"])[: self.top_n]
            answers = [a | {"document": item["documents"][a["index"]]} for a in answers]
        return {"results": answers}


@dataclass(frozen=True)
class EmbedTask:
    """Lines that are documents (see `content_of`), optionally with ``instruction`` and ``id``.

    instruction: for lines that have none.
    """

    engine: Embedder
    media: Media
    instruction: str | None = None

    def read(self, item: dict[str, Any], reader: Reader) -> list[Any]:
        """The input of a line.  Raises TypeError or ValueError for a bad one."""
        instruction = item.get("instruction", self.instruction)
        content = content_of(item)
        return [self.engine.input("input", content, instruction, reader)]

    def answer(self, item: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        [result] = results
        return {
            "embedding": result.vector,
            "tokens": result.tokens,
            "truncated": result.truncated,
        }


def process(
    task: ScoreTask | EmbedTask,
    source: Iterable[bytes],
    output: JsonLines | NpyRows,
    *,
    total: int | None = None,
    progress: bool | None = None,
) -> int:
    """Works through the lines of ``source``.

    Args:
        task: what a line asks for.
        source: the input's lines.
        output: where the answers go.
        total: number of input lines, for the progress bar.
        progress: as in `Reranker.score`.

    Returns:
        How many lines were in error; each that was not in ``output`` before is reported on stderr.
    """
    errors = 0
    hide = None if progress is None else not progress
    with tqdm(total=total, unit="line", disable=hide, delay=1) as bar:
        for chunk in _chunks(_lines(source)):
            kept = output.keep([line.record["line"] for line in chunk])
            if kept is None:
                records = _records(task, chunk)
                output.write(records)
            bar.update(chunk[-1].record["line"] - bar.n)
            if kept is None:
                bad = [record for record in records if "error" in record]
                for record in bad:
                    bar.write(f"line {record['line']}: {record['error']}", file=sys.stderr)
                kept = len(bad)
            errors += kept
    return errors


def _records(task: ScoreTask | EmbedTask, chunk: list[Line]) -> list[dict[str, Any]]:
    """The whole records of a chunk's lines."""
    reader = Reader(task.media)  # a picture of several lines is read once
    work = [_read(task, line, reader) for line in chunk]
    inputs = [one for _, inputs in work for one in inputs]
    results = iter(task.engine.run(inputs, progress=False))
    records = []
    for line, (record, inputs) in zip(chunk, work, strict=True):
        if "error" not in record:
            record = record | task.answer(line.item, [next(results) for _ in inputs])
        records.append(record)
    return records


def _read(
    task: ScoreTask | EmbedTask, line: Line, reader: Reader
) -> tuple[dict[str, Any], list[Any]]:
    """The record of a line so far, and its pairs or inputs."""
    if "error" in line.record:
        return line.record, []
    try:
        return line.record, task.read(line.item, reader)
    except (ValueError, TypeError) as error:
        return line.record | {"error": str(error)}, []


def _lines(source: Iterable[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(source, 1):
        if not raw.strip():
            continue
        record: dict[str, Any] = {"line": number}
        try:
            item = parse(raw)
            if "id" in item:
                record["id"] = _check_id(item["id"])
            yield Line(record, item)
        except (ValueError, TypeError) as error:
            yield Line(record | {"error": str(error)}, {})


def parse(raw: bytes) -> dict[str, Any]:
    """The object of a line.  Raises ValueError or TypeError if it holds none."""
    try:
        item = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("a JSON value that is nested too deep") from None
    if not isinstance(item, dict):
        raise TypeError(f"expected a JSON object, got {type(item).__name__}")
    return item


def content_of(item: dict[str, Any]) -> dict[str, Any]:
    """The content of a line that is a document: its ``text``, ``image`` and ``video``.

    Other fields (``_id``, ``title``) are the caller's own.  Raises ValueError where there is none
    of the three.
    """
    content: dict[str, Any] = {
        kind: item[kind] for kind in ("text", "image", "video") if kind in item
    }
    if not content:
        raise ValueError("a document needs a 'text', an 'image' or a 'video'")
    return content


def _check_id(value: object) -> str | int:
    return value if isinstance(value, int) else check_text("id", value)


def _chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    size = 0
    for line in lines:
        chunk.append(line)
        documents = line.item.get("documents")
        size += max(1, len(documents)) if isinstance(documents, list) else 1
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
