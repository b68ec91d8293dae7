"""Pictures: from a path, URI, bytes, PIL.Image or numpy array to a resized image.

Pixels are decoded as a viewer shows them and resized as the published reference of the VL models
does it (github.com/QwenLM/Qwen3-VL-Embedding at 8ce3aab, `src/models/qwen3_vl_reranker.py`, over
`qwen_vl_utils.vision_process` of qwen-vl-utils 0.0.14). Knows nothing of tokens or models.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from pyrerank.checks import check_flag, check_int

Pixels = NDArray[np.uint8]
Fetch = Callable[[str], bytes]

SIDE = 32  # of a merged patch, one token, in pixels: 2 x 2 patches of 16
# Of the published reference.
MIN_IMAGE_TOKENS, MAX_IMAGE_TOKENS = 4, 1800
MAX_VIDEO_FRAMES = 64
MAX_ASPECT = 200
MAX_PIXELS = 89_478_485  # of a picture before resizing; from there Pillow, too, warns of attacks
MAX_SCANS = 100  # of a JPEG, each over all its pixels, however few bytes it has; libtiff's limit
# Of a JPEG, in a segment or after one: not stuffing, padding, or a marker that has no segment.
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")

# What people have; not what Pillow hands to another program (EPS) or a renderer (WMF), nor what it
# takes nearly any bytes for (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")


def _always() -> bool:
    return True  # a function with a name, because a lambda cannot be pickled


# How a str begins that is a path or a URI, and what follows: /, ./, ../, ~/, C:\\, https:, ...
PATH_OR_URI = re.compile(
    r"(?:\.{0,2}[/\\]|~[^/\\\s]*[/\\]|[a-z]:\\|[a-z][a-z0-9+.-]*:/|file:)\S*", re.IGNORECASE
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".f4v"),
    *(".3gp", ".3g2", ".ogv", ".m2ts", ".mxf", ".vob"),
)
# of pictures that are not read, or not by every Pillow
OTHER_SUFFIXES = (".svg", ".heic", ".heif", ".jxl", ".avif")


@dataclass(frozen=True)
class Media:
    """How the pictures of a call are read.

    Attributes:
        max_image_tokens: most tokens of an image, each of 32 x 32 pixels: larger images are made
            smaller; at least 4.
        max_video_frames: most frames that are taken from a video, evenly; at least 2, and even.
        files: whether paths and file: URIs are read; without, somebody else's request opens no file
            of this machine.
        wanted: asked before each picture and each frame of a video; once it is False, nothing more
            is read.
        fetch: gives the bytes behind an http(s) URL, see `pyrerank.Fetcher`; None refuses URLs.

    The defaults are those of the published reference: others change scores.

    Raises:
        ValueError: a limit outside what is described here.
        TypeError: ``files`` is no bool, or ``fetch`` or ``wanted`` no function.
    """

    max_image_tokens: int = MAX_IMAGE_TOKENS
    max_video_frames: int = MAX_VIDEO_FRAMES
    files: bool = True
    fetch: Fetch | None = None
    wanted: Callable[[], bool] = field(default=_always, repr=False)

    def __post_init__(self) -> None:
        wanted = f"an int from {MIN_IMAGE_TOKENS} up"
        tokens = check_int("max_image_tokens", self.max_image_tokens, wanted, MIN_IMAGE_TOKENS)
        wanted = "an even int from 2 up"
        frames = check_int("max_video_frames", self.max_video_frames, wanted, 2)
        if frames % 2:
            raise ValueError(f"max_video_frames must be {wanted}, got {frames}")
        object.__setattr__(self, "max_image_tokens", tokens)  # of whatever integer type they were
        object.__setattr__(self, "max_video_frames", frames)
        check_flag("files", self.files)
        if self.fetch is not None and not callable(self.fetch):
            raise TypeError(
                "fetch must be a function from a URL to bytes, such as pyrerank.Fetcher(), or "
                f"None, got {self.fetch!r}"
            )
        if not callable(self.wanted):
            raise TypeError(f"wanted must be a function, got {self.wanted!r}")

    def check_wanted(self, name: str) -> None:
        """Raises ValueError where nobody wants pictures any longer."""
        if not self.wanted():
            raise ValueError(f"{name} is not read: nobody wants it any longer")


@dataclass(frozen=True)
class Image:
    """One resized picture; images with equal pixels are equal and hash alike.

    pixels: uint8 [height, width, 3], RGB, both sides multiples of 32.
    digest: 16 bytes that name shape and pixels.
    """

    pixels: Pixels = field(compare=False, repr=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of(self.pixels))

    @property
    def key(self) -> bytes:
        """Names all that a prompt shows of it."""
        return self.digest

    @property
    def span_count(self) -> int:
        """How many spans of vision tokens a prompt has of it."""
        return 1

    @property
    def frames(self) -> Pixels:
        """uint8 [1, height, width, 3]: as a video of one frame."""
        return self.pixels[None]


def read_image(value: object, name: str, media: Media) -> Image:
    """An image in any form, resized; see `pyrerank.media.reader.Reader`."""
    return Image(resized_image(value, name, media, media.max_image_tokens, SIDE))


def resized_image(value: object, name: str, media: Media, max_squares: int, side: int) -> Pixels:
    """An image in any form, uint8 [height, width, 3], of 4 to ``max_squares`` squares whose sides
    have ``side`` pixels."""
    picture = _rgb(value, name, media)
    least, most = MIN_IMAGE_TOKENS * side**2, max_squares * side**2
    height, width = fitting_size(picture.height, picture.width, least, most, side)
    # near the least size, and for long strips, rounding exceeds a low limit
    width = min(width, max(1, most // height // side) * side)
    height = min(height, most // width // side * side)
    return np.array(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))


def _rgb(value: object, name: str, media: Media) -> PIL.Image.Image:
    """An image in any form as RGB, as a viewer shows it."""
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
    """Opened, not yet decoded; a format that this Pillow was built without is not known."""
    PIL.Image.init()
    picture = PIL.Image.open(file, formats=[f for f in FORMATS if f in PIL.Image.OPEN])
    if picture.format in ("JPEG", "MPO"):
        start = file.tell()
        file.seek(0)
        scans = _scans(file.read())
        file.seek(start)
        if scans > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, over the limit of {MAX_SCANS}")
    return picture


def _scans(jpeg: bytes) -> int:
    """How many scans a JPEG has."""
    scans = position = 0
    while (found := _MARKER.search(jpeg, position)) and found[1] != b"\xd9":  # of the end
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
    """The first frame: upright, 8 bits a channel, on white where it is transparent."""
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
    """Grey of 16 bits, which Pillow opens as I;16 or as I, scaled to 8 bits."""
    values = np.asarray(picture.convert("I"))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has more than 16 bits a channel; convert it to 8 bits first")
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 257 * 255


def check_size(height: int, width: int, name: str) -> None:
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
    """Height and width, multiples of ``side``, near those given, of ``least`` to ``most`` pixels.

    Rounded to the nearest multiples; where these have too many pixels or too few, scaled to the
    limit first and then rounded down or up.
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


