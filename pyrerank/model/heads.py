"""Heads turn hidden states into rows of results, one a prompt; a `Model` is a decoder with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """From hidden states, before the final norm, to rows of results, one a sequence."""

    @property
    def every_token(self) -> bool:
        """Whether the head wants the hidden states of all tokens, [T, hidden_size], and not those
        of last tokens, [B, hidden_size].  Then a prompt computes all of its tokens."""

    def __call__(self, hidden: Tensor, cu_seqlens: Tensor, norm: RMSNorm) -> Tensor:
        """Rows of results, [B, N], of sequences that start at ``cu_seqlens``, int32 [B + 1]."""


@dataclass(frozen=True)
class ScoreHead:
    """Scores pairs by the classifier vector ``w``, float32 [hidden_size], and ``bias``."""

    w: Tensor
    bias: float
    every_token: bool = False

    def __call__(self, hidden: Tensor, cu_seqlens: Tensor, norm: RMSNorm) -> Tensor:
        """Score and logit of each sequence, float32 [B, 2]."""
        rows = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
        weight = norm.weight.to(hidden.dtype)
        return torch.stack(ops.score_head(hidden, rows, weight, norm.eps, self.w, self.bias), dim=1)


@dataclass(frozen=True)
class PoolHead:
    """Applies the final norm, pooling, and the ``steps`` after it, for which everything is float32.
    A last scaling to length 1 is left out: one pass may serve calls that want different vectors."""

    pooling: str
    steps: tuple[DenseLayer | None, ...]

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device) -> PoolHead:
        """Makes the head that the folder asks for; raises `CheckpointError` as `DenseLayer`."""
        modules = checkpoint.modules
        steps: list[DenseLayer | None] = []
        size = checkpoint.config.hidden_size
        for step in modules.steps[:-1] if modules.normalizes else modules.steps:
            steps.append(None if step is None else DenseLayer(step, size, device))
            size = size if step is None else step.outputs
        return cls(modules.pooling, tuple(steps))

    @property
    def every_token(self) -> bool:
        return self.pooling != "last"

    def __call__(self, hidden: Tensor, cu_seqlens: Tensor, norm: RMSNorm) -> Tensor:
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


class DenseLayer:
    """A `Dense` with its weights, float32.  Raises `CheckpointError` if a tensor is absent or of
    another shape, or the layer does not take ``inputs`` numbers."""

    def __init__(self, dense: Dense, inputs: int, device: torch.device) -> None:
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
        self._activation = getattr(torch.nn, dense.activation)()
        self._weight = tensors["linear.weight"]
        self._bias = tensors.get("linear.bias")
        self._adds, self._residual = dense.residual, tensors.get("residual.weight")

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [B, outputs], of x, float32 [B, inputs]."""
        out: Tensor = self._activation(F.linear(x, self._weight, self._bias))
        if self._residual is not None:
            x = F.linear(x, self._residual)
        return out + x if self._adds else out


@dataclass(frozen=True)
class Model:
    """Decoder and head, from a batch to rows of results; see `Decoder.forward`."""

    decoder: Decoder
    head: Head

    def __call__(
        self, batch: Batch, attend: CausalAttention, prefix: Prefix, *, prune: bool
    ) -> Tensor:
        every = self.head.every_token
        hidden = self.decoder(batch, attend, prefix, prune=prune and not every, every_token=every)
        return self.head(hidden, batch.cu_seqlens, self.decoder.norm)

    def no_prefix(self) -> Prefix:
        """For a pass that nothing came before."""
        return Prefix(len(self.decoder.layers))
