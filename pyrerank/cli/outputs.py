"""The outputs, to which the answers to lines are written, chunk by chunk.

Each class has `START`, the byte of the file at which results begin, and `write`, which appends the
results of the next chunk and returns the bytes that it appended.  Outputs know nothing of the
input.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any, BinaryIO

import numpy as np

from pyrerank.embedder import numbers

HEADER = 128  # bytes of the header of an npy file, which leaves room for any number of rows


class JsonLines:
    """Writes a record for each line: its number, its ``id``, and its answer or its ``error``.

    Args:
        file: a binary file at its end, or a pipe.  It is flushed after each chunk.
    """

    START = 0

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, records: list[dict[str, Any]]) -> bytes:
        """Writes the results of the next chunk and returns their bytes."""
        data = b"".join(map(_dump, records))
        self._file.write(data)
        self._file.flush()
        return data


class NpyRows:
    """Writes vectors as the rows of an npy file, float32 [lines, dim], with NaN for lines in error.

    `numpy.load` can read the file after each chunk.

    Args:
        file: open for reading and writing; it is empty, or holds rows of this ``dim``.
        dim: how many numbers a vector has.
    """

    START = HEADER

    def __init__(self, file: BinaryIO, dim: int) -> None:
        self._file = file
        self._dim = dim
        self._write_header()

    def write(self, records: list[dict[str, Any]]) -> bytes:
        """Writes the results of the next chunk and returns their bytes."""
        rows = np.full((len(records), self._dim), np.nan, "<f4")
        for row, record in zip(rows, records, strict=True):
            row[:] = record.get("embedding", np.nan)
        self._file.seek(0, os.SEEK_END)
        self._file.write(rows.tobytes())
        self._write_header()  # comes last, so that it never promises more rows than there are
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
    # Messages of errors may quote lone surrogates, which UTF-8 cannot hold; answers have none.
    return text.encode("utf-8", "replace") + b"\n"
