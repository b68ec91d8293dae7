"""Outputs of work on lines, cut or interrupted anywhere and resumed, end as unbroken ones do."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pyrerank.jsonl import CHUNK, EmbedTask, process
from pyrerank.media import Media
from pyrerank.outputs import JsonLines, NpyRows

DIM = 5


class Engine:
    """Vectors that tell which batch they were made in, as real ones do in their last bits."""

    dim = DIM

    def __init__(self) -> None:
        self.ran = 0

    def input(self, name: str, content: dict, instruction: object, reader: object) -> int:
        if content["text"] == "bad":
            raise ValueError(f"{name} is bad")
        return int(content["text"])

    def run(self, inputs: list[int], progress: bool) -> list[SimpleNamespace]:
        self.ran += len(inputs)
        batch = np.random.default_rng(inputs)
        vectors = batch.standard_normal((len(inputs), DIM), np.float32)
        return [
            SimpleNamespace(vector=vector, tokens=i, truncated=0)
            for i, vector in zip(inputs, vectors, strict=True)
        ]


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


def output_of(kind: str, file: io.BytesIO, dim: int = DIM) -> JsonLines | NpyRows:
    return NpyRows(file, dim) if kind == "npy" else JsonLines(file, resume=True)


def run(kind: str, file: io.BytesIO) -> tuple[int, int]:
    """How many lines were in error, and how many were run."""
    engine = Engine()
    file.seek(0)
    errors = process(EmbedTask(engine, Media()), source(), output_of(kind, file), progress=False)
    return errors, engine.ran


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    outputs = {}
    for kind in ("npy", "jsonl"):
        file = io.BytesIO()
        errors, ran = run(kind, file)
        assert (errors, ran) == (BAD, 2 * CHUNK + 20 - BAD)
        outputs[kind] = file.getvalue()
    return outputs


def test_both_say_the_same(whole):
    rows = np.load(io.BytesIO(whole["npy"]))
    records = [json.loads(line) for line in whole["jsonl"].splitlines()]
    lines = [number for number, line in enumerate(source(), 1) if line.strip()]
    assert rows.dtype == np.float32 and rows.shape == (len(lines), DIM)
    assert [record["line"] for record in records] == lines
    nothing = [np.nan] * DIM
    vectors = np.array([record.get("embedding", nothing) for record in records], np.float32)
    np.testing.assert_array_equal(rows, vectors)  # digits enough for every bit
    assert np.isnan(rows).any(1).sum() == sum("error" in record for record in records) == BAD
    assert records[0]["id"] == "é0" and records[-1]["tokens"] == 2 * CHUNK + 19


@pytest.mark.parametrize("kind", ["npy", "jsonl"])
def test_cut_anywhere(kind, whole):
    size = len(whole[kind])
    rerun = set()
    for cut in {*range(0, 300), *range(0, size, 41), *range(size - 50, size + 1)}:
        file = io.BytesIO(whole[kind][:cut])
        errors, ran = run(kind, file)
        assert file.getvalue() == whole[kind], cut
        assert errors == BAD
        rerun.add(ran)
    assert len(rerun) == 4  # all chunks, two, one, none


class Killed(io.BytesIO):
    """A file of which every state that a killed process could leave is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.states = [b""]

    def write(self, data: bytes) -> int:
        written = super().write(data)
        self.states.append(self.getvalue())
        return written

    def truncate(self, size: int | None = None) -> int:
        size = super().truncate(size)
        self.states.append(self.getvalue())
        return size


def test_npy_can_be_loaded_and_resumed_after_every_write(whole):
    file = Killed()
    run("npy", file)
    first = file.states[1:]
    file.states = []
    io.BytesIO.truncate(file, 128 + 4 * DIM * (CHUNK + 3))  # a chunk and a part, a header for all
    run("npy", file)
    assert len(first) > 9 and len(file.states) > 6
    final = np.load(io.BytesIO(whole["npy"]))
    # the state that was made here by cutting can only be mended, not loaded
    for state in first + file.states[1:]:
        rows = np.load(io.BytesIO(state))
        np.testing.assert_array_equal(rows, final[: len(rows)])
        again = io.BytesIO(state)
        assert run("npy", again)[0] == BAD
        assert again.getvalue() == whole["npy"]


def test_no_lines():
    file = io.BytesIO()
    assert process(EmbedTask(Engine(), Media()), [], NpyRows(file, DIM)) == 0
    assert np.load(io.BytesIO(file.getvalue())).shape == (0, DIM)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"precious\n", "not an npy file that pyrerank wrote"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': oh\n" + b" " * 200, "not an npy file"),
        (npy(np.zeros((3, DIM))), "not an npy file"),
        (npy(np.zeros(DIM, np.float32)), "not an npy file"),
        (npy(np.zeros((3, 4), np.float32)), "vectors of 4 numbers, .* makes vectors of 5"),
    ],
)
def test_another_file_is_not_resumed(held, message):
    file = io.BytesIO(held)
    with pytest.raises(ValueError, match=message):
        NpyRows(file, DIM)
    assert file.getvalue() == held
