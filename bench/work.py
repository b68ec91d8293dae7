"""Counts the least work that a job needs, and measures how fast a processor could do it.

Prompts form a tree: tokens that they have in common at their start are one path from its root.
Each token of the tree is computed once.  With H = hidden_size, Q = heads x head_dim, K = kv_heads x
head_dim, I = intermediate_size, L layers, a token that sees n tokens, including itself, takes

    (L - 1) (2 H (Q + 2 K) + 2 Q H + 6 H I + 4 Q n)     in all layers but the last
    4 H K                                               its key and value in the last

floating-point operations, and each prompt, of n tokens, for its last token in the last layer

    2 H Q + 2 Q H + 6 H I + 4 Q n

The vision tower, of width W, inner width V and D blocks, takes for a picture of p patches

    p (2 (3 x 2 x 16 x 16) W + D (8 W W + 4 W V)) + D 4 W p p

(p p is summed over the pairs of frames of a video) and for each of its 1 + levels mergers

    p / 4 (2 (4 W) (4 W) + 2 (4 W) H)

Norms, rotary positions, activations, sums and the score are not counted: they are small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pyrerank.devices.base import Accelerator, Device
from pyrerank.media.images import Visual
from pyrerank.media.reader import Reader
from pyrerank.prompts.encoder import InputEncoder, PairEncoder
from pyrerank.prompts.items import Prompt, pair_up
from pyrerank.weights.checkpoint import Checkpoint
from pyrerank.weights.config import (
    CHANNELS,
    MERGE,
    PAIR,
    PATCH,
    DecoderConfig,
    VisionConfig,
)

LINEAR_ROWS = 2000
SQUARE = 4096


@dataclass(frozen=True)
class Work:
    """How many tokens prompts have, how many their tree has, and its floating-point operations."""

    billed: int
    least: int
    flops: int


def encode(checkpoint: Checkpoint, job: dict[str, Any]) -> list[Prompt]:
    """Makes the prompts of a job."""
    reader, tokenizer = Reader(), checkpoint.tokenizer()
    if "inputs" in job:
        embedding = InputEncoder(tokenizer, checkpoint.family)
        inputs = [embedding.input("inputs", value, None, reader) for value in job["inputs"]]
        return embedding.encode(inputs)
    scoring = PairEncoder(tokenizer, checkpoint.family)
    contents = pair_up(job["query"], job["documents"])
    return scoring.encode([scoring.pair("documents", *pair, None, reader) for pair in contents])


def work(checkpoint: Checkpoint, prompts: list[Prompt]) -> Work:
    """The work of one call with ``prompts``, which must all be different."""
    config = checkpoint.config
    seen = list(depths(tokens(prompt) for prompt in prompts))
    flops = sum(_token(config, depth) for depth in seen)
    flops += sum(_last(config, len(prompt.ids)) for prompt in prompts)
    visuals = {visual.digest: visual for prompt in prompts for visual in prompt.visuals}
    if visuals:
        tower = checkpoint.vision_config()
        flops += sum(_picture(tower, visual) for visual in visuals.values())
    return Work(sum(len(prompt.ids) for prompt in prompts), len(seen), flops)


def tokens(prompt: Prompt) -> list[Any]:
    """Names each token: a vision token by its picture, and others by their ids."""
    out: list[Any] = list(prompt.ids)
    spans = iter(prompt.spans)
    for visual in prompt.visuals:
        for _ in range(visual.span_count):
            start, height, width = next(spans)
            out[start : start + height * width] = [visual.digest] * (height * width)
    return out


def depths(sequences: Iterable[Iterable[Any]]) -> Iterable[int]:
    """Yields the depth, from 1 on, of every node of the tree that sequences form."""
    root: dict[Any, Any] = {}
    for sequence in sequences:
        node = root
        for depth, token in enumerate(sequence, 1):
            if token not in node:
                yield depth
            node = node.setdefault(token, {})


def _sizes(config: DecoderConfig) -> tuple[int, int, int]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return config.hidden_size, heads * config.head_dim, kv_heads * config.head_dim


def _last(config: DecoderConfig, seen: int) -> int:
    """The operations of query, attention, output and MLP of a token in one layer."""
    hidden, queries, _ = _sizes(config)
    return 4 * hidden * queries + 6 * hidden * config.intermediate_size + 4 * queries * seen


def _token(config: DecoderConfig, seen: int) -> int:
    hidden, _, keys = _sizes(config)
    layers = config.num_hidden_layers
    return (layers - 1) * _last(config, seen) + layers * 4 * hidden * keys


def _picture(tower: VisionConfig, visual: Visual) -> int:
    frames, height, width, _ = visual.frames.shape
    pairs, size = max(1, frames // PAIR), height * width // PATCH**2
    hidden, whole = tower.hidden_size, tower.hidden_size * MERGE**2
    block = 8 * hidden**2 + 4 * hidden * tower.intermediate_size + 4 * hidden * size
    patch = 2 * CHANNELS * PAIR * PATCH**2 * hidden + tower.depth * block
    mergers = 1 + len(tower.deepstack_visual_indexes)
    merged = mergers * 2 * whole * (whole + tower.out_hidden_size)
    return pairs * (size * patch + size // MERGE**2 * merged)


class Peak:
    """Measures how fast the machine multiplies matrices, as often as it is asked.

    It tries two products: 2,000 rows by the largest layer of the model, and a square one of 4096.

    Args:
        config: the configuration of the model.
        seconds: about how long a measurement takes.
    """

    def __init__(
        self, config: DecoderConfig, device: Device, dtype: torch.dtype, seconds: float
    ) -> None:
        largest = (LINEAR_ROWS, config.hidden_size, 2 * config.intermediate_size)
        self._seconds = seconds
        self._device = device
        # several, because a launch costs as much as a product
        self._at_once = 20 if isinstance(device, Accelerator) else 1
        self._products = [
            (
                torch.randn(rows, inner, device=device.torch_device).to(dtype),
                torch.randn(columns, inner, device=device.torch_device).to(dtype).T,
            )
            for rows, inner, columns in (largest, (SQUARE, SQUARE, SQUARE))
        ]

    def measure(self) -> float:
        """The operations a second of the fastest of many products, at this moment."""
        best = 0.0
        for left, right in self._products:
            flops = 2 * math.prod(left.shape) * right.shape[1]
            end = time.perf_counter() + self._seconds / len(self._products)
            while time.perf_counter() < end:
                start = time.perf_counter()
                for _ in range(self._at_once):
                    torch.mm(left, right)
                self._device.synchronize()
                best = max(best, self._at_once * flops / (time.perf_counter() - start))
        return best
