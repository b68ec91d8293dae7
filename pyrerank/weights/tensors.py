"""Tensors are read from safetensors files, and used where they lie, as views of the mapped file.

A file that changes while it is used is an error.
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

    ``shapes`` and ``dtypes``, in the words of safetensors ("BF16"), are those of its tensors, by
    name.  `CheckpointError` is raised if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            refuse_pointer(path)
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self._first = state(self._descriptor)
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
        """A view of the file, which is mapped anew for it: the memory of what was read through the
        view is free once the view is."""
        with self.open() as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor

    def check(self) -> None:
        """Raises `CheckpointChanged` if the file was written to since it was opened."""
        if state(self._descriptor) != self._first:
            raise CheckpointChanged(
                f"{self.path} was overwritten while it was in use, and the weights in memory are "
                "views of that file; load the engine again. Write a new checkpoint beside the old "
                "one and rename it into place: running engines then keep the file that they have"
            )


def state(file: Path | int) -> tuple[int, int, int]:
    """Tells a file from a later one at its path: length, time of the last write, and inode."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino


def open_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorFile]:
    """Opens the `weight_files` of a folder: a tensor's name -> the file that holds it.  Raises
    `CheckpointError` if files are absent, damaged, contradict each other, or are quantised."""
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
    what = f"{folder}: the files of weights contradict each other:"
    refuse(what, problems, "; download them again")
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


def refuse(what: str, problems: Sequence[str], remedy: str = "") -> None:
    """Raises `CheckpointError` if there are problems; its message has the first eight of them."""
    if problems:
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise CheckpointError(f"{what} {'; '.join(problems[:8])}{more}{remedy}")
