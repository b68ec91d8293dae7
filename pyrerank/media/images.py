"""Images: from a path, URI, bytes, PIL.Image or numpy array to resized pixels.

They are decoded as a viewer shows them, and resized as the published reference of the VL models
resizes them (github.com/QwenLM/Qwen3-VL-Embedding at 8ce3aab, `src/models/qwen3_vl_reranker.py`,
over `qwen_vl_utils.vision_process` of qwen-vl-utils 0.0.14).
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from pyrerank.media.sources import MIN_IMAGE_TOKENS, Media, is_url, open_source

Pixels = NDArray[np.uint8]

SIDE = 32  # pixels each way of what becomes one token: 2 x 2 patches of 16
MAX_ASPECT = 200  # the published reference's
MAX_PIXELS = 89_478_485  # before resizing; Pillow, too, warns of an attack from there on
MAX_SCANS = 100  # libtiff's limit: each scan of a JPEG is over all pixels, however few bytes it has
# The marker of a segment of a JPEG: neither padding, nor a marker that no segment follows.
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")

# Formats that people have.  Pillow hands others to another program (EPS) or a renderer (WMF), and
# takes nearly any bytes for TGA.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")

# A whole str that is a path or a URI.  It begins with /, ./, ../, ~/, C:\\, https:, ...
PATH_OR_URI = re.compile(
    r"(?:\.{0,2}[/\\]|~[^/\\\s]*[/\\]|[a-z]:\\|[a-z][a-z0-9+.-]*:/|file:)\S*", re.IGNORECASE
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".f4v"),
    *(".3gp", ".3g2", ".ogv", ".m2ts", ".mxf", ".vob"),
)
# Pictures that are not read, or not by every Pillow, have these.
OTHER_SUFFIXES = (".svg", ".heic", ".heif", ".jxl", ".avif")


@dataclass(frozen=True)
class Visual:
    """An image or a video, resized.  Those with equal pixels and times are equal and hash alike.

    Attributes:
        frames: uint8 [F, height, width, 3], RGB, both sides multiples of 32.  F is 1 for an image,
            and even for a video.
        seconds: the mean time of each pair of frames of a video; none for an image.
        digest: 16 bytes that name the shape and the values of the pixels.
    """

    frames: Pixels = field(compare=False, repr=False)
    seconds: tuple[float, ...] = ()
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.frames if self.seconds else self.frames[0]
        hashed = blake2b(repr(pixels.shape).encode(), digest_size=16)
        hashed.update(np.ascontiguousarray(pixels).data)
        object.__setattr__(self, "digest", hashed.digest())

    @property
    def key(self) -> bytes:
        """Names all that a prompt shows of it: the pixels, and the times of a video."""
        return self.digest + (repr(self.seconds).encode() if self.seconds else b"")

    @property
    def span_count(self) -> int:
        """How many spans a prompt has of it: one, or one for each pair of frames."""
        return max(1, len(self.seconds))


def read_image(value: object, name: str, media: Media) -> Visual:
    """Reads an image in any form that `pyrerank.media.reader.Reader` takes, and resizes it."""
    return Visual(resized_image(value, name, media, media.max_image_tokens, SIDE)[None])


def resized_image(value: object, name: str, media: Media, max_squares: int, side: int) -> Pixels:
    """As `read_image`: uint8 [height, width, 3], from 4 to ``max_squares`` squares of ``side``."""
    picture = _rgb(value, name, media)
    least, most = MIN_IMAGE_TOKENS * side**2, max_squares * side**2
    height, width = fitting_size(picture.height, picture.width, least, most, side)
    # rounding exceeds a low limit near the least size, and where the image is a long strip
    width = min(width, max(1, most // height // side) * side)
    height = min(height, most // width // side * side)
    return np.array(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))


def _rgb(value: object, name: str, media: Media) -> PIL.Image.Image:
    if isinstance(value, np.ndarray):
        value = _from_array(value, name)
    if isinstance(value, PIL.Image.Image):
        return _shown_rgb(value, name)
    file = open_source(value, name, media)
    if file is None:
        raise TypeError(
            f"{name} must be a path, a URI, bytes, a PIL.Image or a numpy array, got "
            f"{type(value).__name__}"
        )
    with file:
        try:
            picture = _identified(file)
        except PIL.UnidentifiedImageError:
            what = "is empty" if not file.seek(0, io.SEEK_END) else "is not a picture"
            raise ValueError(f"{name} {what}; known formats: {', '.join(FORMATS)}") from None
        except Exception as error:  # decoders raise nearly anything for a damaged file
            raise ValueError(f"{name} cannot be decoded: {error}") from error
        with picture:
            return _shown_rgb(picture, name)


def _identified(file: BinaryIO) -> PIL.Image.Image:
    """Opens a picture without decoding it."""
    PIL.Image.init()  # a Pillow may be built without some of the formats
    picture = PIL.Image.open(file, formats=[f for f in FORMATS if f in PIL.Image.OPEN])
    if picture.format in ("JPEG", "MPO"):
        file.seek(0)
        scans = _scans(file.read())
        if scans > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, over the limit of {MAX_SCANS}")
    return picture


def _scans(jpeg: bytes) -> int:
    scans = position = 0
    while (found := _MARKER.search(jpeg, position)) and found[1] != b"\xd9":  # the end
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    return scans


def _from_array(array: NDArray[Any], name: str) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must be a uint8 array, got {array.dtype}; scale it to 0..255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(
            f"{name} must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got "
            f"{list(array.shape)}"
        )
    check_size(array.shape[0], array.shape[1], name)
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _shown_rgb(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """The first frame, upright, in 8 bits a channel, on white where it is transparent."""
    check_size(picture.height, picture.width, name)
    try:
        picture = PIL.ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            raise ValueError("its values are floating-point; scale them to 0..255 as uint8 first")
        if picture.mode.startswith("I"):
            picture = _from_16_bits(picture)
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = PIL.Image.new("RGB", layer.size, (255, 255, 255))
            picture.paste(layer, mask=layer.getchannel("A"))
        return picture.convert("RGB")
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise ValueError(f"{name} cannot be decoded: {error}") from error


def _from_16_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Scales grey of 16 bits, which Pillow opens as I;16 or as I, to 8 bits."""
    values = np.asarray(picture.convert("I"))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has more than 16 bits a channel; convert it to 8 bits first")
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 257 * 255


