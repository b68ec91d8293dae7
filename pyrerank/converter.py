"""``pyrerank convert``: converts a checkpoint, and scores with it before and after.

`pyrerank.weights.convert` says what is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from pyrerank.embedder import Embedder
from pyrerank.errors import CheckpointError
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.reranker import Reranker
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint
from pyrerank.weights.convert import HEADS, converting, files_beside
from pyrerank.weights.find import read_json
from pyrerank.weights.lora import merge

QUERY = "What is the capital of China?"
DOCUMENTS = (
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "Gravity attracts bodies with mass.",
)
# The largest difference that is allowed; it is 0 where the same numbers take the same steps.
BOUND = 1e-5


@dataclass(frozen=True)
class Converted:
    """What was written, and how far its results are from those before."""

    architecture: str  # in the words of config.json
    files: int  # number of files of weights
    compared: str  # what was computed before and after: "logits of 3 pairs"
    difference: float  # the largest between two numbers of these, at most 1e-5


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    merge_lora: str | os.PathLike[str] | None = None,
) -> Converted:
    """Writes the reranker ``source`` to the new folder ``target`` as a one-label classifier; or an
    embedder, with an adapter merged into it, in the form that it has.

    The folder appears when all of it is on the disk and was checked: ``source`` and what was
    written score the same sample pairs, or embed the same texts, on the CPU, in bfloat16 where the
    weights are, else in float32.  Writing takes the memory of a file of weights, 5 GB at most.

    Args:
        source: folder or hub name, as for `Reranker`.
        target: a folder that does not exist, in one that does.
        merge_lora: folder of an adapter to merge, in PEFT's format.  With one, ``source`` may be a
            classifier already, or an embedder.

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
    checkpoint = base = open_checkpoint(source)
    beside = files_beside(base.path)
    embedder = base.task == "embed"
    if merge_lora is not None:
        checkpoint = merge(base, merge_lora)
        settings = read_json(Path(merge_lora).expanduser() / "adapter_config.json")
        embedder |= settings.get("task_type") == "FEATURE_EXTRACTION" and not base.classifier
    elif embedder:
        raise CheckpointError(
            f"{base.path} is published for embedding; only a reranker has a score to convert. With "
            "an adapter, give --merge-lora"
        )
    elif base.classifier:
        raise CheckpointError(
            f"{base.path} is a one-label classifier already ({base.architecture}); load it as it is"
        )
    w = None if embedder else _vector(checkpoint)
    name = next(name for name in base.tensors if name not in HEADS)
    stored = base.tensors[name].dtypes[name]
    dtype = torch.bfloat16 if stored == "BF16" else torch.float32
    before = _results(checkpoint, embedder, dtype)
    kind = "vectors" if embedder else "logits"
    with converting(base, checkpoint, beside, w, target) as (written, files):
        after = _results(written, embedder, dtype)
        difference = max(abs(b - a) for b, a in zip(before, after, strict=True))
        if not difference <= BOUND:
            raise CheckpointError(
                f"{base.path} converted does not score as before: the {kind} {before[:4]} became "
                f"{after[:4]}; nothing was kept. Check the disk, and report this"
            )
    compared = f"{kind} of {len(_documents(base))} {'inputs' if embedder else 'pairs'}"
    return Converted(written.architecture, files, compared, difference)


def _vector(checkpoint: Checkpoint) -> torch.Tensor:
    """The classifier's vector, if nothing is lost with the files of sentence-transformers."""
    asked = PairEncoder.of(checkpoint)
    plain = PairEncoder(checkpoint.tokenizer(), checkpoint.family)
    most = min(plain.max_tokens, checkpoint.max_positions)  # lower is a choice of the folder's
    same = most <= checkpoint.modules.limit(plain.max_tokens) <= plain.max_tokens
    same &= asked.default == plain.default
    if checkpoint.modules.lower_case or not same or not asked.is_published:
        raise CheckpointError(
            f"{checkpoint.path} cannot be converted: its files of sentence-transformers ask for "
            "another chat template, prompt, limit or lowercase text, and a converted folder has "
            "none of them"
        )
    return checkpoint.classifier_vector(asked.yes, asked.no)[0]


def _results(checkpoint: Checkpoint, embedder: bool, dtype: torch.dtype) -> list[float]:
    """The samples' logits, or all numbers of their vectors, computed on the CPU."""
    documents = _documents(checkpoint)
    if embedder:
        vectors = Embedder(checkpoint, device="cpu", dtype=dtype).embed(documents, progress=False)
        return [float(number) for number in vectors.ravel()]
    engine = Reranker(checkpoint, device="cpu", dtype=dtype)
    return [score.logit for score in engine.details(QUERY, documents, progress=False)]


def _documents(checkpoint: Checkpoint) -> list[object]:
    documents: list[object] = list(DOCUMENTS)
    if checkpoint.family == "qwen3-vl":
        documents.append({"image": PIL.Image.linear_gradient("L"), "text": "From black to white"})
    return documents
