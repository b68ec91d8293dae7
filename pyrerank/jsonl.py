"""JSON lines in, JSON lines out: streaming, resumable, one bad line never stops the others.

Input lines are objects: ``query`` (unless given for all lines), ``document`` (a text) or
``documents`` (a list of texts), optionally ``instruction`` and ``id``.  Output lines carry the
number of the input line, its ``id``, and either the results or an ``error``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from tqdm import tqdm

from pyrerank.inputs import Pair, check_text, pair_up
from pyrerank.reranker import Reranker, Score

# Pairs scored and written together: the most that an interruption costs.  Chunks are cut by the
# input alone, so a resumed run forms the same batches, and the same bits, as an unbroken one.
CHUNK_PAIRS = 64

FIELDS = ("query", "document", "documents", "instruction", "id")


@dataclass(frozen=True)
class Line:
    """One input line: the output record so far (with ``error`` if the line is bad) and its pairs.

    ``documents`` is None for a line that has a single ``document``.
    """

    record: dict[str, Any]
    pairs: list[Pair]
    documents: list[str] | None = None

    def answer(self, scores: list[Score], ranked: bool, top_n: int | None) -> dict[str, Any]:
        """The output record; ``ranked`` sorts by logit, keeps ``top_n``, carries the documents."""
        if "error" in self.record:
            return self.record
        if self.documents is None:
            return self.record | asdict(scores[0])
        results = [{"index": i} | asdict(score) for i, score in enumerate(scores)]
        if ranked:
            results = sorted(results, key=lambda result: -result["logit"])[:top_n]
            results = [r | {"document": self.documents[r["index"]]} for r in results]
        return self.record | {"results": results}


def process(
    engine: Reranker,
    source: Iterable[bytes],
    target: BinaryIO,
    *,
    ranked: bool = False,
    query: str | None = None,
    top_n: int | None = None,
    resume: bool = False,
    total: int | None = None,
    progress: bool | None = None,
) -> int:
    """Scores or ranks the lines of ``source`` into ``target``.

    Args:
        engine: scores the pairs.
        source: the input's lines.
        target: a binary file or pipe; flushed after each chunk.
        ranked: lines must have ``documents``; results are sorted and carry them.
        query: for lines that have none.
        top_n: with ``ranked``, how many results of a line to keep.
        resume: ``target`` is the output of an interrupted run over the same input, open for
            reading and writing: chunks it holds whole are kept, the rest is redone.
        total: number of input lines, for the progress bar.
        progress: as in `Reranker.score`.

    Returns:
        How many lines were in error; each is also reported on stderr.

    Raises:
        ValueError: with ``resume``, ``target`` holds something else than such output.
    """
    finished = _finished(target) if resume else {}
    kept = errors = 0
    hide = None if progress is None else not progress
    with tqdm(total=total, unit="line", disable=hide, delay=1) as bar:
        for chunk in _chunks(_parse(engine, source, query, ranked)):
            last = chunk[-1].record["line"]
            errors += sum("error" in line.record for line in chunk)
            if last in finished:
                kept = finished[last]
                bar.update(last - bar.n)
                continue
            scores = iter(engine.run([p for line in chunk for p in line.pairs], progress=False))
            answers = [
                line.answer([next(scores) for _ in line.pairs], ranked, top_n) for line in chunk
            ]
            if resume:
                target.seek(kept)
                target.truncate()
                resume = False
            target.write(b"".join(_dump(answer) for answer in answers))
            target.flush()
            bar.update(last - bar.n)
            for answer in answers:
                if "error" in answer:
                    bar.write(f"line {answer['line']}: {answer['error']}", file=sys.stderr)
    return errors


def _parse(
    engine: Reranker, source: Iterable[bytes], query: str | None, ranked: bool
) -> Iterator[Line]:
    for number, raw in enumerate(source, 1):
        if not raw.strip():
            continue
        record: dict[str, Any] = {"line": number}
        try:
            item = json.loads(raw.decode("utf-8-sig"))
            if not isinstance(item, dict):
                raise TypeError(f"expected a JSON object, got {type(item).__name__}")
            if "id" in item:
                record["id"] = _check_id(item["id"])
            yield _line(engine, record, item, query, ranked)
        except (ValueError, TypeError, RecursionError) as error:
            yield Line(record | {"error": str(error)}, [])


def _check_id(value: object) -> str | int:
    return value if isinstance(value, int) else check_text("id", value)


def _line(
    engine: Reranker, record: dict[str, Any], item: dict[str, Any], query: str | None, ranked: bool
) -> Line:
    unknown = sorted(item.keys() - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; a line has {', '.join(FIELDS)}")
    if query is None and "query" not in item:
        raise ValueError("no 'query', in the line or on the command line")
    if ("document" in item) == ("documents" in item):
        raise ValueError("a line needs either 'document' or 'documents'")
    if ranked and "document" in item:
        raise ValueError("ranking needs 'documents', a list; 'document' is one text")
    own_query, instruction = item.get("query", query), item.get("instruction")
    if "document" in item:
        return Line(record, [engine.pair("document", own_query, item["document"], instruction)])
    documents = item["documents"]
    if not isinstance(own_query, str):
        raise TypeError(f"query must be str, got {type(own_query).__name__}")
    pairs = [
        engine.pair(f"documents[{i}]", *texts, instruction)
        for i, texts in enumerate(pair_up(own_query, documents))
    ]
    return Line(record, pairs, documents)


def _chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    pairs = 0
    for line in lines:
        chunk.append(line)
        pairs += max(1, len(line.pairs))  # a bad line counts, or a file of them would pile up
        if pairs >= CHUNK_PAIRS:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


def _finished(target: BinaryIO) -> dict[int, int]:
    """Input line -> where its record ends in the output, without a half-written last line."""
    ends, end = {}, 0
    for raw in target:
        if not raw.endswith(b"\n"):
            break
        end += len(raw)
        try:
            ends[int(json.loads(raw)["line"])] = end
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                "the output to resume holds a line that pyrerank did not write: "
                f"{raw[:60]!r}; give another output file"
            ) from None
    return ends


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
