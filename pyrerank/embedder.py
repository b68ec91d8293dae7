"""Embedding: inputs in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pyrerank import ops
from pyrerank.checkpoint import Checkpoint, model_key, open_checkpoint
from pyrerank.engine import Engine
from pyrerank.errors import CheckpointError
from pyrerank.inputs import EmbeddingEncoder, Input, Prompt, check_list
from pyrerank.media import Reader
from pyrerank.model import RMSNorm
from pyrerank.pictures import Media


@dataclass(frozen=True)
class Embedding:
    """One input's result.

    Attributes:
        vector: float32 [dim].
        tokens: length of the whole prompt in tokens, template included.
        truncated: text tokens cut to fit the model's limit.
    """

    vector: np.ndarray
    tokens: int
    truncated: int


@dataclass(frozen=True)
class _PoolHead:
    """Final norm, last token, truncation to ``dim``, L2 norm: one kernel."""

    dim: int | None
    normalize: bool

    def __call__(self, hidden: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """One vector a sequence, [B, dim], dtype of hidden."""
        return ops.fused_pool(
            hidden,
            torch.arange(len(hidden) + 1, dtype=torch.int32, device=hidden.device),
            norm.weight,
            norm.eps,
            dim=self.dim,
            normalize=self.normalize,
        )


class Embedder(Engine[Input, Embedding]):
    """A loaded embedding model.

    Args:
        model: folder or hub name of a Qwen3-Embedding or Qwen3-VL-Embedding; see
            `open_checkpoint`.
        dim: numbers a vector, from 1 to the model's hidden_size; None keeps all.  The models are
            trained so that the first numbers alone are an embedding too (Matryoshka).
        normalize: whether vectors have length 1, after truncation to ``dim``.
        device, dtype, token_budget, graph, vision_cache: as for `Reranker`.

    Raises: as `Reranker`.
    """

    _unit, _named = "input", "inputs[{}]"
    _encoder: EmbeddingEncoder

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint,
        *,
        dim: int | None = None,
        normalize: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        token_budget: int | None = None,
        graph: bool | None = None,
        vision_cache: int = 1 << 30,
    ) -> None:
        checkpoint = open_checkpoint(model)
        size = checkpoint.config.hidden_size
        if dim is not None and (not isinstance(dim, int) or not 1 <= dim <= size):
            raise ValueError(f"dim must be an int from 1 to {size}, or None, got {dim!r}")
        if checkpoint.classifier:
            raise CheckpointError(
                f"{checkpoint.path} is a sequence classifier, which scores pairs: use Reranker, or "
                "pyrerank score"
            )
        self.dim = size if dim is None else dim
        super().__init__(
            checkpoint,
            _encoder(checkpoint),
            lambda device: _PoolHead(dim, normalize),
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            graph=graph,
            vision_cache=vision_cache,
        )

    def embed(
        self,
        inputs: Sequence[Any],
        *,
        instruction: str | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """One vector for each input, in the order given.

        Args:
            inputs: a list of at least one content, as in `Reranker.score`.
            instruction: what the vectors are for.  With Qwen3-Embedding give one for queries, and
                none for documents; with Qwen3-VL-Embedding None is the default it was published
                with.
            media, progress: as in `Reranker.score`.

        Returns:
            float32 [inputs, dim].

        Raises: as `Reranker.score`.
        """
        check_list("inputs", inputs)
        reader = Reader(media)
        items = [
            self.input(f"inputs[{i}]", value, instruction, reader) for i, value in enumerate(inputs)
        ]
        return np.stack([result.vector for result in self.run(items, progress=progress)])

    def input(
        self,
        name: str,
        value: object,
        instruction: str | None = None,
        reader: Reader | None = None,
    ) -> Input:
        """Reads and validates one input for `run`; ``name`` is what error messages call it."""
        self._check_usable()
        return self._encoder.input(name, value, instruction, reader)

    def result(self, prompt: Prompt, row: torch.Tensor) -> Embedding:
        return Embedding(row.float().numpy(), len(prompt.ids), prompt.truncated)


def embed(
    inputs: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    dim: int | None = None,
    normalize: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    media: Media | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Embeds inputs with the checkpoint ``model``; see `Embedder` and `Embedder.embed`.

    The checkpoint loaded last stays in memory for the next call with the same arguments.
    """
    engine = _loaded(model_key(model), dim, normalize, device, dtype)
    return engine.embed(inputs, instruction=instruction, media=media, progress=progress)


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
