"""Embedding: texts in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pyrerank import ops
from pyrerank.batch import Batch
from pyrerank.checkpoint import Checkpoint, model_key, open_checkpoint
from pyrerank.engine import Engine
from pyrerank.errors import CheckpointError, NonFiniteScore
from pyrerank.inputs import EmbeddingEncoder
from pyrerank.model import RMSNorm
from pyrerank.prompt import Wording


@dataclass(frozen=True)
class _PoolHead:
    """Final norm, last token, truncation to ``dim``, L2 norm: one kernel."""

    dim: int | None
    normalize: bool

    def __call__(self, hidden: torch.Tensor, norm: RMSNorm, batch: Batch) -> torch.Tensor:
        """One vector a sequence, [B, dim], dtype of hidden."""
        return ops.fused_pool(
            hidden,
            batch.cu_seqlens,
            norm.weight,
            norm.eps,
            dim=self.dim,
            normalize=self.normalize,
        )


class Embedder(Engine):
    """A loaded embedding model.

    Args:
        model: folder or hub name of a Qwen3-Embedding or Qwen3-VL-Embedding (text inputs); see
            `open_checkpoint`.
        dim: numbers a vector, from 1 to the model's hidden_size; None keeps all.  The models are
            trained so that the first numbers alone are an embedding too (Matryoshka).
        normalize: whether vectors have length 1, after truncation to ``dim``.
        device, dtype, token_budget, graph: as for `Reranker`.

    Raises: as `Reranker`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dim: int | None = None,
        normalize: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        token_budget: int = 8192,
        graph: bool | None = None,
    ) -> None:
        checkpoint = open_checkpoint(model)
        size = checkpoint.config.hidden_size
        if dim is not None and (not isinstance(dim, int) or not 1 <= dim <= size):
            raise ValueError(f"dim must be an int from 1 to {size}, or None, got {dim!r}")
        if checkpoint.classifier:
            raise CheckpointError(
                f"{checkpoint.path} is a sequence classifier, which scores pairs: use Reranker"
            )
        self.dim = size if dim is None else dim
        self._encoder = _encoder(checkpoint)
        super().__init__(
            checkpoint,
            lambda device: _PoolHead(dim, normalize),
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            graph=graph,
        )

    def embed(
        self,
        inputs: Sequence[str],
        *,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """One vector for each input, in the order given.

        Args:
            inputs: at least one text.
            instruction: what the vectors are for.  With Qwen3-Embedding give one for queries, and
                none for documents; with Qwen3-VL-Embedding None is the default it was published
                with.
            progress: as in `Reranker.score`.

        Returns:
            float32 [inputs, dim].

        Raises:
            TypeError, ValueError: an argument of the wrong type, or a text that is not valid
                Unicode; names its index.  Nothing was embedded.
            NonFiniteScore: the weights or the arithmetic gave a NaN or an infinity.
        """
        if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Sequence):
            raise TypeError(
                f"inputs must be a list of str, got {type(inputs).__name__}; wrap a single text in "
                "a list"
            )
        if not inputs:
            raise ValueError("inputs is empty; give at least one text")
        wordings = [
            self._encoder.wording(f"inputs[{i}]", value, instruction)
            for i, value in enumerate(inputs)
        ]
        unique = list(dict.fromkeys(wordings))
        vectors: dict[Wording, np.ndarray] = {}
        passes = self.passes(self._encoder.stream(unique), len(unique), "input", progress)
        for wording, (_, row) in zip(unique, passes, strict=True):
            vector = row.float().numpy()
            if not np.isfinite(vector).all():
                raise NonFiniteScore(self._not_finite(f"inputs[{wordings.index(wording)}]"))
            vectors[wording] = vector
        return np.stack([vectors[wording] for wording in wordings])


def embed(
    inputs: Sequence[str],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    dim: int | None = None,
    normalize: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Embeds texts with the checkpoint ``model``; see `Embedder` and `Embedder.embed`.

    The checkpoint loaded last stays in memory for the next call with the same arguments.
    """
    engine = _loaded(model_key(model), dim, normalize, device, dtype)
    return engine.embed(inputs, instruction=instruction, progress=progress)


def _encoder(checkpoint: Checkpoint) -> EmbeddingEncoder:
    try:
        return EmbeddingEncoder(checkpoint.tokenizer(), checkpoint.family)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


@lru_cache(maxsize=1)
def _loaded(
    model: str,
    dim: int | None,
    normalize: bool,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> Embedder:
    return Embedder(model, dim=dim, normalize=normalize, device=device, dtype=dtype)
