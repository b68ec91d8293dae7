"""An output that is cut or interrupted anywhere, and resumed, ends with the same bytes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, ClassVar

import numpy as np
import pytest

from pyrerank.cli.journal import Journal
from pyrerank.cli.jsonl import CHUNK, Done, EmbedTask, process
from pyrerank.cli.outputs import JsonLines, NpyRows
from pyrerank.media.sources import Media

pytestmark = pytest.mark.slow

DIM = 5


class Engine:
    """Also its core and its encoder.  Vectors tell which batch they were made in, as real ones do
    in their last bits."""

    dim = DIM

    def __init__(self) -> None:
        self.ran = 0
        self.core = self.encoder = self

    def input(self, name: str, content: dict, instruction: object, reader: object) -> int:
        if content["text"] == "bad":
            raise ValueError(f"{name} is bad")
        return int(content["text"])

    def outcomes(
        self, inputs: list[int], progress: bool
    ) -> Iterator[tuple[int, SimpleNamespace | None]]:
        self.ran += len(inputs)
        batch = np.random.default_rng(inputs)
        vectors = batch.standard_normal((len(inputs), DIM), np.float32)
        for i, vector in zip(inputs, vectors, strict=True):
            yield i, SimpleNamespace(vector=vector, tokens=i, truncated=int(i % 50 == 0))


def source() -> list[bytes]:
    """Three chunks, with blank and bad lines among them."""
    lines = []
    for i in range(2 * CHUNK + 20):
        text = "bad" if i % 30 == 7 else str(i)
        lines.append(json.dumps({"_id": i, "text": text, "id": f"é{i}"}).encode() + b"\n")
        lines += [b" \n"] * (i % 20 == 3)
    lines[40] = b"{\n"
    return lines


BAD = 6


CUT = 3


def run(target: Path, lines: list[bytes] | None = None, wrap: type | None = None) -> int:
    """Goes on with ``target``; how many lines were run."""
    engine = Engine()
    with target.open("r+b" if target.exists() else "x+b") as opened:
        file = wrap(opened) if wrap else opened
        npy = target.suffix == ".npy"
        start = NpyRows.START if npy else JsonLines.START
        with Journal(target, file, {"--dim": DIM}, start) as journal:
            output = NpyRows(file, DIM) if npy else JsonLines(file)
            task = EmbedTask(engine, Media())
            given = source() if lines is None else lines
            done = process(task, given, output, journal, progress=False)
    assert lines is not None or done == Done(BAD, CUT)
    return engine.ran


def journal_of(target: Path) -> Path:
    return target.with_name(target.name + ".resume")


KINDS = ("npy", "jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    outputs = {kind: tmp_path_factory.mktemp("whole") / f"out.{kind}" for kind in KINDS}
    for target in outputs.values():
        assert run(target) == 2 * CHUNK + 20 - BAD
    return outputs


@pytest.fixture(params=KINDS)
def final(request, whole) -> Path:
    """Of a run that nothing interrupted."""
    return whole[request.param]


def left(folder: Path, final: Path, size: int | None, noted: int | None) -> Path:
    """An output of which the first ``size`` bytes are there, and ``noted`` of its journal."""
    target = folder / final.name
    target.write_bytes(final.read_bytes()[:size])
    journal_of(target).write_bytes(journal_of(final).read_bytes()[:noted])
    return target


def test_both_say_the_same(whole):
    rows = np.load(whole["npy"])
    records = [json.loads(line) for line in whole["jsonl"].read_bytes().splitlines()]
    lines = [number for number, line in enumerate(source(), 1) if line.strip()]
    assert rows.dtype == np.float32 and rows.shape == (len(lines), DIM)
    assert [record["line"] for record in records] == lines
    nothing = [np.nan] * DIM
    vectors = np.array([record.get("embedding", nothing) for record in records], np.float32)
    np.testing.assert_array_equal(rows, vectors)  # digits enough for every bit
    assert np.isnan(rows).any(1).sum() == sum("error" in record for record in records) == BAD
    assert records[0]["id"] == "é0" and records[-1]["tokens"] == 2 * CHUNK + 19


@pytest.mark.parametrize("what", ["output", "journal"])
def test_cut_anywhere(final, tmp_path, what):
    """However much was lost of one of them, the end is that of an unbroken run."""
    of = final if what == "output" else journal_of(final)
    size = of.stat().st_size
    first = of.read_bytes().index(b"\n") + 1 if what == "journal" else 1
    ran = set()
    for cut in {first, *range(first, size, 97), *range(size - 20, size + 1)}:
        target = left(tmp_path, final, *((cut, None) if what == "output" else (None, cut)))
        ran.add(run(target))
        assert target.read_bytes() == final.read_bytes(), cut
        assert journal_of(target).read_bytes() == journal_of(final).read_bytes(), cut
        assert run(target) == 0
    assert len(ran) == 4  # all chunks, two, one, none


def test_an_empty_output_starts_anew(final, tmp_path):
    target = left(tmp_path, final, 0, None)
    run(target)
    assert target.read_bytes() == final.read_bytes()
    assert journal_of(target).read_bytes() == journal_of(final).read_bytes()


class Killed:
    """A file of which every state that a killed process could leave is kept, with its journal's."""

    states: ClassVar[list[tuple[bytes, bytes]]] = []

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._note()
        return written

    def truncate(self, size: int | None = None) -> int:
        size = self._file.truncate(size)
        self._note()
        return size

    def _note(self) -> None:
        self._file.flush()
        target = Path(self._file.name)
        self.states.append((target.read_bytes(), journal_of(target).read_bytes()))


