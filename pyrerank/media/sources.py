"""Sources: how pictures are read, and the bytes behind a path, a URI or bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

from pyrerank.checks import check_flag, check_int

# The published reference's limits.
MIN_IMAGE_TOKENS, MAX_IMAGE_TOKENS = 4, 1800
MAX_VIDEO_FRAMES = 64
Fetch = Callable[[str], bytes]


def _always() -> bool:
    return True  # a function with a name, because a lambda cannot be pickled


@dataclass(frozen=True)
class Media:
    """How the pictures of a call are read.  Limits other than the defaults, which are those of the
    published reference, change scores.

    Attributes:
        max_image_tokens: most tokens of an image, each of 32 x 32 pixels, at least 4.  A larger
            image is made smaller.
        max_video_frames: most frames that are taken from a video, at least 2, and even.
        files: whether paths and file: URIs are read.  A program that reads somebody else's requests
            sets it to False, so that they open no file of its machine.
        wanted: is called before each picture and each frame of a video; once it returns False,
            nothing more is read.
        fetch: gives the bytes behind an http(s) URL, see `pyrerank.Fetcher`; None refuses URLs.

    Raises:
        ValueError, TypeError: a limit or another value that is not as described here.
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
        # an int, of whatever integer type they were
        object.__setattr__(self, "max_image_tokens", tokens)
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
        """Raises ValueError once ``wanted`` returns False."""
        if not self.wanted():
            raise ValueError(f"{name} is not read: nobody wants it any longer")


def open_source(value: object, name: str, media: Media) -> BinaryIO | None:
    """The encoded file that ``value`` holds or names; None if it is of another type.

    Raises:
        ValueError: the file or URL cannot be read, or ``media`` does not allow it.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return io.BytesIO(value)
    if not isinstance(value, (str, Path)):
        return None
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return io.BytesIO(_data(value, name))
        if is_url(value):
            return io.BytesIO(_fetched(value, name, media.fetch))
        value = url2pathname(value[7:]) if value[:7].lower() == "file://" else value
    path = Path(value)
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
    """A value as messages show it: never pages of base64."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
