"""``pyrerank convert``: a published reranker as a one-label sequence classifier, and a checkpoint
with an adapter as one without.

What is written of a reranker holds ``score.weight``, the vector w of
`Checkpoint.classifier_vector`, in place of the vocabulary's output matrix, and every other tensor
as it was, in its stored dtype.  ``score.weight`` is float32: the difference of two rows of 16 bits
needs more bits than they have, and what is lost is lost for every score.  An embedder keeps its
form.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from pyrerank.embedder import Embedder
from pyrerank.errors import CheckpointError
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.reranker import Reranker
from pyrerank.weights.checkpoint import ARCHITECTURES, Checkpoint, open_checkpoint
from pyrerank.weights.find import read_json
from pyrerank.weights.lora import merge

CLASSIFIERS = {family: name for name, (family, one_label) in ARCHITECTURES.items() if one_label}
SHARD_BYTES = 5 * 10**9
HEADS = {"lm_head.weight", "score.weight"}
# what others read beside config.json and the weights
FILES_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "additional_chat_templates/*",
    "*processor_config.json", "LICENSE*",
)  # fmt: skip
# and of an embedder, what sentence-transformers reads
FILES_OF_EMBEDDERS = (
    "config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json",
    "[0-9]*_*/*",
)  # fmt: skip
PADDING = "<|endoftext|>"  # as in the published tokenizer_config.json

QUERY = "What is the capital of China?"
DOCUMENTS = (
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "Gravity attracts bodies with mass.",
)
# of results before and after: the same numbers go through the same steps
BOUND = 1e-5


@dataclass(frozen=True)
class Converted:
    """What was written, and how far its results are from those before.

    Attributes:
        architecture: in the words of ``config.json``.
        files: of weights.
        compared: what was computed before and after: "logits of 3 pairs".
        difference: the largest between two numbers of these, at most `BOUND`.
    """

    architecture: str
    files: int
    compared: str
    difference: float


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    merge_lora: str | os.PathLike[str] | None = None,
) -> Converted:
    """Writes the reranker ``source`` to the new folder ``target`` as a one-label classifier; or an
    embedder, with an adapter merged into it, in the form that it has.

    The folder appears when all of it is on the disk and was checked: ``source`` and what was
    written score the same sample pairs, or embed the same texts, on the CPU, one after the other,
    in bfloat16 where the weights are, else in float32.  That takes the memory of scoring there;
    writing takes that of a file of weights, 5 GB at most.

    Args:
        source: folder or hub name, see `open_checkpoint`.
        target: a folder that does not exist, in one that does.
        merge_lora: folder of an adapter to merge, see `pyrerank.weights.lora.merge`; the scores
            before are then those of ``source`` with the adapter.  With an adapter, ``source`` may
            be a classifier already, or an embedder.

    Raises:
        CheckpointError: ``source`` or the adapter cannot be read, run or converted, ``source`` was
            changed meanwhile, or the check failed.
        ValueError: ``target`` exists, or the folder that it is to be in does not.
        OSError: a file could not be written.
    """
    target = Path(target).expanduser().absolute()
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; name a new folder, or remove this one first")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a folder; make it first")
    base = open_checkpoint(source)
    beside = _beside(base.path)
    embedder = base.task == "embed"
    if embedder and merge_lora is None:
        raise CheckpointError(
            f"{base.path} is published for embedding; only a reranker has a score to convert. With "
            "an adapter, give --merge-lora"
        )
    if base.classifier and merge_lora is None:
        raise CheckpointError(
            f"{base.path} is a one-label classifier already ({base.architecture}); load it as it is"
        )
    checkpoint = base
    if merge_lora is not None:
        checkpoint = merge(base, merge_lora)
        settings = read_json(Path(merge_lora).expanduser() / "adapter_config.json")
        embedder |= settings.get("task_type") == "FEATURE_EXTRACTION" and not base.classifier
    kept = [name for name in base.tensors if embedder or name not in HEADS]
    dtype = torch.bfloat16 if base.tensors[kept[0]].dtypes[kept[0]] == "BF16" else torch.float32
    results, kind = (_vectors, "vectors") if embedder else (_logits, "logits")
    before = results(checkpoint, dtype)
    with _appearing(target) as folder:
        added: dict[str, torch.Tensor] = {}
        if not embedder:
            tokenizer = checkpoint.tokenizer()
            encoder = PairEncoder.of(checkpoint)
            _check_sayable(checkpoint, encoder, PairEncoder(tokenizer, checkpoint.family))
            w, _ = checkpoint.classifier_vector(encoder.yes, encoder.no)
            added["score.weight"] = w[None]
        files = _write_weights(checkpoint, kept, added, folder)
        _copy(beside, base.path, folder, FILES_OF_EMBEDDERS if embedder else ())
        if not embedder:
            config = _config(checkpoint, tokenizer.token_to_id(PADDING))
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        _check_same(base, beside)
        written = open_checkpoint(folder)
        after = results(written, dtype)
        difference = max(abs(b - a) for b, a in zip(before, after, strict=True))
        if not difference <= BOUND:
            raise CheckpointError(
                f"{base.path} converted does not score as before: the {kind} {before[:4]} became "
                f"{after[:4]}; nothing was kept. Check the disk, and report this"
            )
    number = len(_documents(checkpoint))
    compared = f"{kind} of {number} {'inputs' if embedder else 'pairs'}"
    return Converted(written.architecture, files, compared, difference)


def _check_sayable(checkpoint: Checkpoint, asked: PairEncoder, plain: PairEncoder) -> None:
    """Refuses prompts that a folder without files of sentence-transformers has no place for."""
    most = min(plain.max_tokens, checkpoint.max_positions)  # lower is a choice of the folder's
    same = most <= checkpoint.modules.limit(plain.max_tokens) <= plain.max_tokens
    same &= asked.default == plain.default
    if checkpoint.modules.lower_case or not same or not asked.is_published:
        raise CheckpointError(
            f"{checkpoint.path} cannot be converted: its files of sentence-transformers ask for "
            "another chat template, prompt, limit or lowercase text, and a converted folder has "
            "none of them"
        )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that becomes ``target`` at the end, when all of it is on the
    disk, or, if anything is raised, is removed."""
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
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(
    checkpoint: Checkpoint, kept: list[str], added: Mapping[str, torch.Tensor], folder: Path
) -> int:
    """Writes the checkpoint's tensors ``kept``, and those of ``added``.

    Returns:
        The number of files; of several there is an index, too.
    """
    sizes = {name: checkpoint.tensor(name).nbytes for name in kept}
    sizes |= {name: tensor.nbytes for name, tensor in added.items()}
    shards = _shards(sizes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(tqdm(shards, unit="file", disable=None, delay=1, leave=False)):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        tensors = {
            name: added[name] if name in added else checkpoint.tensor(name) for name in names
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


# Of a file: its length, when it was last written to, and which one it is.
State = tuple[int, int, int]


def _beside(source: Path) -> dict[Path, State]:
    """The files that a conversion reads besides the weights, as they are now."""
    files = {path for p in FILES_BESIDE + FILES_OF_EMBEDDERS for path in source.glob(p)}
    return {path: _state(path) for path in files if path.is_file()}


def _state(path: Path) -> State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _copy(beside: Iterable[Path], source: Path, folder: Path, more: tuple[str, ...]) -> None:
    """Copies those files that belong to what is written."""
    wanted = {path for pattern in FILES_BESIDE + more for path in source.glob(pattern)}
    for file in wanted.intersection(beside):
        copied = folder / file.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copied)


def _check_same(base: Checkpoint, beside: Mapping[Path, State]) -> None:
    """Refuses what was put together of two checkpoints."""
    for file in set(base.tensors.values()):
        file.check()
    for path, state in beside.items():
        if not path.is_file() or _state(path) != state:
            raise CheckpointError(
                f"{path} was replaced while it was converted; nothing was kept: convert it again"
            )


def _documents(checkpoint: Checkpoint) -> list[object]:
    documents: list[object] = list(DOCUMENTS)
    if checkpoint.family == "qwen3-vl":
        documents.append({"image": PIL.Image.linear_gradient("L"), "text": "From black to white"})
    return documents


def _logits(checkpoint: Checkpoint, dtype: torch.dtype) -> list[float]:
    """Of the sample pairs, by pyrerank on the CPU."""
    engine = Reranker(checkpoint, device="cpu", dtype=dtype)
    details = engine.details(QUERY, _documents(checkpoint), progress=False)
    return [score.logit for score in details]


def _vectors(checkpoint: Checkpoint, dtype: torch.dtype) -> list[float]:
    """Of the sample documents, by pyrerank on the CPU, one after the other."""
    engine = Embedder(checkpoint, device="cpu", dtype=dtype)
    vectors: list[float] = engine.embed(_documents(checkpoint), progress=False).ravel().tolist()
    return vectors
