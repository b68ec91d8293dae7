"""The Qwen3 decoder, prefill only, over packed sequences.

Module and parameter names are those of the published checkpoints.  No cache, no vocabulary head
and no final norm: `Decoder` ends with the last layer's hidden states, and the fused kernels of
`pyrerank.ops` go on from there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyrerank.attention import attend
from pyrerank.batch import Batch
from pyrerank.checkpoint import Checkpoint, DecoderConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on each head's query and key, and rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        heads = (len(x), -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), cos, sin)
        out = attend(q, k, self.v_proj(x).view(heads), lengths)
        return self.o_proj(out.flatten(1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)).mul_(self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, lengths)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers, and the weight of the final norm, which the fused tail applies.

    Attributes:
        norm: weight [hidden_size] and eps of the final norm.
        inv_freq: float32 [head_dim / 2], angle per position of each rotated pair.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.register_buffer("inv_freq", None, persistent=False)

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
        """Builds the decoder around the checkpoint's tensors, with no initialisation and no second
        copy of a weight.  Raises `CheckpointError` if a tensor is missing, extra or misshapen."""
        config = checkpoint.config
        with torch.device("meta"):
            decoder = cls(config)
        shapes = {name: weight.shape for name, weight in decoder.state_dict().items()}
        weights = dict(checkpoint.decoder_weights(shapes, device=device, dtype=dtype))
        decoder.load_state_dict(weights, assign=True)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        decoder.inv_freq = (1.0 / config.rope_theta**exponent).to(device)
        return decoder.requires_grad_(False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [T, hidden_size] after the last layer, before the final norm."""
        x = self.embed_tokens(batch.ids)
        angle = batch.positions[:, None].float() * self.inv_freq  # (tokens, head_dim / 2)
        angle = torch.cat((angle, angle), -1)[:, None]  # (tokens, 1, head_dim)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, batch.lengths)
        return x


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [T, heads, head_dim], pairs (i, i + head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), -1) * sin
