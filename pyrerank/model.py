"""The Qwen3 decoder, prefill only, over packed sequences.

Module and parameter names are those of the published checkpoints, but for the matrices that read
the same input, which are stored as one.  No cache, no vocabulary head and no final norm: `Decoder`
ends with the last layer's hidden states, and the fused kernels of `pyrerank.ops` go on from there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyrerank.attention import Attend
from pyrerank.batch import Batch
from pyrerank.checkpoint import Checkpoint, DecoderConfig
from pyrerank.layers import add_rms_norm, rms_norm, rotate, swiglu


class RMSNorm(nn.Module):
    """Weight and eps of a norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + y, and its norm."""
        return add_rms_norm(x, y, self.weight, self.eps)


class Merged(nn.Module):
    """Linear layers of one input as one matrix, their rows one after the other.

    Attributes:
        parts: published name of each layer and its number of rows.
    """

    def __init__(self, size: int, **parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on each head's query and key, and rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv_proj = Merged(hidden, q_proj=queries, k_proj=keys, v_proj=keys)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: Batch, attend: Attend
    ) -> torch.Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q = rotate(self.q_norm(q), cos, sin)
        k = rotate(self.k_norm(k), cos, sin)
        out: torch.Tensor = self.o_proj(attend(q, k, v, batch).flatten(1))
        return out


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up_proj = Merged(hidden, gate_proj=intermediate, up_proj=intermediate)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(swiglu(self.gate_up_proj(x)))
        return out


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        batch: Batch,
        attend: Attend,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes and returns hidden states as x and what is still to be added to it, so that each
        addition goes with the norm that follows."""
        if delta is None:
            normed = self.input_layernorm(x)
        else:
            x, normed = self.input_layernorm.add(x, delta)
        delta = self.self_attn(normed, cos, sin, batch, attend)
        x, normed = self.post_attention_layernorm.add(x, delta)
        del delta
        return x, self.mlp(normed)


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
        """Builds the decoder around the checkpoint's tensors, each brought to ``device`` as it is
        read.  Raises `CheckpointError` if a tensor is missing, extra or misshapen."""
        config = checkpoint.config
        with torch.device("meta"):
            decoder = cls(config)
        places = decoder._places()
        shapes = {name: torch.Size((rows, *size)) for name, (_, _, rows, size) in places.items()}
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in checkpoint.decoder_weights(shapes, dtype=dtype):
            whole, start, rows, _ = places[name]
            shape = decoder.get_parameter(whole).shape
            if shape[0] == rows:
                weights[whole] = tensor.to(device)
                continue
            if whole not in weights:
                weights[whole] = torch.empty(shape, dtype=dtype, device=device)
            weights[whole][start : start + rows] = tensor.to(device)
        decoder.load_state_dict(weights, assign=True)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        decoder.inv_freq = (1.0 / config.rope_theta**exponent).to(device)
        return decoder.requires_grad_(False)

    def _places(self) -> dict[str, tuple[str, int, int, torch.Size]]:
        """Published name -> our parameter, first row in it, rows, and the size of a row."""
        places = {}
        for name, parameter in self.named_parameters():
            owner, _, kind = name.rpartition(".")
            module = self.get_submodule(owner)
            size = parameter.shape[1:]
            if not isinstance(module, Merged):
                places[name] = (name, 0, len(parameter), size)
                continue
            start = 0
            for part, rows in module.parts.items():
                places[f"{owner.rpartition('.')[0]}.{part}.{kind}"] = (name, start, rows, size)
                start += rows
        return places

    def forward(self, batch: Batch, attend: Attend) -> torch.Tensor:
        """Hidden states [T, hidden_size] after the last layer, before the final norm."""
        x = self.embed_tokens(batch.ids)
        angle = batch.positions[:, None].float() * self.inv_freq  # (tokens, head_dim / 2)
        angle = torch.cat((angle, angle), -1)[:, None]  # (tokens, 1, head_dim)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        del angle
        delta = None
        for layer in self.layers:
            x, delta = layer(x, delta, cos, sin, batch, attend)
        return x + delta
