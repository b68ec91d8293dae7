"""The shapes of the decoder and of the vision tower, read from ``config.json``.

A setting that pyrerank does not follow is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrerank.errors import CheckpointError
from pyrerank.weights.find import optional_json

# The settings of a decoder that change its result, and their only values that pyrerank runs.
DECODER: dict[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "layer_types": ["full_attention"],
    "is_causal": True,
    "use_bidirectional_attention": False,
    "rope type": "default",
    "mrope_interleaved": True,
}

# The vision towers of all published models have these in common.
PATCH = 16  # pixels, each way
MERGE = 2  # patches that become one row of the decoder, each way
PAIR = 2  # frames of a patch
CHANNELS = 3
# Published files do not say these two; they are the defaults of transformers.
ROPE_THETA = 10000.0
NORM_EPS = 1e-6

# The settings of a preprocessor that change pixels, and their values in pyrerank.  Limits of sizes
# are not among them: pictures have the sizes of the published scripts.
PIXELS: dict[str, object] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "resample": 3,  # bicubic
    "image_mean": [0.5] * CHANNELS,
    "image_std": [0.5] * CHANNELS,
    "patch_size": PATCH,
    "temporal_patch_size": PAIR,
    "merge_size": MERGE,
}


def check_setting(
    file: object,
    key: str,
    value: object,
    known: Collection[object],
    remedy: str = ", which pyrerank does not follow",
) -> None:
    """Raises `CheckpointError` if a file sets ``key`` to a value that is not among ``known``."""
    if value not in known:
        raise CheckpointError(f"{file} sets {key} to {value!r}{remedy}")


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of the Qwen3 decoder, in the words of ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]

    @classmethod
    def read(cls, path: Path, family: str, text: Mapping[str, Any]) -> DecoderConfig:
        """Reads ``text``, which is the decoder's part of the folder's ``config.json``.  Raises
        `CheckpointError` if a field is absent, or asks for what pyrerank does not run."""
        # transformers 5 keeps in rope_parameters what earlier files spread over two keys; where
        # rope_scaling is there as well, it counts
        rope = {**(text.get("rope_parameters") or {}), **(text.get("rope_scaling") or {})}
        given = dict(text) | {
            "layer_types": sorted(set(text.get("layer_types") or ())) or None,
            "rope type": rope.get("rope_type", rope.get("type")),
            "mrope_interleaved": rope.get("mrope_interleaved"),
        }
        for key, want in DECODER.items():
            only = f"; pyrerank supports only {want!r}"
            check_setting(f"{path}: config.json", key, given.get(key), (None, want), only)
        values = dict(text, rope_theta=rope.get("rope_theta", text.get("rope_theta")))
        half = (text.get("head_dim") or 0) // 2
        # a text model has one position a token; the default of a VL model is that of transformers
        default = (half, 0, 0) if family == "qwen3" else (24, 20, 20)
        values["mrope_section"] = section = tuple(rope.get("mrope_section", default))
        fields = cls.__dataclass_fields__
        missing = [key for key in fields if values.get(key) is None]
        if missing:
            raise CheckpointError(f"{path}: config.json lacks {', '.join(missing)}")
        if len(section) != 3 or sum(section) != half:
            raise CheckpointError(
                f"{path}: mrope_section must be three numbers that add up to {half}, half of "
                f"head_dim, got {list(section)}"
            )
        return cls(**{key: values[key] for key in fields})


@dataclass(frozen=True)
class VisionConfig:
    """The shape of the vision tower, in the words of ``vision_config`` in ``config.json``."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def side(self) -> int:
        """The learned positions are a table of side x side."""
        return math.isqrt(self.num_position_embeddings)

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any], decoder: DecoderConfig) -> VisionConfig:
        """Reads ``settings``, which is all of the folder's ``config.json``.  Raises
        `CheckpointError` if a field is absent, or the folder asks for another tower or other
        pixels."""
        values = settings.get("vision_config")
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: config.json has no vision_config")
        levels: Any = values.get("deepstack_visual_indexes")
        sizes = cls.__dataclass_fields__.keys() - {"deepstack_visual_indexes"}
        numbers: dict[str, Any] = {key: values.get(key) for key in sorted(sizes)}
        problems = [
            f"{key} must be a positive whole number, got {value!r}"
            for key, value in numbers.items()
            if not isinstance(value, int) or value < 1
        ]
        if not isinstance(levels, list):
            problems.append(f"deepstack_visual_indexes must be a list, got {levels!r}")
        if not problems:
            config = cls(deepstack_visual_indexes=tuple(levels), **numbers)
            problems = list(config._unsupported(values, decoder))
        problems += [
            f"{key} must be {want!r}, got {preprocessor[key]!r} in {file}"
            for file, preprocessor in _preprocessors(path).items()
            for key, want in PIXELS.items()
            if preprocessor.get(key) not in (None, want)
        ]
        if problems:
            raise CheckpointError(
                f"{path}: pyrerank does not read pictures as this folder asks: "
                f"{'; '.join(problems)}"
            )
        return config

    def _unsupported(self, values: Mapping[str, Any], decoder: DecoderConfig) -> Iterator[str]:
        rope = values.get("rope_parameters") or {}
        for key, got, want in (
            ("hidden_act", values.get("hidden_act"), "gelu_pytorch_tanh"),
            ("patch_size", values.get("patch_size"), PATCH),
            ("temporal_patch_size", values.get("temporal_patch_size"), PAIR),
            ("spatial_merge_size", values.get("spatial_merge_size"), MERGE),
            ("out_hidden_size", self.out_hidden_size, decoder.hidden_size),
            ("in_channels", values.get("in_channels", CHANNELS), CHANNELS),
            ("rope_type", rope.get("rope_type", "axial"), "axial"),
            ("rope_theta", rope.get("rope_theta", ROPE_THETA), ROPE_THETA),
        ):
            if got != want:
                yield f"{key} must be {want!r}, got {got!r}"
        if self.hidden_size % (4 * self.num_heads):
            yield "hidden_size must be num_heads times a multiple of 4"
        if self.side**2 != self.num_position_embeddings:
            yield "num_position_embeddings must be a square"
        levels = list(self.deepstack_visual_indexes)
        if levels != [n for n in range(self.depth) if n in levels]:
            yield "deepstack_visual_indexes must be rising numbers below depth"
        if len(levels) > decoder.num_hidden_layers:
            yield "deepstack_visual_indexes must be no more than the decoder's layers"


def _preprocessors(path: Path) -> dict[str, dict[str, Any]]:
    """The settings of pictures' pixels that a folder has, by the names of their files."""
    names = ("preprocessor_config.json", "video_preprocessor_config.json")
    settings = {name: optional_json(path / name) for name in names}
    name = "processor_config.json"  # transformers 5 writes both into this file
    for kind in ("image_processor", "video_processor"):
        nested = optional_json(path / name).get(kind)
        settings |= {f"{name}, {kind}": nested} if isinstance(nested, dict) else {}
    return settings
