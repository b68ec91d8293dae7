"""Whole-forward graphs: a pass is captured once a bucket, and replayed with other inputs.

A batch is padded to the smallest bucket that holds it: the spare rows are one more sequence, which
no result looks at.  Inputs, features of pictures among them, are copied into static buffers; the
device replaces the lengths that attention was captured with.

All keys are gathered, whether or not they are shared, so that a bucket needs one graph.  Nothing is
left for the next pass, whose first prompt computes all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pyrerank.devices.attention import CausalAttention
from pyrerank.devices.base import Accelerator, Lengths
from pyrerank.engine.batch import MAX_SEQUENCES, SHARED_PER_TOKEN, Batch, pack, pad
from pyrerank.engine.features import Features
from pyrerank.errors import PyrerankError
from pyrerank.model.heads import Model

# Tokens of the buckets grow by a quarter of a power of two, 128, 160, 192, 224, 256, 320, ..., so
# that at most a fifth of the rows is padding, but for a batch of less than 128 tokens.
SMALLEST = 128
STEPS = 4
# What a prompt computes behind a shared prefix is rarely shorter.  More sequences would cost: the
# last layer computes a row for each.
TOKENS_PER_SEQUENCE = 16


@dataclass(frozen=True)
class Bucket:
    """Room for ``tokens`` rows in ``sequences`` prompts, with or without pictures."""

    tokens: int
    sequences: int
    vision: bool = False

    @property
    def keys(self) -> int:
        """As many as the prompts may have, and one for each that is missing."""
        return (1 + SHARED_PER_TOKEN) * self.tokens + self.sequences

    def holds(self, batch: Batch) -> bool:
        return (
            self.tokens >= batch.tokens
            and self.sequences >= len(batch.lengths)
            and SHARED_PER_TOKEN * self.tokens >= batch.shared
            and self.vision == (batch.features is not None)
        )

    def pad(self, batch: Batch) -> Batch:
        return pad(batch, self.tokens, self.sequences, self.keys)


class GraphError(PyrerankError, RuntimeError):
    """A pass that could not be captured or replayed."""


def buckets(token_budget: int) -> list[Bucket]:
    """All buckets for passes of at most ``token_budget`` tokens, smallest first."""
    sizes = [SMALLEST]
    while sizes[-1] < token_budget:
        power = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(sizes[-1] + power // STEPS)
    most = MAX_SEQUENCES - 1  # and the padding
    return [Bucket(size, min(size // TOKENS_PER_SEQUENCE, most)) for size in sizes]


class Graphs:
    """The captured passes of one engine, whose numbers ``captures`` and ``replays`` count.

    ``attend`` is their attention.  Raises `GraphError` if the device has no streams or memory left.
    """

    def __init__(
        self,
        model: Model,
        attend: CausalAttention,
        device: Accelerator,
        token_budget: int,
        features: Features | None,
    ) -> None:
        self.captures = self.replays = 0
        self.buckets = buckets(token_budget)
        self._forward = partial(model, attend=attend, prefix=model.no_prefix())
        self._device = device
        self._layers = len(model.decoder.layers)
        self._workspace = model.decoder.activation_bytes(token_budget, attend)
        self._graphs: dict[tuple[Bucket, bool], tuple[Any, torch.Tensor]] = {}
        largest = self.buckets[-1]
        # ids, positions and index of vision tokens; bounds of sequences and of keys; rows
        size = 5 * largest.tokens + 2 * (largest.sequences + 2) + largest.keys
        self._features: torch.Tensor | None = None
        try:
            self._inputs = torch.zeros(size, dtype=torch.int32, device=device.torch_device)
            if features is not None:
                self._features = features.zeros(largest.tokens)
                self.buckets += [replace(bucket, vision=True) for bucket in self.buckets]
            self._capture = device.capture(self._layers, attend)
        except RuntimeError as error:
            raise GraphError(f"no stream or no memory for graphs: {error}") from error

    def bucket(self, batch: Batch) -> Bucket | None:
        """The smallest bucket that holds the batch, or None."""
        return next((bucket for bucket in self.buckets if bucket.holds(batch)), None)

    def warmup(self, *, prune: bool) -> None:
        """Captures every bucket, the largest first, so that the others fit in its memory."""
        for bucket in reversed(self.buckets):
            self._captured(bucket, prune)

    def replay(self, batch: Batch, *, prune: bool) -> torch.Tensor | None:
        """Replays the pass for a batch on the host; None if no bucket holds it.  The rows of
        results are on the device, and valid until the next call."""
        bucket = self.bucket(batch)
        if bucket is None:
            return None
        graph, out = self._captured(bucket, prune)
        padded = bucket.pad(batch)
        # NaN is no score, should the replay drop its work silently
        out.fill_(torch.nan)
        self._inputs[: len(padded.data)].copy_(padded.data.pin_memory(), non_blocking=True)
        if batch.features is not None and self._features is not None:
            static = self._features[:, : bucket.tokens]
            rows = batch.features.shape[1]
            static[:, :rows].copy_(batch.features)
            static[:, rows:].copy_(batch.features[:, :1])  # as `pad` repeats the index
        try:
            calls: list[Lengths] = [(padded.lengths, padded.kv_lengths)] * self._layers
            if prune:
                calls[-1] = [1] * len(padded.lengths), padded.kv_lengths
            self._capture.replay(graph, calls)
        except RuntimeError as error:
            # an update that torch_npu did not finish blocks all that follow
            raise GraphError(f"bucket of {bucket.tokens} tokens: {error}") from error
        self.replays += 1
        return out[: len(batch.lengths)]

    def _captured(self, bucket: Bucket, prune: bool) -> tuple[Any, torch.Tensor]:
        key = bucket, prune
        if key not in self._graphs:
            with self._device.runtime.device(self._device.torch_device):
                self._graphs[key] = self._recorded(bucket, prune)
            self.captures += 1
        return self._graphs[key]

    def _recorded(self, bucket: Bucket, prune: bool) -> tuple[Any, torch.Tensor]:
        one_token = pack([[0]], [[(0, 1, 1)] if bucket.vision else []], [0])
        host = bucket.pad(one_token)
        features = None
        if bucket.vision and self._features is not None:
            features = self._features[:, : bucket.tokens]
        static = replace(host, data=self._inputs[: len(host.data)], features=features)
        try:
            static.data.copy_(host.data)
            if not self._graphs:
                # operators set themselves up at their first use, which no graph may hold
                self._pass(static, prune)
            self._device.synchronize()
            self._device.empty_cache()  # a graph's memory is its own: leave it what there is
            return self._capture.record(partial(self._pass, static, prune))
        except (RuntimeError, AttributeError) as error:  # the latter: an older torch_npu
            # the first error says more than the last, which is that the capture could not end
            cause = error.__context__ or error
            raise GraphError(f"bucket of {bucket.tokens} tokens: {cause}") from error

    def _pass(self, static: Batch, prune: bool) -> torch.Tensor:
        if not self._graphs:  # takes what the largest pass needs, which all graphs share
            self._device.reserve(self._workspace)
        return self._forward(static, prune=prune)