def digest_of(pixels: Pixels) -> bytes:
    """16 bytes that name the shape and the values of ``pixels``."""
    hashed = blake2b(repr(pixels.shape).encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.digest()


def is_picture(value: object) -> bool:
    """Whether the first entry of a list under "video" is a frame, not a video."""
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return value[5:11].lower() == "image/"
        value = Path(value.split("?")[0] if is_url(value) else value)
    if isinstance(value, Path):
        return PIL.Image.registered_extensions().get(value.suffix.lower()) in FORMATS
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            _identified(io.BytesIO(value)).close()
        except Exception:  # whatever is wrong with it as a picture, it may be a video
            return False
        return True
    return not isinstance(value, (list, tuple))


def kind_of_name(value: str, files: bool) -> str | None:
    """ "image" or "video" where a str is nothing but the path or URI of one, else None.

    It is one where it begins as only paths and URIs do, has no whitespace, and ends, before any
    query, as names of pictures or videos do; with ``files`` also where such a file exists.
    """
    absolute = PATH_OR_URI.fullmatch(value) is not None
    name = re.split("[?#]", value, maxsplit=1)[0] if absolute else value
    suffix = os.path.splitext(name)[1].lower()
    kind = "video" if suffix in VIDEO_SUFFIXES else "image" if _of_picture(suffix) else None
    return kind if absolute or (files and kind and os.path.isfile(value)) else None


def _of_picture(suffix: str) -> bool:
    known = PIL.Image.registered_extensions().get(suffix) in FORMATS
    return known or suffix in OTHER_SUFFIXES


def open_source(value: object, name: str, media: Media) -> BinaryIO | None:
    """The encoded file that ``value`` holds or names; None where it is not of such a type."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return io.BytesIO(value)
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return io.BytesIO(_data(value, name))
        if is_url(value):
            return io.BytesIO(_fetched(value, name, media.fetch))
        path = Path(url2pathname(value[7:]) if value[:7].lower() == "file://" else value)
    elif isinstance(value, Path):
        path = value
    else:
        return None
    if not media.files:
        raise ValueError(f"{name} must be a data: URI or a URL; no files are read here")
    try:
        if path.is_file():  # a pipe or a device could be endless
            return path.open("rb")
        problem = "is not a file" if path.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    hint = "; encoded pictures in a str start with 'data:'" if len(str(path)) > 255 else ""
    raise ValueError(f"{name}: {shown(str(path))} {problem}{hint}")


def is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def _data(uri: str, name: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError(f"{name}: the data: URI {shown(uri)} has no comma before its data")
    try:
        raw = unquote_to_bytes(body)
        if not head.lower().endswith(";base64"):
            return raw
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"{name}: the data: URI is not valid: {error}") from None


def _fetched(url: str, name: str, fetch: Fetch | None) -> bytes:
    if fetch is None:
        raise ValueError(
            f"{name} is a URL, and fetching is off; download the file yourself, or turn fetching "
            "on: media=pyrerank.Media(fetch=pyrerank.Fetcher()), on the command line --fetch"
        )
    try:
        body = fetch(url)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name}: fetch must give bytes, and gave {type(body).__name__}")
    return bytes(body)


def shown(value: object) -> str:
    """A value for a message, never pages of base64."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