def check_size(height: int, width: int, name: str) -> None:
    """Raises ValueError for a picture that is empty, extremely narrow, or too large."""
    if not height or not width:
        raise ValueError(f"{name} is empty: {width} x {height} pixels")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{name} is {width} x {height} pixels, a ratio over {MAX_ASPECT}; crop or split it"
        )
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{name} is {width} x {height} pixels, over the limit of {MAX_PIXELS}; make it smaller"
        )


def fitting_size(
    height: int, width: int, least: float, most: float, side: int = SIDE
) -> tuple[int, int]:
    """The multiples of ``side`` that are nearest to a height and a width.

    Where they have fewer than ``least`` or more than ``most`` pixels, both are scaled to the limit.
    """
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    if rows * columns * side**2 > most:
        shrink = math.sqrt(height * width / most)
        rows = max(1, math.floor(height / shrink / side))
        columns = max(1, math.floor(width / shrink / side))
    elif rows * columns * side**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
    return rows * side, columns * side


def is_picture(value: object) -> bool:
    """Whether the first entry of a list under "video" is a frame, and not a video of its own."""
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return value[5:11].lower() == "image/"
        value = Path(value.split("?")[0] if is_url(value) else value)
    if isinstance(value, Path):
        return _is_readable(value.suffix.lower())
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            _identified(io.BytesIO(value)).close()
        except Exception:  # whatever is wrong with it as a picture, it may be a video
            return False
        return True
    return not isinstance(value, (list, tuple))


def kind_of_name(value: str, files: bool) -> str | None:
    """ "image" or "video" if a str is nothing but the path or URI of one, else None.

    Such a str is a `PATH_OR_URI` that ends, before any query, as names of pictures or videos end.
    With ``files`` it may also be the name of a file that exists.
    """
    absolute = PATH_OR_URI.fullmatch(value) is not None
    suffix = os.path.splitext(re.split("[?#]", value)[0] if absolute else value)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        kind = "video"
    elif suffix in OTHER_SUFFIXES or _is_readable(suffix):
        kind = "image"
    else:
        return None
    return kind if absolute or (files and os.path.isfile(value)) else None


def _is_readable(suffix: str) -> bool:
    return PIL.Image.registered_extensions().get(suffix) in FORMATS
