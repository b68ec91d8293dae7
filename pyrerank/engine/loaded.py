"""Between calls, the module-level functions hold one engine that scores and one that embeds, for
programs that retrieve with one and sort with the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch

from pyrerank.devices.select import check_process, forked, resolve, resolve_dtype
from pyrerank.engine.engine import Engine
from pyrerank.weights.find import find_folder

E = TypeVar("E", bound=Engine)

FILES = ("*.json", "*.jinja", "*.safetensors", "*/*.json", "*/*.safetensors")  # what loading reads


class Loaded(Generic[E]):
    """Holds the engine of the last call, for the next call that asks for the same."""

    def __init__(self, make: Callable[..., E]) -> None:
        self._make = make
        # One thread may take it twice, because reading a picture may call a function of the caller.
        self._lock = threading.RLock()
        self._engine: E | None = None
        self._key: object = None

    @contextmanager
    def engine(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        max_tokens: int | None,
    ) -> Iterator[E]:
        """Gives the engine for ``model`` to one call; calls of other threads wait until it ends.

        The last engine is closed, and another loaded, if the last call asked for another
        checkpoint, device or dtype, or if the files of the checkpoint have changed since.
        """
        check_process()
        with self._lock:
            on = resolve(device)
            chosen = resolve_dtype(dtype, on)
            folder = find_folder(model).resolve()
            key = folder, _files(folder), on, chosen
            if key != self._key or self._engine is None:
                self.close()
                self._engine = self._make(folder, device=on.torch_device, dtype=chosen)
                self._key = key
            self._engine.max_tokens = max_tokens
            yield self._engine

    def close(self) -> None:
        """Closes the engine; in a forked process, whose parent has the engine, does nothing."""
        if forked():
            return
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._engine = self._key = None


def _files(folder: Path) -> list[tuple[str, int, int, int]]:
    """Names and identities of a checkpoint's files; if one changes, it is another checkpoint."""
    found = {file: file.stat() for pattern in FILES for file in sorted(folder.glob(pattern))}
    return [(str(file), s.st_ino, s.st_size, s.st_mtime_ns) for file, s in found.items()]
