"""Answers JSON lines, one after the other, so that a bad line never stops the others.

`process` takes each line through a task (`ScoreTask`, `EmbedTask`), writes the answer to an output
of `pyrerank.cli.outputs`, and notes in a `pyrerank.cli.journal` what is done.  Tasks, outputs and
journals know nothing of each other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pyrerank.checks import check_list, check_text
from pyrerank.cli.journal import Entry, Journal, digest_of
from pyrerank.cli.outputs import JsonLines, NpyRows
from pyrerank.errors import DeviceError, NonFiniteScore, OutOfMemory
from pyrerank.media.json_content import content_of, parse_object
from pyrerank.media.reader import Reader
from pyrerank.media.sources import Media

if TYPE_CHECKING:
    from pyrerank.embedder import Embedder
    from pyrerank.reranker import Reranker

# A chunk has about so many pairs or inputs, which are computed and written together; an
# interruption costs no more than a chunk.  The input alone decides where chunks end, so work that
# is resumed makes the same passes, and results of the same bits, as work that was never
# interrupted.
CHUNK = 64

FIELDS = ("query", "document", "documents", "instruction", "id")


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        record: what the output says of the line so far; it has an ``error`` if the line is bad.
        item: the object that the line holds; empty if the line is bad.
        digest: the digest of the line's number and bytes.
    """

    record: dict[str, Any]
    item: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Done:
    """What became of an input.

    Attributes:
        errors: how many of its lines are in error.
        cut: how many of its prompts were cut to the model's limit.
    """

    errors: int
    cut: int


@dataclass(frozen=True)
class ScoreTask:
    """Scores the pairs of lines.

    A line has a ``query``, a ``document`` (a content) or ``documents`` (a list of contents), and
    optionally an ``instruction`` and an ``id``.

    Attributes:
        query: the query, a content, of lines that have none; if it is None, they are in error.
        ranked: whether lines must have ``documents``, whose results are sorted and hold their
            documents.
        top_n: how many results of a ranked line are written; None stands for all.
    """

    engine: Reranker
    media: Media
    query: object = None
    ranked: bool = False
    top_n: int | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n must be a positive int or None, got {self.top_n}")

    def read(self, item: dict[str, Any], reader: Reader) -> dict[str, Any]:
        """Reads the pairs of a line, by the names that messages call them.

        Raises:
            TypeError, ValueError: the line is bad.
        """
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
        instruction, encoder = item.get("instruction"), self.engine.core.encoder
        pairs = {
            name: encoder.pair(name, query, document, instruction, reader)
            for name, document in documents.items()
        }
        if self.ranked:  # answers repeat whole documents, of which `pair` has checked only a part
            for name, document in documents.items():
                check_text(name, json.dumps(document, ensure_ascii=False))
        return pairs

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
    """Makes a vector of each line.

    A line is a document (see `content_of`), and has optionally an ``instruction`` and an ``id``.

    Attributes:
        instruction: the instruction of lines that have none.
    """

    engine: Embedder
    media: Media
    instruction: str | None = None

    def read(self, item: dict[str, Any], reader: Reader) -> dict[str, Any]:
        """Reads the input of a line, by the name that messages call it.

        Raises:
            TypeError, ValueError: the line is bad.
        """
        instruction = item.get("instruction", self.instruction)  # a line's null asks for none
        content = content_of(item, "instruction")
        return {"input": self.engine.core.encoder.input("input", content, instruction, reader)}

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
    journal: Journal | None = None,
    *,
    total: int | None = None,
    progress: bool | None = None,
) -> Done:
    """Answers the lines of ``source``, and reports on stderr each error that is new in ``output``.

    Args:
        task: reads and answers a line.
        source: the lines of the input.
        output: gets the answers.
        journal: the journal of the output; None if the output cannot be resumed.
        total: how many lines the input has, for the progress bar.
        progress: as in `Reranker.score`.

    Returns:
        How many lines are in error, and how many prompts were cut.

    Raises:
        ValueError: ``output`` answers other lines than those of ``source``.
        DeviceError: the device failed; answers that were written stay there.
    """
    errors = cut = 0
    hide = None if progress is None else not progress
    with tqdm(total=total, unit="line", disable=hide, delay=1) as bar:
        for chunk in _chunks(_lines(source)):
            last = chunk[-1].record["line"]
            digest = digest_of("".join(line.digest for line in chunk).encode())
            entry = journal.next(last, digest) if journal is not None else None
            if entry is None:
                records, short = _records(task, chunk)
                data = output.write(records)
                bad = [record for record in records if "error" in record]
                entry = Entry(last, digest, len(data), digest_of(data), len(bad), short)
                if journal is not None:
                    journal.add(entry)
                for record in bad:
                    bar.write(f"line {record['line']}: {record['error']}", file=sys.stderr)
            bar.update(last - bar.n)
            errors += entry.errors
            cut += entry.cut
    if journal is not None:
        journal.check_end()
    return Done(errors, cut)


def _records(task: ScoreTask | EmbedTask, chunk: list[Line]) -> tuple[list[dict[str, Any]], int]:
    """Answers a chunk: returns the records of its lines, and how many prompts were cut."""
    reader = Reader(task.media)  # one for all lines, so that it reads a picture of several once
    work = [_read(task, line, reader) for line in chunk]
    outcomes = _outcomes(task, [one for _, inputs in work for one in inputs.values()])
    records, cut = [], 0
    for line, (record, inputs) in zip(chunk, work, strict=True):
        results = {name: outcomes[one] for name, one in inputs.items()}
        failed = [f"{n}: {result}" for n, result in results.items() if isinstance(result, str)]
        if failed:
            record = record | {"error": failed[0]}
        elif "error" not in record:
            record = record | task.answer(line.item, list(results.values()))
            cut += sum(result.truncated > 0 for result in results.values())
        records.append(record)
    return records, cut


def _outcomes(task: ScoreTask | EmbedTask, inputs: list[Any]) -> dict[Any, Any]:
    """Returns the result of each pair or input, or a str that says what is wrong with it."""
    try:
        return {
            one: str(result) if isinstance(result, NonFiniteScore) else result
            for one, result in task.engine.core.outcomes(inputs, progress=False)
        }
    except (OutOfMemory, MemoryError) as error:
        if len(inputs) == 1:
            return {inputs[0]: str(error) or "there is too little memory for it"}
        apart: dict[Any, Any] = {}  # one that is too large must not stop the others
        for one in inputs:
            apart |= _outcomes(task, [one])
        if all(isinstance(outcome, str) for outcome in apart.values()):
            raise  # the fault is not theirs
        return apart


def _read(
    task: ScoreTask | EmbedTask, line: Line, reader: Reader
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a line: returns its record so far, and its pairs or inputs by their names."""
    if "error" in line.record:
        return line.record, {}
    try:
        return line.record, task.read(line.item, reader)
    except DeviceError:
        raise
    except Exception as error:  # whatever is wrong with a line, it stops no other
        return line.record | {"error": _words(error)}, {}


def _lines(source: Iterable[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(source, 1):
        text = raw.strip()
        if not text:
            continue
        record: dict[str, Any] = {"line": number}
        item: dict[str, Any] = {}
        try:
            item = parse_object(raw)
            if "id" in item:
                record["id"] = _check_id(item["id"])
        except Exception as error:  # as in `_read`
            record["error"] = _words(error)
        yield Line(record, {} if "error" in record else item, digest_of(b"%d " % number + text))


def _words(error: Exception) -> str:
    """The message of an error; it begins with the class of an error that was not foreseen."""
    if isinstance(error, (ValueError, TypeError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


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
