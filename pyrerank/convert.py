"""``pyrerank convert``: a published reranker as a one-label sequence classifier.

What is written holds ``score.weight``, the vector w of `Checkpoint.classifier_vector`, in place of
the vocabulary's output matrix, and every other tensor as it was, in its stored dtype.
``score.weight`` is float32: the difference of two rows of 16 bits needs more bits than they have,
and what is lost is lost for every score.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from pyrerank.checkpoint import ARCHITECTURES, Checkpoint, open_checkpoint
from pyrerank.errors import CheckpointError
from pyrerank.inputs import PromptEncoder
from pyrerank.lora import merge
from pyrerank.reranker import Reranker

CLASSIFIERS = {family: name for name, (family, one_label) in ARCHITECTURES.items() if one_label}
SHARD_BYTES = 5 * 10**9
HEADS = {"lm_head.weight", "score.weight"}
# what others read beside config.json and the weights
FILES_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "additional_chat_templates/*",
    "*processor_config.json", "LICENSE*",
)  # fmt: skip
PADDING = "<|endoftext|>"  # as in the published tokenizer_config.json

QUERY = "What is the capital of China?"
DOCUMENTS = (
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "Gravity attracts bodies with mass.",
)
# of logits before and after: the same numbers go through the same steps
BOUND = 1e-5


@dataclass(frozen=True)
class Converted:
    """What was written, and how far its logits are from those before.

    Attributes:
        architecture: in the words of ``config.json``.
        files: of weights.
        pairs: how many were scored before and after.
        difference: the largest between a pair's logits, at most `BOUND`.
    """

    architecture: str
    files: int
    pairs: int
    difference: float


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    merge_lora: str | os.PathLike[str] | None = None,
) -> Converted:
    """Writes the reranker ``source`` to the new folder ``target`` as a one-label classifier.

    The folder appears when all of it is written and was checked: ``source`` and what was written
    score the same sample pairs, on the CPU, one after the other, in bfloat16 where the weights
    are, else in float32.  That takes the memory of scoring there; writing takes that of a file of
    weights, 5 GB at most.

    Args:
        source: folder or hub name, see `open_checkpoint`.
        target: a folder that does not exist, in one that does.
        merge_lora: folder of an adapter to merge, see `pyrerank.lora.merge`; the scores before are
            then those of ``source`` with the adapter.  With an adapter, ``source`` may be a
            classifier already.

    Raises:
        CheckpointError: ``source`` or the adapter cannot be read, run or converted, or the check
            failed.
        ValueError: ``target`` exists, or the folder that it is to be in does not.
        OSError: a file could not be written.
    """
    target = Path(target).expanduser().absolute()
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; name a new folder, or remove this one first")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a folder; make it first")
    base = open_checkpoint(source)
    if (base.path / "1_Pooling").exists():  # of sentence-transformers, for embedders
        raise CheckpointError(
            f"{base.path} is published for embedding; only a reranker has a score to convert"
        )
    if base.classifier and merge_lora is None:
        raise CheckpointError(
            f"{base.path} is a one-label classifier already ({CLASSIFIERS[base.family]}); load it "
            "as it is"
        )
    checkpoint = base if merge_lora is None else merge(base, merge_lora)
    sizes = {name: base.tensor(name).nbytes for name in base.tensors if name not in HEADS}
    stored = base.tensor(next(iter(sizes))).dtype
    dtype = torch.bfloat16 if stored is torch.bfloat16 else torch.float32
    before = _logits(checkpoint, dtype)
    with _appearing(target) as folder:
        tokenizer = checkpoint.tokenizer()
        encoder = PromptEncoder(tokenizer, checkpoint.family)
        w, _ = checkpoint.classifier_vector(encoder.yes, encoder.no)
        files = _write_weights(checkpoint, sizes, w[None], folder)
        config = _config(checkpoint, tokenizer.token_to_id(PADDING))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        _copy_files_beside(checkpoint.path, folder)
        after = _logits(open_checkpoint(folder), dtype)
        difference = max(abs(b - a) for b, a in zip(before, after, strict=True))
        if difference > BOUND:
            raise CheckpointError(
                f"{base.path} converted does not score as before: the logits {before} became "
                f"{after}; nothing was kept. Check the disk, and report this"
            )
    return Converted(CLASSIFIERS[base.family], files, len(before), difference)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that becomes ``target`` at the end, or, if anything is raised,
    is removed."""
    folder = target.with_name(f".{target.name}.{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _write_weights(
    checkpoint: Checkpoint, sizes: Mapping[str, int], score: torch.Tensor, folder: Path
) -> int:
    """Writes the tensors that ``sizes`` names, of so many bytes, and ``score.weight``.

    Returns:
        The number of files; of several there is an index, too.
    """
    sizes = {**sizes, "score.weight": score.nbytes}
    shards = _shards(sizes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(tqdm(shards, unit="file", disable=None, delay=1, leave=False)):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        tensors = {
            name: score if name == "score.weight" else checkpoint.tensor(name) for name in names
        }
        try:
            save_file(tensors, folder / file, {"format": "pt"})
        except SafetensorError as error:  # how the library tells of a full disk
            raise OSError(f"{folder / file} could not be written: {error}") from error
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")
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


def _config(checkpoint: Checkpoint, padding: int | None) -> dict[str, Any]:
    config = copy.deepcopy(dict(checkpoint.settings))
    config["architectures"] = [CLASSIFIERS[checkpoint.family]]
    # Of a VL model some programs ask config.json itself, others its text_config.  Without labels
    # both mean two; without padding, transformers refuses batches.
    for part in (config, config.get("text_config", config)):
        part["id2label"], part["label2id"] = {"0": "LABEL_0"}, {"LABEL_0": 0}
        if part.get("pad_token_id") is None:
            part["pad_token_id"] = padding
    return config


def _copy_files_beside(source: Path, folder: Path) -> None:
    for pattern in FILES_BESIDE:
        for file in filter(Path.is_file, source.glob(pattern)):
            beside = folder / file.relative_to(source)
            beside.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, beside)


def _logits(checkpoint: Checkpoint, dtype: torch.dtype) -> list[float]:
    """Of the sample pairs, by pyrerank on the CPU."""
    documents: list[object] = list(DOCUMENTS)
    if checkpoint.family == "qwen3-vl":
        documents.append({"image": PIL.Image.linear_gradient("L"), "text": "From black to white"})
    engine = Reranker(checkpoint, device="cpu", dtype=dtype)
    return [score.logit for score in engine.details(QUERY, documents, progress=False)]
