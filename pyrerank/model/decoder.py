"""The Qwen3 decoder, prefill only, over packed sequences.

Module and parameter names are those of the published checkpoints, but for the matrices that read
the same input, which are stored as one.  The final norm is left to the kernels of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyrerank.devices.attention import CausalAttention
from pyrerank.devices.base import Device
from pyrerank.engine.batch import Batch
from pyrerank.engine.prefix import Prefix
from pyrerank.kernels import ops
from pyrerank.model.linear import Float, Linear, load
from pyrerank.weights.checkpoint import Checkpoint
from pyrerank.weights.config import DecoderConfig


class RMSNorm(nn.Module):
    """The weight and eps of a norm, and the device that computes it."""

    def __init__(self, device: Device, size: int, eps: float) -> None:
        super().__init__()
        self.device = device
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + delta, or x, and its norm."""
        return self.device.add_rms_norm(x, delta, self.weight, self.eps)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.device.rotate(x, cos, sin, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on each head's query and key, and rotary positions."""

    def __init__(self, config: DecoderConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        qkv = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = Linear(device, scheme, hidden, qkv)
        self.o_proj = Linear(device, scheme, queries, hidden)
        self.q_norm = RMSNorm(device, config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(device, config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: Batch,
        attend: CausalAttention,
        prefix: Prefix,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Attention's contribution to ``rows`` of x, or to all."""
        if rows is None:
            qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            del qkv
            q = self.q_norm.rotate(q, cos, sin)
        else:
            queries = self.heads * self.head_dim
            kv = self.qkv_proj(x, slice(queries, None)).unflatten(-1, (-1, self.head_dim))
            k, v = kv.chunk(2, dim=1)
            del kv
            q = self.qkv_proj(x.index_select(0, rows), slice(queries))
            q = q.unflatten(-1, (-1, self.head_dim))
            cos_q, sin_q = cos.index_select(0, rows), sin.index_select(0, rows)
            q = self.q_norm.rotate(q, cos_q, sin_q)
        k = self.k_norm.rotate(k, cos, sin)
        k, v = prefix.extend(k, v.contiguous())
        return self.o_proj(attend(q, k, v, batch).flatten(1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        self.device = device
        hidden, intermediate = config.hidden_size, config.intermediate_size
        gate_up = {"gate_proj": intermediate, "up_proj": intermediate}
        self.gate_up_proj = Linear(device, scheme, hidden, gate_up)
        self.down_proj = Linear(device, scheme, intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.device.swiglu(self.gate_up_proj(x)))


class Layer(nn.Module):
    """Attention and MLP, each with the norm before it."""

    def __init__(self, config: DecoderConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        norm = partial(RMSNorm, device, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.self_attn = Attention(config, device, scheme)
        self.post_attention_layernorm = norm()
        self.mlp = MLP(config, device, scheme)


class Decoder(nn.Module):
    """Embedding, layers, and the weight of the final norm, which a head applies."""

    inv_freq: Tensor  # float32 [head_dim / 2], angle per position of each rotated pair
    axes: Tensor  # see `interleaved_axes`

    def __init__(self, config: DecoderConfig, device: Device, scheme: Float) -> None:
        super().__init__()
        # not nn.Embedding(...), which imports the compiler to fill what has no memory
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table)
        layers = (Layer(config, device, scheme) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(device, config.hidden_size, config.rms_norm_eps)
        self._config, self.device = config, device

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: Device, dtype: torch.dtype) -> Decoder:
        """Builds the decoder around the checkpoint's tensors; raises `CheckpointError` if one is
        missing, extra or misshapen."""
        config = checkpoint.config
        with torch.device("meta"):
            decoder = cls(config, device, Float())
        load(decoder, partial(checkpoint.weights, dtype=dtype), device)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        decoder.inv_freq = (1.0 / config.rope_theta**exponent).to(device.torch_device)
        decoder.axes = interleaved_axes(config.mrope_section).to(device.torch_device)
        return decoder

    def activation_bytes(self, tokens: int, attend: CausalAttention) -> int:
        """Device memory of a pass over ``tokens`` rows, besides the weights.

        There are x, normed, cos and sin, and at most one of: gate, up and their product; query,
        result, keys and values, which may be gathered.  Two fifths more fill the gaps between
        tensors of different sizes, as measured for the published models.
        """
        config = self._config
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        most = max(3 * config.intermediate_size, 2 * queries + 2 * keys * attend.key_copies)
        numbers = (2 * config.hidden_size + most + 2 * config.head_dim) * 7 // 5
        numbers += attend.score_numbers(config.num_attention_heads)
        return tokens * numbers * self.embed_tokens.weight.element_size()

    def forward(
        self,
        batch: Batch,
        attend: CausalAttention,
        prefix: Prefix,
        *,
        prune: bool,
        every_token: bool = False,
    ) -> Tensor:
        """Hidden states [B, hidden_size] of the sequences' last tokens, before the final norm; or,
        with ``every_token``, [T, hidden_size] of all, for which ``prune`` must be off.
        They have the dtype of the weights, or float32 where the kernels of csrc/cpu run.

        The features of pictures take the place of vision tokens' embeddings, and DeepStack features
        are added to the same rows after each of the first layers.  A row of ``batch.index`` may
        come twice, with the same features.  With ``prune``, the last layer computes queries and MLP
        for last tokens only.
        """
        x = self.embed_tokens(batch.ids)
        last = batch.cu_seqlens[1:] - 1
        index = batch.index
        levels: list[Tensor] = []
        if batch.features is not None:
            index = index.long()
            features, *levels = batch.features.unbind()
            x.index_copy_(0, index, features)
        # (tokens, head_dim / 2)
        angle = batch.positions.float().index_select(0, self.axes).T * self.inv_freq
        angle = torch.cat((angle, angle), -1)[:, None]  # (tokens, 1, head_dim)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        del angle
        x = self.device.residual(x)
        # The sum of x and delta is the hidden state: each addition goes with the norm after it.
        # Names are dropped when their tensors are no longer needed, which bounds the memory.
        delta = None
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x, normed = layer.input_layernorm(x, delta)
            del delta
            rows = None
            if prune and number == len(self.layers) - 1:
                rows, batch = last, batch.last_tokens()
                x = x.index_select(0, rows)
            delta = layer.self_attn(normed, cos, sin, batch, attend, prefix, rows)
            x, normed = layer.post_attention_layernorm(x, delta)
            del delta
            delta = layer.mlp(normed)
            del normed
            if number < len(levels) and rows is None:
                # not index_add_, which would add twice to a row that comes twice
                delta.index_copy_(0, index, delta.index_select(0, index).add_(levels[number]))
        x = x if delta is None else x + delta
        return x if prune or every_token else ops.last_token_gather(x, index=last)


def interleaved_axes(mrope_section: Sequence[int]) -> Tensor:
    """int32 [head_dim / 2]: which position, of time, height and width, rotates each pair.

    Height has pairs 1, 4, 7, ..., as many as ``mrope_section`` says, width has 2, 5, 8, ....
    """
    axes = torch.zeros(sum(mrope_section), dtype=torch.int32)
    for axis in (1, 2):
        axes[axis : 3 * mrope_section[axis] : 3] = axis
    return axes
