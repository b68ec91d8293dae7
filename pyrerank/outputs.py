"""Outputs: where the answers to lines go, chunk by chunk, and what is kept of an interrupted run.

For each chunk, in order, `keep` is asked, and `write` called if it says None.
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import Any, BinaryIO

import numpy as np

HEADER = 128  # bytes of an npy file's, for any number of rows


class JsonLines:
    """A record a line: the number of the input line, its ``id``, and its answer or ``error``.

    Args:
        file: binary, a pipe too; flushed after each chunk.
        resume: ``file`` is the output of an interrupted run over the same input, open for reading
            and writing: chunks that it holds whole are kept, the rest is written anew.

    Raises:
        ValueError: with ``resume``, ``file`` holds something else.
    """

    def __init__(self, file: BinaryIO, resume: bool = False) -> None:
        self._file = file
        self._resume = resume
        self._kept = 0  # bytes
        # input line -> where its record ends, and whether it is an error; no half-written last one
        self._held: dict[int, tuple[int, bool]] = {}
        end = 0
        for raw in file if resume else ():
            if not raw.endswith(b"\n"):
                break
            end += len(raw)
            try:
                record = json.loads(raw)
                self._held[int(record["line"])] = end, "error" in record
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    "the output to resume holds a line that pyrerank did not write: "
                    f"{raw[:60]!r}; give another output file"
                ) from None

    def keep(self, lines: list[int]) -> int | None:
        """How many of the next chunk's lines were in error; None if it has to be written."""
        held = [self._held.get(line) for line in lines]
        if held[-1] is None:
            return None
        self._kept = held[-1][0]
        return sum(error for _, error in filter(None, held))

    def write(self, records: list[dict[str, Any]]) -> None:
        """Writes the next chunk."""
        if self._resume:
            self._file.seek(self._kept)
            self._file.truncate()
            self._resume = False
        self._file.write(b"".join(_dump(record) for record in records))
        self._file.flush()


class NpyRows:
    """Vectors as the rows of an npy file, float32 [lines, dim], NaN for a line in error.

    `numpy.load` reads it after each chunk.

    Args:
        file: open for reading and writing; new, or the output of an interrupted run over the same
            input: chunks that it holds whole are kept, the rest is written anew.
        dim: numbers a vector.

    Raises:
        ValueError: ``file`` holds something else, or vectors of another ``dim``.
    """

    def __init__(self, file: BinaryIO, dim: int) -> None:
        self._file = file
        self._dim = dim
        self._rows = 0  # that are kept or written
        self._held = self._read_header()
        if not self._held:
            self._write_header()

    def keep(self, lines: list[int]) -> int | None:
        """How many of the next chunk's lines were in error; None if it has to be written."""
        if self._rows + len(lines) > self._held:
            return None
        self._file.seek(self._end())
        rows = np.frombuffer(self._file.read(4 * self._dim * len(lines)), "<f4")
        self._rows += len(lines)
        return int(np.isnan(rows[:: self._dim]).sum())

    def write(self, records: list[dict[str, Any]]) -> None:
        """Writes the next chunk."""
        rows = np.full((len(records), self._dim), np.nan, "<f4")
        for row, record in zip(rows, records, strict=True):
            row[:] = record.get("embedding", np.nan)
        self._write_header()  # at no time does it promise more rows than are there
        self._file.truncate(self._end())
        self._file.seek(self._end())
        self._file.write(rows.tobytes())
        self._rows += len(records)
        self._write_header()

    def _end(self) -> int:
        return HEADER + 4 * self._dim * self._rows

    def _write_header(self) -> None:
        self._file.seek(0)
        self._file.write(_header(self._rows, self._dim))
        self._file.flush()

    def _read_header(self) -> int:
        """The number of rows that the file holds whole."""
        head = self._file.read(HEADER)
        if len(head) < HEADER and np.lib.format.MAGIC_PREFIX.startswith(head[:6]):
            return 0  # new, or interrupted at its first bytes
        shape = re.search(rb"'shape': \((\d+), (\d+)\)", head)
        rows, dim = map(int, shape.groups()) if shape else (0, 0)
        if head != _header(rows, dim):
            raise ValueError(
                "the output to resume is not an npy file that pyrerank wrote; give another output "
                "file"
            )
        if dim != self._dim:
            raise ValueError(
                f"the output to resume has vectors of {dim} numbers, and this run makes vectors of "
                f"{self._dim}; give the same --dim, or another output file"
            )
        size = self._file.seek(0, os.SEEK_END)
        return min(rows, (size - HEADER) // (4 * dim))


def _header(rows: int, dim: int) -> bytes:
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(header, fields)
    assert header.tell() == HEADER, "numpy leaves room for any number of rows"
    return header.getvalue()


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=_numbers).encode() + b"\n"


def _numbers(vector: np.ndarray) -> list[float]:
    """A float32 vector in the fewest digits that tell its values from their neighbours."""
    return [float(digits) for digits in vector.astype(str)]