def test_killed_anywhere_and_resumed(final, tmp_path):
    """Also while lines are added to what was the last chunk."""
    target = tmp_path / final.name
    Killed.states.clear()
    run(target, source()[:100], wrap=Killed)
    unbroken = len(Killed.states)
    run(target, wrap=Killed)
    assert target.read_bytes() == final.read_bytes()
    assert len(Killed.states) > unbroken >= 2
    for n, (held, noted) in enumerate(Killed.states.copy()):
        target.write_bytes(held)
        journal_of(target).write_bytes(noted)
        if final.suffix == ".npy" and n < unbroken:
            rows = np.load(target)[:CHUNK]
            np.testing.assert_array_equal(rows, np.load(final)[: len(rows)])
        run(target)
        assert target.read_bytes() == final.read_bytes()


def test_no_lines(tmp_path):
    run(tmp_path / "out.npy", [])
    assert np.load(tmp_path / "out.npy").shape == (0, DIM)


def changed(lines: list[bytes], index: int) -> list[bytes]:
    lines[index] = b'{"text": "3"}\n'
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (changed(source(), 5), "answers other lines than the input has, up to line"),
        (changed(source(), 100), "answers other lines than the input has, up to line"),
        (changed(source(), -1), "answers other lines than the input has, up to line"),
        (source()[1:], "answers other lines"),
        ([b"\n", *source()], "answers other lines"),  # all have other numbers
        (source()[:-1], "answers other lines"),
        (source()[:40], "answers other lines"),
        ([], "answers more lines than the input has, up to line"),
    ],
)
def test_another_input_is_refused(final, tmp_path, lines, message):
    target = left(tmp_path, final, None, None)
    with pytest.raises(ValueError, match=message):
        run(target, lines)
    assert target.read_bytes() == final.read_bytes()
    assert run(target) == 0


@pytest.mark.parametrize("kept", [1, 63, 64, 100, 140])
def test_lines_may_be_added(final, tmp_path, kept):
    target = tmp_path / final.name
    lines = source()[:kept]
    lines[-1] = lines[-1].rstrip(b"\n")
    run(target, lines)
    run(target)
    assert target.read_bytes() == final.read_bytes()


def test_what_was_changed_since_is_refused(final, tmp_path):
    target = left(tmp_path, final, None, None)
    held = target.read_bytes()
    at = 300
    target.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
    with pytest.raises(ValueError, match="was changed since pyrerank wrote it, before byte"):
        run(target)


def test_what_nobody_knows_of_is_refused(final, tmp_path):
    target = left(tmp_path, final, None, None)
    journal_of(target).write_bytes(b'{"--dim"')
    with pytest.raises(ValueError, match="is damaged; give another output file"):
        run(target)
    journal_of(target).unlink()
    with pytest.raises(ValueError, match=r"which says of which run, is not beside it"):
        run(target)
    assert target.read_bytes() == final.read_bytes()


def test_results_are_on_the_disk_before_they_are_noted(final, tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def note(number: int) -> None:
        fsync(number)
        synced.append(
            (os.fstat(number).st_ino, target.read_bytes(), journal_of(target).read_bytes())
        )

    target = tmp_path / final.name
    monkeypatch.setattr(os, "fsync", note)
    run(target)
    own = target.stat().st_ino
    chunks = [(held, noted) for inode, held, noted in synced if inode == own]
    assert [noted.count(b"\n") for _, noted in chunks] == [1, 2, 3]
    assert chunks[-1][0] == final.read_bytes()
