"""Reads pictures and videos by the published package, called as the published scripts call it.

The package is qwen-vl-utils 0.0.14, the scripts are `src/models/qwen3_vl_reranker.py` and
`qwen3_vl_embedding.py` of github.com/QwenLM/Qwen3-VL-Embedding at 8ce3aab.  The package imports
torchvision, whose wheels want one certain torch.  It uses two of its functions here, for which
there are stand-ins: `resize`, and `read_video`, which newer releases no longer have.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

PATCH = 16
SIDE = 2 * PATCH  # of what becomes one token, in pixels
IMAGE_TOKENS = 4, 1800
# The scripts hand it on with a list of frames only, and a file of 64 frames then has up to 24,576
# tokens, more than a prompt takes: here a file is bounded as a list is.
VIDEO_TOKENS = 7680
RATE, MAX_FRAMES = 1, 64


def resize(
    frames: torch.Tensor, size: list[int], interpolation: Any, antialias: bool
) -> torch.Tensor:
    """torchvision.transforms.functional.resize of uint8 tensors [F, 3, height, width]."""
    assert frames.dtype == torch.uint8 and interpolation.value == "bicubic" and antialias
    if list(frames.shape[-2:]) == size:
        return frames
    resized = F.interpolate(
        frames.float(), size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(min=0, max=255).round().to(torch.uint8)


def read_video(path: str, **_: Any) -> tuple[torch.Tensor, None, dict[str, float]]:
    """torchvision.io.read_video: all frames, uint8 [F, 3, height, width], and their rate."""
    with av.open(path.removeprefix("file://")) as file:
        rate = float(file.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), None, {"video_fps": rate}


def _package() -> Any:
    """`qwen_vl_utils.vision_process`, with the stand-ins for torchvision."""
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vision, io, transforms = modules.values()
    vision.__version__, vision.io, vision.transforms = "0.21.0", io, transforms  # type: ignore[attr-defined]
    io.read_video = read_video  # type: ignore[attr-defined]
    transforms.functional = ModuleType("functional")  # type: ignore[attr-defined]
    transforms.functional.resize = resize
    transforms.InterpolationMode = Enum("InterpolationMode", {"BICUBIC": "bicubic"})  # type: ignore[attr-defined]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(modules)
    try:
        from qwen_vl_utils import vision_process
    finally:  # others ask whether torchvision is there
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)
    vision_process.FORCE_QWENVL_VIDEO_READER = "torchvision"
    return vision_process


package = _package()


def resized(picture: PIL.Image.Image | str, most: int = IMAGE_TOKENS[1]) -> np.ndarray:
    """An image's pixels, uint8 [height, width, 3], for 4 to ``most`` tokens.

    Raises: ValueError, for a picture that the package refuses.
    """
    limits = {"min_pixels": IMAGE_TOKENS[0] * SIDE**2, "max_pixels": most * SIDE**2}
    return np.array(package.fetch_image({"image": picture, **limits}, PATCH))


@dataclass(frozen=True)
class Clip:
    """A video: resized frames, uint8 [F, height, width, 3], and the mean second of each pair."""

    frames: np.ndarray
    seconds: list[float]

    @classmethod
    def of_pictures(cls, pictures: Sequence[PIL.Image.Image | str]) -> "Clip":
        """Of a list of frames: pictures, or paths of them.  Raises: as `resized`."""
        picked = list(pictures)
        if len(picked) > MAX_FRAMES:
            indices = np.linspace(0, len(picked) - 1, MAX_FRAMES, dtype=int).tolist()
            picked = [picked[i] for i in indices]
        return cls._fetched({"video": picked})

    @classmethod
    def of_file(cls, path: Path) -> "Clip":
        """Of a file."""
        return cls._fetched({"video": f"file://{path}", "fps": RATE, "max_frames": MAX_FRAMES})

    @classmethod
    def _fetched(cls, video: dict[str, Any]) -> "Clip":
        video |= {"total_pixels": VIDEO_TOKENS * SIDE**2}
        frames, about = package.fetch_video(video, PATCH, return_video_metadata=True)
        indices = [int(i) for i in about["frames_indices"]]
        seconds = Qwen3VLProcessor._calculate_timestamps(None, indices, about["fps"])
        assert torch.equal(frames, frames.byte())
        return cls(frames.byte().permute(0, 2, 3, 1).numpy(), seconds)
