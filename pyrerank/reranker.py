"""Reranking: pairs in, scores out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from pyrerank import ops
from pyrerank.batch import Batch
from pyrerank.checkpoint import Checkpoint, model_key, open_checkpoint
from pyrerank.engine import Engine
from pyrerank.errors import CheckpointError, NonFiniteScore
from pyrerank.inputs import Explanation, Pair, PromptEncoder, pair_up
from pyrerank.model import RMSNorm
from pyrerank.prompt import TEMPLATES


@dataclass(frozen=True)
class Score:
    """One pair's result.

    Attributes:
        score: probability of "yes" against "no", 0 to 1: the sigmoid of ``logit``.
        logit: float32 difference of the two logits; finer than ``score`` near 0 and 1.
        tokens: length of the whole prompt in tokens, template included.
        truncated: text tokens cut from document and query to fit the model's limit.
    """

    score: float
    logit: float
    tokens: int
    truncated: int


@dataclass(frozen=True)
class Ranked:
    """One document of a ranking: its place in the caller's list, its score, its text."""

    index: int
    score: float
    document: str


@dataclass(frozen=True)
class _ScoreHead:
    """The classifier vector w, float32 [hidden_size], and its bias."""

    w: torch.Tensor
    bias: float

    def __call__(self, hidden: torch.Tensor, norm: RMSNorm, batch: Batch) -> torch.Tensor:
        """Score and logit of each sequence, float32 [B, 2]."""
        last = batch.cu_seqlens[1:] - 1
        return torch.stack(
            ops.score_head(hidden, last, norm.weight, norm.eps, self.w, self.bias), dim=1
        )


