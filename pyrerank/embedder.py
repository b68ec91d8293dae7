"""Embedding: inputs in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pyrerank import ops
from pyrerank.checkpoint import Checkpoint, model_key, open_checkpoint
from pyrerank.engine import Engine
from pyrerank.errors import CheckpointError
from pyrerank.inputs import EmbeddingEncoder, Input, Prompt, check_list
from pyrerank.media import Reader
from pyrerank.model import RMSNorm
from pyrerank.modules import Dense
from pyrerank.pictures import Media
from pyrerank.weights import TensorFile


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
    """Final norm, pooling, what the folder has after it, truncation to ``dim``, L2 norm.

    Without layers that is one kernel; with layers, everything is float32.

    Attributes:
        pooling: mode of `ops.fused_pool`.
        steps: what follows pooling, in order: layers, and None for scaling to length 1.
        dim: None: all numbers.
        normalize: whether vectors have length 1 after truncation.
    """

    pooling: str
    steps: tuple[Layer | None, ...]
    dim: int | None
    normalize: bool

    @property
    def every_token(self) -> bool:
        return self.pooling != "last"

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, norm: RMSNorm
    ) -> torch.Tensor:
        """One vector a sequence, [B, dim], dtype of hidden, or float32 with layers."""
        weight = norm.weight
        if not self.every_token:
            cu_seqlens = torch.arange(len(hidden) + 1, dtype=torch.int32, device=hidden.device)
        if not self.steps:
            return ops.fused_pool(
                *(hidden, cu_seqlens, weight, norm.eps, self.pooling, self.dim, self.normalize)
            )
        pooled = ops.fused_pool(
            *(hidden.float(), cu_seqlens, weight.float(), norm.eps, self.pooling, None, False)
        )
        for step in self.steps:
            pooled = F.normalize(pooled) if step is None else step(pooled)
        pooled = pooled[:, : self.dim]
        return F.normalize(pooled) if self.normalize else pooled


@dataclass(frozen=True)
class Layer:
    """A `Dense` with its weights, float32."""

    activation: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    adds: bool

    @classmethod
    def load(cls, dense: Dense, inputs: int, device: torch.device) -> Layer:
        """Reads the weights.

        Raises:
            CheckpointError: one is absent or of another shape, or the layer does not take
                ``inputs`` numbers.
        """
        wanted: dict[str, tuple[int, ...]] = {"linear.weight": (dense.outputs, dense.inputs)}
        if dense.bias:
            wanted["linear.bias"] = (dense.outputs,)
        if dense.residual and dense.inputs != dense.outputs:
            wanted["residual.weight"] = (dense.outputs, dense.inputs)
        file = TensorFile(dense.file)
        if file.shapes != wanted or dense.inputs != inputs:
            raise CheckpointError(
                f"{dense.file} holds {file.shapes}, its config.json asks for {wanted}, and it is "
                f"given {inputs} numbers; save the model again"
            )
        tensors = {name: file.tensor(name).clone().float().to(device) for name in wanted}
        file.check()
        activation = getattr(torch.nn, dense.activation)()
        return cls(
            activation,
            tensors["linear.weight"],
            tensors.get("linear.bias"),
            tensors.get("residual.weight"),
            dense.residual,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.activation(F.linear(x, self.weight, self.bias))
        if self.residual is not None:
            x = F.linear(x, self.residual)
        return out + x if self.adds else out


class Embedder(Engine[Input, Embedding]):
    """A loaded embedding model.

    Args:
        model: folder or hub name of a Qwen3-Embedding or Qwen3-VL-Embedding; see
            `open_checkpoint`.
        dim: numbers a vector, from 1 to as many as the model gives; None keeps all, or as many as
            the folder's ``truncate_dim`` says.  The models are trained so that the first numbers
            alone are an embedding too (Matryoshka).
        normalize: whether vectors have length 1, after truncation to ``dim``; None does as the
            folder says, which for the published models is True.
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
        normalize: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        token_budget: int | None = None,
        graph: bool | None = None,
        vision_cache: int = 1 << 30,
    ) -> None:
        checkpoint = open_checkpoint(model)
        if checkpoint.task == "score":
            what = "a sequence classifier" if checkpoint.classifier else "a CrossEncoder"
            raise CheckpointError(
                f"{checkpoint.path} is {what}, which scores pairs: use Reranker, or pyrerank score"
            )
        modules = checkpoint.modules
        sizes = [step.outputs for step in modules.steps if step is not None]
        size = sizes[-1] if sizes else checkpoint.config.hidden_size
        if dim is not None and (not isinstance(dim, int) or not 1 <= dim <= size):
            raise ValueError(f"dim must be an int from 1 to {size}, or None, got {dim!r}")
        self.dim = dim or modules.dim or size
        self.normalize = modules.normalizes if normalize is None else normalize
        super().__init__(
            checkpoint,
            _encoder(checkpoint),
            lambda device: _head(checkpoint, dim, normalize, device),
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
        prompt_name: str | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """One vector for each input, in the order given.

        Args:
            inputs: a list of at least one content, as in `Reranker.score`.
            instruction: what the vectors are for.  With Qwen3-Embedding give one for queries, and
                none for documents; with Qwen3-VL-Embedding None is the default it was published
                with.  Where the folder has a default prompt, None takes that.
            prompt_name: one of the folder's prompts, such as "query", in place of an instruction.
            media, progress: as in `Reranker.score`.

        Returns:
            float32 [inputs, dim].

        Raises: as `Reranker.score`.
        """
        check_list("inputs", inputs)
        reader = Reader(media)
        items = [
            self.input(f"inputs[{i}]", value, instruction, reader, prompt_name)
            for i, value in enumerate(inputs)
        ]
        return np.stack([result.vector for result in self.run(items, progress=progress)])

    def input(
        self,
        name: str,
        value: object,
        instruction: str | None = None,
        reader: Reader | None = None,
        prompt_name: str | None = None,
    ) -> Input:
        """Reads and validates one input for `run`; ``name`` is what error messages call it."""
        self._check_usable()
        return self._encoder.input(name, value, instruction, reader, prompt_name)

    def result(self, prompt: Prompt, row: torch.Tensor) -> Embedding:
        return Embedding(row.float().numpy(), len(prompt.ids), prompt.truncated)


def embed(
    inputs: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    dim: int | None = None,
    normalize: bool | None = None,
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
    tokenizer = checkpoint.tokenizer()
    try:
        return EmbeddingEncoder(tokenizer, checkpoint.family, checkpoint.modules)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _head(
    checkpoint: Checkpoint, dim: int | None, normalize: bool | None, device: torch.device
) -> _PoolHead:
    """What the folder asks for, with the caller's ``dim`` and ``normalize``."""
    modules = checkpoint.modules
    steps: list[Layer | None] = []
    size = checkpoint.config.hidden_size
    for step in modules.steps:
        steps.append(None if step is None else Layer.load(step, size, device))
        size = size if step is None else step.outputs
    final = modules.normalizes if normalize is None else normalize
    if normalize is None and dim is None and modules.dim is not None:
        final = False  # the folder cuts vectors after all steps, and leaves them as they are then
    elif modules.normalizes:
        steps.pop()  # what is cut later is scaled then
    return _PoolHead(modules.pooling, tuple(steps), dim or modules.dim, final)


@lru_cache(maxsize=1)
def _loaded(
    model: str,
    dim: int | None,
    normalize: bool | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> Embedder:
    return Embedder(model, dim=dim, normalize=normalize, device=device, dtype=dtype)
