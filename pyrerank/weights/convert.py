"""Writes a checkpoint again: a reranker as a one-label sequence classifier; an embedder, with an
adapter merged into it, in the form that it has.

A classifier holds ``score.weight``, the vector w of `Checkpoint.classifier_vector`, in place of the
vocabulary's output matrix, and every other tensor in its stored dtype.  The vector is float32: the
difference of two rows of 16 bits needs more bits than they have.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from pyrerank.errors import CheckpointError
from pyrerank.weights.checkpoint import ARCHITECTURES, Checkpoint, open_checkpoint
from pyrerank.weights.find import INDEX, WHOLE
from pyrerank.weights.tensors import state

CLASSIFIERS = {family: name for name, (family, one_label) in ARCHITECTURES.items() if one_label}
SHARD_BYTES = 5 * 10**9
HEADS = {"lm_head.weight", "score.weight"}
# other programs read these, beside config.json and the weights
FILES_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "additional_chat_templates/*",
    "*processor_config.json", "LICENSE*",
)  # fmt: skip
# sentence-transformers reads these of an embedder
FILES_OF_EMBEDDERS = (
    "config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json",
    "[0-9]*_*/*",
)  # fmt: skip
PADDING = "<|endoftext|>"  # as in the published tokenizer_config.json
State = tuple[int, int, int]  # of a file, see `state`


def files_beside(source: Path) -> dict[Path, State]:
    """The files of a folder that a conversion reads besides the weights, as they are now."""
    return {path: state(path) for path in _matching(source, FILES_BESIDE + FILES_OF_EMBEDDERS)}


@contextmanager
def converting(
    base: Checkpoint,
    checkpoint: Checkpoint,
    beside: Mapping[Path, State],
    w: torch.Tensor | None,
    target: Path,
) -> Iterator[tuple[Checkpoint, int]]:
    """Writes a checkpoint to a folder that becomes ``target`` when the block ends.

    The block gets what was written, opened, and in how many files its weights are, to compare it
    with the source.  If it raises, nothing is kept.

    Args:
        checkpoint: ``base``, or that with an adapter merged into it.
        beside: the `files_beside` of ``base``, as they were when the conversion began.
        w: float32 [hidden_size], the vector of a one-label classifier; None leaves the form, and
            the files of sentence-transformers, as they are.

    Raises:
        CheckpointError: a file of ``base`` was changed meanwhile.
        OSError: a file could not be written.
    """
    with _appearing(target) as folder:
        added = {} if w is None else {"score.weight": w[None]}
        kept = [name for name in base.tensors if w is None or name not in HEADS]
        files = _write_weights(checkpoint, kept, added, folder)
        patterns = FILES_BESIDE + (FILES_OF_EMBEDDERS if w is None else ())
        for file in _matching(base.path, patterns) & beside.keys():
            copied = folder / file.relative_to(base.path)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copied)
        if w is not None:
            _write_json(folder / "config.json", _config(checkpoint))
        for tensors in set(base.tensors.values()):
            tensors.check()
        for path, before in beside.items():
            if not path.is_file() or state(path) != before:
                raise CheckpointError(
                    f"{path} was replaced while it was converted; nothing was kept: convert it "
                    "again"
                )
        yield open_checkpoint(folder), files


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new folder that becomes ``target``, when all of it is on the disk, or else is removed."""
    folder = target.with_name(f".{target.name}.{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        # else a power cut could leave the name, and empty files behind it
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(
    checkpoint: Checkpoint, kept: list[str], added: Mapping[str, torch.Tensor], folder: Path
) -> int:
    """Writes tensors of the checkpoint and ``added`` ones; returns the number of files."""
    sizes = {name: checkpoint.tensor(name).nbytes for name in kept}
    sizes |= {name: tensor.nbytes for name, tensor in added.items()}
    shards = _shards(sizes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(tqdm(shards, unit="file", disable=None, delay=1, leave=False)):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        file = WHOLE if len(shards) == 1 else file
        tensors = {name: checkpoint.tensor(name) for name in names if name not in added}
        tensors |= {name: added[name] for name in names if name in added}
        try:
            save_file(tensors, folder / file, {"format": "pt"})
        except SafetensorError as error:  # how the library tells of a full disk
            raise OSError(f"{folder / file} could not be written: {error}") from error
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(folder / INDEX, index)
    return len(shards)


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """The names in order, cut into files of at most `SHARD_BYTES`, or of a single larger tensor."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ``config.json`` of a one-label classifier."""
    padding = checkpoint.tokenizer().token_to_id(PADDING)
    config = copy.deepcopy(dict(checkpoint.settings))
    config["architectures"] = [CLASSIFIERS[checkpoint.family]]
    # Of a VL model some programs ask config.json itself, others its text_config.  Without labels
    # both mean two; without padding, transformers refuses batches.
    for part in (config, config.get("text_config", config)):
        part["id2label"], part["label2id"] = {"0": "LABEL_0"}, {"LABEL_0": 0}
        if part.get("pad_token_id") is None:
            part["pad_token_id"] = padding
    return config


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return {path for path in found if path.is_file()}
