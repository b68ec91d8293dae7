"""The journal of an output, with which ``--resume`` goes on after an interruption.

The journal of ``OUTPUT`` is the file ``OUTPUT.resume`` beside it.  Its first line holds the
settings that the results depend on, so that results of different settings never get into one
output.  Each further line says that the results of a chunk of input lines are on the disk.  This
module knows nothing of what results are.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from pyrerank.media.sources import shown
from pyrerank.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Entry:
    """A chunk of input lines whose results are in the output.

    Attributes:
        line: the number of its last input line.
        input: the digest of its input lines.
        size: how many bytes its results have.
        output: the digest of its results.
        errors: how many of its lines are in error.
        cut: how many of its prompts were cut to the model's limit.
    """

    line: int
    input: str
    size: int
    output: str
    errors: int
    cut: int


class Journal:
    """The file ``OUTPUT.resume``, as a context manager.

    If the output holds results that the journal does not know, they are removed, and will be
    computed again.

    Args:
        path: the path of the output.
        output: the output, open for reading and writing; its results begin at byte ``start``.
        settings: the settings that the results depend on besides the input, as JSON values by the
            names that messages call them.

    Raises:
        ValueError: the output holds results, and these were made with other settings, or have no
            journal that says with which, or were changed since.
    """

    def __init__(
        self, path: Path, output: BinaryIO, settings: Mapping[str, Any], start: int = 0
    ) -> None:
        self._path = path
        self._output = output
        # the chunks to come whose results are there, each with the byte where its entry ends
        self._done: deque[tuple[Entry, int]] = deque()
        file = path_beside(path)
        if not output.seek(0, os.SEEK_END):
            self._file = file.open("w+b")
            self._write(settings)
            os.fsync(self._file.fileno())
            return
        try:
            self._file = file.open("r+b")
        except FileNotFoundError:
            raise ValueError(
                f"{path} holds results, and {file.name}, which says of which run, is not beside "
                "it; bring that file, or give another output file"
            ) from None
        try:
            self._read(settings, start)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def next(self, line: int, digest: str) -> Entry | None:
        """Returns the entry of the next chunk, or None if the chunk has no results yet.

        Args:
            line: the number of the chunk's last line.
            digest: the digest of the chunk.

        Raises:
            ValueError: the output answers other lines than these.
        """
        if not self._done:
            return None
        entry, end = self._done[0]
        if (entry.line, entry.input) == (line, digest):
            self._done.popleft()
            self._end = end
            self._size += entry.size
            return entry
        if len(self._done) > 1 or line <= entry.line:
            raise ValueError(
                f"{self._path} answers other lines than the input has, up to line {entry.line}; "
                "give the same input, to which lines may have been added, or another output file"
            )
        self._done.clear()  # lines were added to the last chunk
        self._cut(self._end, self._size)
        return None

    def add(self, entry: Entry) -> None:
        """Notes a chunk whose results were written, once they are on the disk."""
        os.fsync(self._output.fileno())
        self._write(asdict(entry))

    def check_end(self) -> None:
        """Raises ValueError if the output answers more lines than the input had."""
        if self._done:
            raise ValueError(
                f"{self._path} answers more lines than the input has, up to line "
                f"{self._done[-1][0].line}; give the whole input, or another output file"
            )

    def _read(self, settings: Mapping[str, Any], start: int) -> None:
        try:
            held = json.loads(self._file.readline())
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise ValueError(f"{self._file.name} is damaged; give another output file")
        given = json.loads(json.dumps(settings))
        differ = [
            f"{name} was {shown(held.get(name))} and is {shown(given.get(name))}"
            for name in {**held, **given}
            if held.get(name) != given.get(name)
        ]
        if differ:
            raise ValueError(
                f"{self._path} holds results of another run: {'; '.join(differ)}; give what was "
                "given then, or another output file"
            )
        self._end = end = self._file.tell()
        self._size = size = self._output.seek(start)
        for raw in self._file:
            try:
                entry = Entry(**json.loads(raw))
            except (ValueError, TypeError):
                break  # the process was killed while it wrote this entry
            data = self._output.read(entry.size)
            if len(data) < entry.size or not raw.endswith(b"\n"):
                break
            if digest_of(data) != entry.output:
                raise ValueError(
                    f"{self._path} was changed since pyrerank wrote it, before byte "
                    f"{size + entry.size}; give another output file"
                )
            end += len(raw)
            size += entry.size
            self._done.append((entry, end))
        self._cut(end, size)

    def _cut(self, end: int, size: int) -> None:
        """Cuts the journal to its first ``end`` bytes, then the output to its first ``size``."""
        self._file.seek(end)
        self._file.truncate()
        os.fsync(self._file.fileno())
        self._output.truncate(size)
        self._output.seek(size)

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(_dump(value))
        self._file.flush()


def path_beside(output: Path) -> Path:
    """The path of an output's journal.  Raises ValueError if another file is there."""
    path = output.with_name(output.name + ".resume")
    if path.exists() and not (path.is_file() and path.read_bytes()[:1] in (b"", b"{")):
        raise ValueError(f"{path} is in the way, and not of pyrerank; name another output file")
    return path


def digest_of(data: bytes) -> str:
    """Returns 32 hexadecimal digits that identify ``data``."""
    return blake2b(data, digest_size=16).hexdigest()


def identity(checkpoint: Checkpoint) -> str:
    """Identifies a checkpoint by what its files hold, wherever they lie.

    These are all settings beside the weights, and the name, the shape and the first 4 KiB of each
    tensor.
    """
    hashed = blake2b(digest_size=16)
    folder = checkpoint.path
    names = ("*.json", "*/*.json", "*.jinja", "*/*.jinja")
    files = {file for name in names for file in folder.glob(name)}
    layers = {step.file for step in checkpoint.modules.steps if step is not None}
    for file in sorted(files | layers):
        hashed.update(f"{file.relative_to(folder)}\0{digest_of(file.read_bytes())}\0".encode())
    for weights in sorted({file.path for file in checkpoint.tensors.values()}):
        with weights.open("rb") as opened:
            head = opened.read(8)
            head += opened.read(int.from_bytes(head, "little"))
            hashed.update(head)
            for tensor in json.loads(head[8:]).values():
                if "data_offsets" in tensor:
                    first, end = tensor["data_offsets"]
                    opened.seek(len(head) + first)
                    hashed.update(opened.read(min(end - first, 4096)))
    return f"files with the digest {hashed.hexdigest()}"


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
