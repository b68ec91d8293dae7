"""Outputs: where the answers to lines go, chunk by chunk.

Each has `START`, the byte at which its results begin, and `write`, which writes the next chunk's
behind those that are there and returns their bytes.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any, BinaryIO

import numpy as np

from pyrerank.embedder import numbers

HEADER = 128  # bytes of an npy file's, for any number of rows


class JsonLines:
    """A record a line: the number of the input line, its ``id``, and its answer or ``error``.

    Args:
        file: binary, at its end; a pipe will do.  It is flushed after each chunk.
    """

    START = 0

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, records: list[dict[str, Any]]) -> bytes:
        """Writes the next chunk's results."""
        data = b"".join(map(_dump, records))
        self._file.write(data)
        self._file.flush()
        return data


class NpyRows:
    """Vectors as the rows of an npy file, float32 [lines, dim], NaN for a line in error.

    `numpy.load` reads it after each chunk.

    Args:
        file: open for reading and writing: new, or with rows of this ``dim``.
        dim: numbers a vector.
    """

    START = HEADER

    def __init__(self, file: BinaryIO, dim: int) -> None:
        self._file = file
        self._dim = dim
        self._write_header()

    def write(self, records: list[dict[str, Any]]) -> bytes:
        """Writes the next chunk's results."""
        rows = np.full((len(records), self._dim), np.nan, "<f4")
        for row, record in zip(rows, records, strict=True):
            row[:] = record.get("embedding", np.nan)
        self._file.seek(0, os.SEEK_END)
        self._file.write(rows.tobytes())
        self._write_header()  # last, so that it never promises more rows than are there
        return rows.tobytes()

    def _write_header(self) -> None:
        rows = max(0, self._file.seek(0, os.SEEK_END) - HEADER) // (4 * self._dim)
        header = io.BytesIO()
        fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._dim)}
        np.lib.format.write_array_header_1_0(header, fields)
        assert header.tell() == HEADER, "numpy leaves room for any number of rows"
        self._file.seek(0)
        self._file.write(header.getvalue())
        self._file.flush()


def _dump(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=numbers)
    # a message may quote what is not Unicode; answers do not
    return text.encode("utf-8", "replace") + b"\n"
