"""Tensors are read from safetensors files, and used where they lie, as views of the mapped file.

A file that changes while it is used is an error.  This module does not know what tensors are for.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pyrerank.errors import CheckpointChanged, CheckpointError
from pyrerank.weights.find import INDEX, WHOLE, refuse_pointer, weight_files, weight_map

DTYPES = ("F64", "F32", "F16", "BF16")
# The ends of names that only tensors of quantised checkpoints have -> the tool that makes these.
QUANTISED = {
    "qweight": "GPTQ or AWQ", "qzeros": "GPTQ or AWQ", "g_idx": "GPTQ or AWQ",
    "absmax": "bitsandbytes", "quant_map": "bitsandbytes", "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors", "weight_scale": "compressed-tensors",
    "weight_zero_point": "compressed-tensors", "input_scale": "compressed-tensors",
    "weight_scale_inv": "fp8", "weight_offset": "ModelSlim", "deq_scale": "ModelSlim",
    "quant_bias": "ModelSlim",
}  # fmt: skip


class TensorFile:
    """A safetensors file, held open, so that it stays the same when another one takes its name.

    Attributes:
        path: its name when it was opened.
        shapes: the shapes of its tensors, by name.
        dtypes: their dtypes, by name, in the words of safetensors: "BF16".

    Raises: `CheckpointError` if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            refuse_pointer(path)
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._first = self._stat()
        with self.open() as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            self.dtypes = {name: str(each.get_dtype()) for name, each in slices.items()}

    def open(self) -> Any:
        """The file for reading, a context manager.  Raises `CheckpointChanged` as `check`."""
        self.check()
        name = f"/dev/fd/{self._descriptor}"  # its path may name another file by now
        try:
            return safe_open(name if os.path.exists(name) else self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or not a safetensors file ({error}); download it again"
            ) from error

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, as a view of the file.  The file is mapped anew for it: once the view is freed,
        the memory of what was read through it is free, too."""
        with self.open() as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor

    def check(self) -> None:
        """Raises `CheckpointChanged` if the file was written to since it was opened."""
        if self._stat() != self._first:
            raise CheckpointChanged(
                f"{self.path} was overwritten while it was in use, and the weights in memory are "
                "views of that file; load the engine again. Write a new checkpoint beside the old "
                "one and rename it into place: running engines then keep the file that they have"
            )

    def _stat(self) -> tuple[int, int]:
        """The length in bytes of the file that is open, and when it was last written to."""
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns


def open_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorFile]:
    """Opens the files of a folder, see `weight_files`: a tensor's name -> the file that holds it.

    Args:
        config: what the folder's ``config.json`` says.

    Raises:
        CheckpointError: files are absent, damaged, contradict each other, or are quantised.
    """
    tensors: dict[str, TensorFile] = {}
    problems = []
    files = {path.name: TensorFile(path) for path in weight_files(folder)}
    for file in files.values():
        for name in file.shapes:
            if name in tensors:
                problems.append(f"{tensors[name].path.name} and {file.path.name} both hold {name}")
            tensors[name] = file
    if WHOLE not in files and (folder / INDEX).is_file():
        for name, its in weight_map(folder).items():
            if name not in files[its].shapes:
                problems.append(f"{its} lacks {name}, which {INDEX} says it holds")
    if problems:
        raise CheckpointError(
            f"{folder}: the files of weights contradict each other: {listed(problems)}; download "
            "them again"
        )
    if not tensors:
        raise CheckpointError(f"{folder} holds no weights: its files of weights have no tensors")
    _refuse_quantised(folder, config, tensors)
    return tensors


def _refuse_quantised(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorFile]
) -> None:
    dtypes = {file.dtypes[name] for name, file in tensors.items()} - set(DTYPES)
    makers = [QUANTISED[end] for name in tensors if (end := name.rpartition(".")[2]) in QUANTISED]
    if not dtypes and not makers:
        return
    settings = config.get("quantization_config")
    maker = settings.get("quant_method") if isinstance(settings, dict) else None
    maker = maker or next(iter(makers), "an unknown tool")
    words = {"F": "float", "I": "int", "U": "uint"}
    kinds = [re.sub(r"^[A-Z]", lambda m: words.get(m[0], m[0]), kind) for kind in sorted(dtypes)]
    raise CheckpointError(
        f"{folder} holds quantised weights ({' and '.join(kinds) or 'scaled'} by {maker}); "
        "pyrerank runs float32, float16 and bfloat16: give the checkpoint that they were made of"
    )


def listed(problems: Sequence[str]) -> str:
    """The first eight problems, and how many there are beside them."""
    more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
    return "; ".join(problems[:8]) + more
