"""Kinds of checkpoints to convert or to merge adapters into, and the questions that they are
asked."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import torch
from published import Content
from safetensors.torch import load_file

CAT = Path(__file__).parents[1] / "data/pictures/cat.jpg"
QUERY = "What is the capital of China? 中国的首都是哪里？"
TEXTS = ["Beijing is the capital of China.", "", "Gravity attracts bodies with mass. " * 9]
TOLERANCE = 1e-5  # float32 rounding of a few layers
KINDS = ["qwen3-reranker tied", "qwen3-reranker untied", "qwen3-vl-reranker tied"]
KINDS += ["qwen3-vl-reranker untied"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def documents(kind: str) -> Iterator[tuple[object, Content]]:
    """What pyrerank takes, and what the published scripts make of it."""
    yield from zip(TEXTS, TEXTS, strict=True)
    if "vl" in kind:
        picture = PIL.Image.open(CAT)
        yield {"image": CAT, "text": "A cat"}, [picture, "A cat"]
