"""The Qwen3-VL vision tower: from resized pictures to the rows that stand for them in a prompt.

Module and parameter names are those of the published checkpoints under ``model.visual.``.  Pictures
of all sizes are packed end to end; a picture, or a pair of frames of a video, attends to itself
only.  `pyrerank.model.patches` says what a grid is, and in which order patches and rows lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyrerank.devices.base import Device
from pyrerank.model.linear import Float, Linear, load
from pyrerank.model.patches import Grid, block_order
from pyrerank.weights.checkpoint import Checkpoint
from pyrerank.weights.config import CHANNELS, MERGE, NORM_EPS, PAIR, PATCH, ROPE_THETA, VisionConfig


class Attention(nn.Module):
    """Full attention within each picture or pair of frames, with 2-D rotary positions."""

    def __init__(self, config: VisionConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        self.device = device
        self.heads, self.head_dim = config.num_heads, config.head_dim
        hidden = config.hidden_size
        self.qkv = Linear(device, scheme, hidden, 3 * hidden, bias=True)
        self.proj = Linear(device, scheme, hidden, hidden, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (patches, 3 heads, head_dim)
        q, k, v = qkv.split(self.heads, dim=1)
        # in float32, as the published model does it in any dtype
        q, k = self.device.rotate(q, cos, sin), self.device.rotate(k, cos, sin)
        v = v.contiguous()
        del qkv
        return self.proj(self.device.full_attention(q, k, v, lengths).flatten(1))


class MLP(nn.Module):
    """Two linear layers about GELU in its tanh form."""

    def __init__(self, config: VisionConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        self.device = device
        hidden, inner = config.hidden_size, config.intermediate_size
        self.linear_fc1 = Linear(device, scheme, hidden, inner, bias=True)
        self.linear_fc2 = Linear(device, scheme, inner, hidden, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(self.device.gelu(self.linear_fc1(x), "tanh"))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to what it read, in place."""

    def __init__(self, config: VisionConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.attn = Attention(config, device, scheme)
        self.norm2 = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = MLP(config, device, scheme)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> None:
        x += self.attn(self.norm1(x), cos, sin, lengths)
        x += self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Blocks of 2 x 2 patches to rows of the decoder's width; the norm goes over a ``whole`` block,
    or over each patch of it."""

    def __init__(self, config: VisionConfig, device: Device, scheme: Float, *, whole: bool) -> None:
        super().__init__()
        self.device = device
        self.size = config.hidden_size * MERGE**2
        self.norm = nn.LayerNorm(self.size if whole else config.hidden_size, NORM_EPS)
        self.linear_fc1 = Linear(device, scheme, self.size, self.size, bias=True)
        self.linear_fc2 = Linear(device, scheme, self.size, config.out_hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.view(-1, *self.norm.normalized_shape)).view(-1, self.size)
        return self.linear_fc2(self.device.gelu(self.linear_fc1(x), "none"))


class VisionTower(nn.Module):
    """Patches to features, and to the DeepStack features of the decoder's first layers."""

    inv_freq: Tensor  # float32 [head_dim / 4], angle per position of each rotated pair of one axis

    def __init__(self, config: VisionConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        kernel = (PAIR, PATCH, PATCH)
        convolution = nn.Conv3d(CHANNELS, config.hidden_size, kernel, kernel)
        self.patch_embed = nn.ModuleDict({"proj": convolution})
        # as in the decoder
        table = torch.empty(config.num_position_embeddings, config.hidden_size)
        self.pos_embed = nn.Embedding.from_pretrained(table)
        self.blocks = nn.ModuleList(Block(config, device, scheme) for _ in range(config.depth))
        self.merger = Merger(config, device, scheme, whole=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(config, device, scheme, whole=True) for _ in config.deepstack_visual_indexes
        )
        self._config, self.device = config, device

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: Device, dtype: torch.dtype) -> VisionTower:
        """Builds the tower as `Decoder.load` does the decoder; raises `CheckpointError` as well if
        ``config.json`` describes no tower that pyrerank runs."""
        config = checkpoint.vision_config()
        with torch.device("meta"):
            tower = cls(config, device, Float())
        load(tower, partial(checkpoint.weights, dtype=dtype, vision=True), device)
        exponent = torch.arange(0, config.head_dim // 2, 2, dtype=torch.float32)
        inv_freq = 1.0 / ROPE_THETA ** (exponent / (config.head_dim // 2))
        tower.inv_freq = inv_freq.to(device.torch_device)
        return tower

    def activation_bytes(self, patches: int) -> int:
        """Device memory of a pass over ``patches`` rows, besides the weights.

        There are x, its norm, cos and sin, the DeepStack features, and at most one of: what goes
        into GELU and what comes out; query, key and value on their way into attention in float32;
        in 16 bit, all of these again and the result twice, with padded heads.  A tenth more fills
        gaps, as in the decoder.
        """
        config = self._config
        dtype = self.pos_embed.weight.dtype
        hidden = config.hidden_size
        inner = max(2 * config.intermediate_size, 8 * hidden)
        angles = 2 * config.head_dim
        if dtype != torch.float32:
            padded = config.num_heads * self.device.padded_head_dim(config.head_dim)
            inner = max(inner, 3 * hidden + 5 * padded)
            angles *= 2  # they are float32
        levels = len(config.deepstack_visual_indexes) * config.out_hidden_size // MERGE**2
        numbers = 2 * hidden + inner + angles + levels
        return patches * numbers * 11 // 10 * dtype.itemsize

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Encodes images and videos in one pass.

        ``patches`` are [n, 1536] of any floating dtype, and ``grids`` (t, h, w) of each picture.
        Returns [1 + levels, n / 4, hidden_size of the decoder] in the dtype of the tower: features,
        then the DeepStack features of each level.
        """
        assert len(patches) == sum(map(math.prod, grids)) > 0, (patches.shape, grids)
        weight = self.pos_embed.weight
        # the step of the published convolution is its kernel, so that it is a linear layer
        kernel, bias = self.patch_embed.parameters()
        x = patches.to(weight.dtype).to(weight.device)
        x = self.device.linear(x, kernel.flatten(1), bias)
        x = x + self._learned_positions(grids).to(weight.dtype)
        places = torch.cat([block_order(h, w).repeat(t, 1) for t, h, w in grids])
        angle = (places.to(weight.device)[..., None] * self.inv_freq).flatten(1)
        angle = torch.cat((angle, angle), -1)[:, None]  # (patches, 1, head_dim)
        cos, sin = angle.cos(), angle.sin()
        del angle
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        levels = []
        mergers = iter(self.deepstack_merger_list)
        for number, block in enumerate(self.blocks):
            block(x, cos, sin, lengths)
            if number in self._config.deepstack_visual_indexes:
                levels.append(next(mergers)(x))
        return torch.stack((self.merger(x), *levels))

    def _learned_positions(self, grids: Sequence[Grid]) -> Tensor:
        """float32 [n, hidden_size]: the table stretched over each grid, corner on corner, by
        bilinear interpolation."""
        side = self._config.side
        rows = []  # of a float32 tensor: four rows of the table, four weights
        for t, h, w in grids:
            # y and x in the table, (h w, 2)
            at = block_order(h, w) * (side - 1) / torch.tensor([h - 1, w - 1])
            low = at.floor()
            high = (low + 1).clamp(max=side - 1)
            (y0, x0), (y1, x1), (y, x) = low.T, high.T, (at - low).T
            corners = (y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1)
            shares = ((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x)
            rows.append(torch.stack((*corners, *shares)).repeat(1, t))
        index, weight = torch.cat(rows, 1).to(self.inv_freq.device).split(4)
        out = self.inv_freq.new_zeros(index.shape[1], self._config.hidden_size)
        for corner, share in zip(index.int(), weight, strict=True):
            out += self.pos_embed(corner).float() * share[:, None]
        return out
