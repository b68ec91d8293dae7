"""Heads turn hidden states into rows of results, one a prompt; a `Model` is a decoder with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from pyrerank.devices.attention import CausalAttention
from pyrerank.engine.batch import Batch
from pyrerank.engine.prefix import Prefix
from pyrerank.errors import CheckpointError
from pyrerank.kernels import ops
from pyrerank.model.decoder import Decoder, RMSNorm
from pyrerank.weights.checkpoint import Checkpoint
from pyrerank.weights.modules import Dense
from pyrerank.weights.tensors import TensorFile


class Head(Protocol):
    """From hidden states, before the final norm, to rows of results, one a sequence.

    Attributes:
        every_token: whether the head wants the hidden states of all tokens, [T, hidden_size], and
            not those of last tokens, [B, hidden_size].  Then a prompt computes all of its tokens.
    """

    @property
    def every_token(self) -> bool: ...

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, norm: RMSNorm
    ) -> torch.Tensor:
        """Rows of results, [B, N].

        Args:
            hidden: [B, hidden_size], or [T, hidden_size] with ``every_token``.
            cu_seqlens: int32 [B + 1], where each sequence starts among the T tokens.
            norm: the final norm.
        """


@dataclass(frozen=True)
class ScoreHead:
    """Scores pairs by one vector.

    Attributes:
        w: the classifier vector, float32 [hidden_size].
        bias: is added to its product with the hidden state.
    """

    w: torch.Tensor
    bias: float
    every_token: bool = False

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, norm: RMSNorm
    ) -> torch.Tensor:
        """Score and logit of each sequence, float32 [B, 2]."""
        rows = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
        weight = norm.weight.to(hidden.dtype)
        return torch.stack(ops.score_head(hidden, rows, weight, norm.eps, self.w, self.bias), dim=1)


@dataclass(frozen=True)
class PoolHead:
    """Final norm, pooling, and what the folder has after it, but for a last scaling to length 1.

    Whoever takes the rows cuts and scales them, because one pass, or one captured graph, may serve
    calls that want different vectors.  Without layers the head is one kernel; with layers,
    everything is float32.

    Attributes:
        pooling: mode of `ops.fused_pool`.
        steps: what follows pooling, in order: layers, and None for scaling to length 1.
    """

    pooling: str
    steps: tuple[DenseLayer | None, ...]

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device) -> PoolHead:
        """Makes the head that the folder asks for.

        Raises:
            CheckpointError: as `DenseLayer.load`.
        """
        modules = checkpoint.modules
        steps: list[DenseLayer | None] = []
        size = checkpoint.config.hidden_size
        for step in modules.steps:
            steps.append(None if step is None else DenseLayer.load(step, size, device))
            size = size if step is None else step.outputs
        if modules.normalizes:
            steps.pop()
        return cls(modules.pooling, tuple(steps))

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
class DenseLayer:
    """A `Dense` with its weights, float32.

    Attributes:
        activation: what follows the product.
        weight: [outputs, inputs].
        bias: [outputs], or None.
        residual: [outputs, inputs], what the inputs go through before they are added; None: they
            are added as they are.
        adds: whether the inputs are added at all.
    """

    activation: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    adds: bool

    @classmethod
    def load(cls, dense: Dense, inputs: int, device: torch.device) -> DenseLayer:
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
        """float32 [B, outputs], of x, float32 [B, inputs]."""
        out = self.activation(F.linear(x, self.weight, self.bias))
        if self.residual is not None:
            x = F.linear(x, self.residual)
        return out + x if self.adds else out


@dataclass(frozen=True)
class Model:
    """Decoder and head: what runs on the device."""

    decoder: Decoder
    head: Head

    def __call__(
        self, batch: Batch, attend: CausalAttention, prefix: Prefix, *, prune: bool
    ) -> torch.Tensor:
        every = self.head.every_token
        hidden = self.decoder(batch, attend, prefix, prune=prune and not every, every_token=every)
        return self.head(hidden, batch.cu_seqlens, self.decoder.norm)

    def no_prefix(self) -> Prefix:
        """For a pass that nothing came before."""
        return Prefix(len(self.decoder.layers))