class Reranker(Engine):
    """A loaded reranker.

    Args:
        model: folder or hub name of a Qwen3-Reranker, a Qwen3-VL-Reranker (text inputs), or a
            one-label sequence-classification checkpoint made from one; see `open_checkpoint`.
        device: ``"cpu"``, ``"npu"``, ``"npu:1"``, ``"cuda"`` or ``"cuda:1"``; None takes an NPU
            where there is one, else a CUDA device, else the CPU.  One engine a device.
        dtype: ``"float32"`` or ``"bfloat16"`` for weights and activations; None takes bfloat16,
            except on a CPU that does not multiply it natively.  Scores are float32 from the last
            hidden state on in either case.
        instruction: what counts as relevant, for calls that do not say; None takes the default
            the model was published with.
        token_budget: most tokens in one forward pass, which bounds the memory of activations; a
            single longer prompt still runs, alone.
        graph: whether passes are captured as graphs and replayed, see `pyrerank.graph`; None does
            so on an NPU.  A prompt longer than ``token_budget`` runs eagerly.

    Attributes:
        graphs: the captured passes with their counters; None where passes run eagerly.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or run.
        DeviceError: the device is not there, or its software; OutOfMemory: the weights do not fit.
        ValueError, TypeError: an argument outside what is described here.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        instruction: str | None = None,
        token_budget: int = 8192,
        graph: bool | None = None,
    ) -> None:
        checkpoint = open_checkpoint(model)
        self._encoder = _encoder(checkpoint)
        self.instruction = instruction
        w, bias = checkpoint.classifier_vector(self._encoder.yes, self._encoder.no)
        super().__init__(
            checkpoint,
            lambda device: _ScoreHead(w.to(device), bias),
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            graph=graph,
        )

    def score(
        self,
        query: str | Sequence[str],
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[float]:
        """Relevance of each document, 0 to 1, in the order given.

        Args:
            query: one query for all documents, or as many as there are documents.
            documents: at least one text; an empty string is an empty document.
            instruction: overrides the engine's for this call.
            progress: True or False shows or hides a progress bar on stderr; None shows it on a
                terminal when the call takes more than a second.

        Raises:
            TypeError, ValueError: an argument of the wrong type or length, or a text that is not
                valid Unicode; names the argument and its index.  Nothing was scored.
            NonFiniteScore: the weights or the arithmetic gave a NaN or an infinity.
        """
        return [
            result.score
            for result in self.details(query, documents, instruction=instruction, progress=progress)
        ]

    def details(
        self,
        query: str | Sequence[str],
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[Score]:
        """Like `score`, with the logit and the token counts of each pair."""
        pairs = [
            self.pair(f"documents[{i}]", q, document, instruction)
            for i, (q, document) in enumerate(pair_up(query, documents))
        ]
        return self.run(pairs, progress=progress)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[Ranked]:
        """Documents from most to least relevant; equal scores keep the order given.

        Args:
            query: one query.
            documents, instruction, progress: as in `score`.
            top_n: how many to return, at least 1; None returns all.

        Raises: as `score`.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be str, got {type(query).__name__}")
        if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
            raise ValueError(f"top_n must be a positive int or None, got {top_n!r}")
        results = self.details(query, documents, instruction=instruction, progress=progress)
        # the logit orders documents whose scores round to the same float
        order = sorted(range(len(results)), key=lambda i: -results[i].logit)[:top_n]
        return [Ranked(i, results[i].score, documents[i]) for i in order]

    def explain(self, query: str, document: str, *, instruction: str | None = None) -> Explanation:
        """The prompt that `score` runs for this pair."""
        return self._encoder.explain(self.pair("document", query, document, instruction))

    def pair(
        self, name: str, query: object, document: object, instruction: str | None = None
    ) -> Pair:
        """Validates one pair for `run`; ``name`` is what error messages call it."""
        chosen = self.instruction if instruction is None else instruction
        return self._encoder.pair(name, query, document, chosen)

    def run(self, pairs: Sequence[Pair], *, progress: bool | None = None) -> list[Score]:
        """Scores validated pairs, in order, however many there are; equal pairs are run once."""
        unique = list(dict.fromkeys(pairs))
        results: dict[Pair, Score] = {}
        passes = self.passes(self._encoder.stream(unique), len(unique), "pair", progress)
        for pair, (prompt, row) in zip(unique, passes, strict=True):
            score, logit = row.tolist()
            if not math.isfinite(logit):
                raise NonFiniteScore(self._not_finite(f"pair {pairs.index(pair)}"))
            results[pair] = Score(score, logit, len(prompt.ids), prompt.truncated)
        return [results[pair] for pair in pairs]


def score(
    query: str | Sequence[str],
    documents: Sequence[str],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool | None = None,
) -> list[float]:
    """Scores documents against a query with the checkpoint ``model``; see `Reranker.score`.

    The checkpoint loaded last stays in memory for the next call; hold a `Reranker` to have several
    or to release one.
    """
    engine = _loaded(model_key(model), device, dtype)
    return engine.score(query, documents, instruction=instruction, progress=progress)


def rank(
    query: str,
    documents: Sequence[str],
    *,
    model: str | os.PathLike[str],
    top_n: int | None = None,
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool | None = None,
) -> list[Ranked]:
    """Ranks documents with the checkpoint ``model``; see `Reranker.rank` and `score`."""
    engine = _loaded(model_key(model), device, dtype)
    return engine.rank(query, documents, top_n=top_n, instruction=instruction, progress=progress)


def explain(
    query: str, document: str, *, model: str | os.PathLike[str], instruction: str | None = None
) -> Explanation:
    """The prompt that `score` runs for this pair with the checkpoint ``model``.

    Reads the checkpoint's tokenizer, not its weights.
    """
    encoder = _encoder(open_checkpoint(model))
    return encoder.explain(encoder.pair("document", query, document, instruction))


def _encoder(checkpoint: Checkpoint) -> PromptEncoder:
    try:
        return PromptEncoder(checkpoint.tokenizer(), TEMPLATES[checkpoint.family])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


@lru_cache(maxsize=1)
def _loaded(
    model: str, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> Reranker:
    return Reranker(model, device=device, dtype=dtype)
