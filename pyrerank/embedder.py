"""Embedding: inputs in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pyrerank.checks import check_flag, check_int, check_list
from pyrerank.engine.engine import Engine
from pyrerank.engine.loaded import Loaded
from pyrerank.errors import CheckpointError, NonFiniteScore
from pyrerank.kernels import ops
from pyrerank.media.images import Media
from pyrerank.media.reader import Reader
from pyrerank.model.decoder import RMSNorm
from pyrerank.prompts.encoder import InputEncoder
from pyrerank.prompts.items import Input, Prompt
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint
from pyrerank.weights.modules import Dense
from pyrerank.weights.tensors import TensorFile


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
    """Final norm, pooling, and what the folder has after it, but for a last scaling to length 1.

    `Embedder.result` cuts vectors and scales them, because one pass, or one captured graph, may
    serve calls that want different ones.  Without layers the head is one kernel; with layers,
    everything is float32.

    Attributes:
        pooling: mode of `ops.fused_pool`.
        steps: what follows pooling, in order: layers, and None for scaling to length 1.
    """

    pooling: str
    steps: tuple[Layer | None, ...]

    @property
    def every_token(self) -> bool:
        return self.pooling != "last"

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, norm: RMSNorm
    ) -> torch.Tensor:
        """One whole vector a sequence, [B, size], dtype of hidden, or float32 with layers."""
        weight = norm.weight.to(hidden.dtype)
        if not self.every_token:
            cu_seqlens = torch.arange(len(hidden) + 1, dtype=torch.int32, device=hidden.device)
        if self.steps:
            hidden, weight = hidden.float(), weight.float()
        pooled = ops.fused_pool(hidden, cu_seqlens, weight, norm.eps, self.pooling, normalize=False)
        for step in self.steps:
            pooled = F.normalize(pooled) if step is None else step(pooled)
        return pooled


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
        max_tokens, device, dtype, token_budget, graph, vision_cache: as for `Reranker`.

    Attributes:
        dim: numbers a vector, for calls that do not say.
        normalize: whether vectors have length 1, for calls that do not say.

    Raises: as `Reranker`.
    """

    _unit, _named = "input", "inputs[{}]"
    _encoder: InputEncoder

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint,
        *,
        dim: int | None = None,
        normalize: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_tokens: int | None = None,
        token_budget: int | None = None,
        graph: bool | None = None,
        vision_cache: int = 1 << 30,
    ) -> None:
        checkpoint = open_checkpoint(model)
        if checkpoint.task == "score":
            what = "a sequence classifier" if checkpoint.classifier else "a CrossEncoder"
            if checkpoint.settings.get("pyrerank_task"):
                what = "a reranker by training"
            raise CheckpointError(
                f"{checkpoint.path} is {what}, which scores pairs: use Reranker, or pyrerank score"
            )
        modules = checkpoint.modules
        sizes = [step.outputs for step in modules.steps if step is not None]
        self._size = sizes[-1] if sizes else checkpoint.config.hidden_size
        # a folder that cuts vectors does so after all steps, and leaves them as they are then
        self._cuts_last = modules.normalizes and bool(modules.dim) and dim is normalize is None
        self.dim = self._checked_dim(dim) or min(modules.dim or self._size, self._size)
        self.normalize = modules.normalizes
        if normalize is not None:
            self.normalize = check_flag("normalize", normalize)
        super().__init__(
            checkpoint,
            InputEncoder.of(checkpoint, max_tokens),
            lambda device: _head(checkpoint, device),
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
        dim: int | None = None,
        normalize: bool | None = None,
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
            dim, normalize: as for `Embedder`; None takes what it was made with.
            media, progress: as in `Reranker.score`.

        Returns:
            float32 [inputs, dim].

        Warns, raises: as `Reranker.score`; a vector of length 0 is a NonFiniteScore, too.
        """
        results = self.details(
            inputs,
            instruction=instruction,
            prompt_name=prompt_name,
            dim=dim,
            normalize=normalize,
            media=media,
            progress=progress,
        )
        self._warn_of_cuts(results)
        return np.stack([result.vector for result in results])

    def details(
        self,
        inputs: Sequence[Any],
        *,
        instruction: str | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        normalize: bool | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> list[Embedding]:
        """Like `embed`, with the token counts of each input."""
        if normalize is not None:
            check_flag("normalize", normalize)
        result = partial(self.result, dim=self._checked_dim(dim), normalize=normalize)
        reader = Reader(media)
        items = [
            self.input(f"inputs[{i}]", value, instruction, reader, prompt_name)
            for i, value in enumerate(check_list("inputs", inputs))
        ]
        return self.run(items, progress=progress, result=result)

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

    def result(
        self,
        prompt: Prompt,
        row: torch.Tensor,
        name: str,
        *,
        dim: int | None = None,
        normalize: bool | None = None,
    ) -> Embedding:
        self._check_finite(row, name)
        whole = row.double().numpy()
        vector = whole[: self.dim if dim is None else dim]
        length = np.linalg.norm(vector)
        if not length:
            raise NonFiniteScore(
                f"the model gave a vector of length 0 for {name} ({self.checkpoint.path}): its "
                f"first {len(vector)} numbers are 0, which is no direction; take a larger dim, or "
                "another checkpoint"
            )
        if self._cuts_last and dim is normalize is None:
            length = np.linalg.norm(whole)
        if self.normalize if normalize is None else normalize:
            vector = vector / length
        return Embedding(vector.astype(np.float32), len(prompt.ids), prompt.truncated)

    def _checked_dim(self, dim: int | None) -> int | None:
        if dim is None:
            return None
        return check_int("dim", dim, f"an int from 1 to {self._size}, or None", 1, self._size)


def embed(
    inputs: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    prompt_name: str | None = None,
    dim: int | None = None,
    normalize: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_tokens: int | None = None,
    media: Media | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Embeds inputs with the checkpoint ``model``; see `Embedder` and `Embedder.embed`.

    The checkpoint stays loaded as in `score`, beside the one that scores.
    """
    with LOADED.engine(model, device, dtype, max_tokens) as engine:
        return engine.embed(
            inputs,
            instruction=instruction,
            prompt_name=prompt_name,
            dim=dim,
            normalize=normalize,
            media=media,
            progress=progress,
        )


def numbers(vector: np.ndarray) -> list[float]:
    """The numbers of a float32 vector, with the fewest digits that tell each from its neighbours.

    JSON then says 0.1, and not 0.10000000149011612.
    """
    return [float(digits) for digits in vector.astype(str)]


def _head(checkpoint: Checkpoint, device: torch.device) -> _PoolHead:
    """What the folder asks for."""
    modules = checkpoint.modules
    steps: list[Layer | None] = []
    size = checkpoint.config.hidden_size
    for step in modules.steps:
        steps.append(None if step is None else Layer.load(step, size, device))
        size = size if step is None else step.outputs
    if modules.normalizes:
        steps.pop()
    return _PoolHead(modules.pooling, tuple(steps))


LOADED = Loaded(Embedder)
