"""The reader: from what a caller passes as a content to its text, images and videos."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrerank.media.images import Visual, is_picture, kind_of_name, read_image
from pyrerank.media.sources import Media, shown
from pyrerank.media.video import read_video

FIELDS = ("text", "image", "video")  # of a dict that is a content
KINDS = ("text", "image_url", "image", "video_url", "video")  # of parts
# These details of OpenAI's image_url ask for the sizes that pictures have anyway.
DETAILS = ("auto", "high")
# A whole str that is a data: URI of a picture or a video, which may be broken into lines, be markup
# (SVG), or have lost its data.
DATA_URI = re.compile(
    r"\s*data:(image|video)/[^\s,]*"
    r"(?:;base64,[A-Za-z0-9+/=%_\-\r\n\t]*+|,(?:<|%3C).*+|,\S*+|)\s*",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Content:
    """What a query or a document holds, in the order in which a prompt shows it.

    ``text`` joins its texts, with nothing between them; it is None if there are none.
    """

    videos: tuple[Visual, ...] = ()
    images: tuple[Visual, ...] = ()
    text: str | None = None

    @property
    def visuals(self) -> tuple[Visual, ...]:
        return (*self.videos, *self.images)


class Reader:
    """Reads the contents of one call; a picture that comes again is decoded once.

    A content is a str, which is its text; or a dict with "text", "image" and "video", each of which
        is one value, a list of values, or None; or a list of OpenAI's parts: {"type": "text",
        "text": ...}, "image_url" and "video_url" with {"url": ...}, "image" and "video" with any
        form below. A dict whose values are all None has no part; a prompt shows it as the text
        NULL.
    An image is a path, a data:, file: or http(s) URI (str), a Path, bytes, a PIL.Image, or a numpy
        array uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (grey, RGB, RGBA).
    A video is a file of any format that PyAV decodes, in the forms of an image but for PIL and
        numpy; or a list of images of one size, its frames, which count as taken at 2 a second. A
        list under "video" that starts with an image is one video, any other a list of videos.

    From a file frames are taken evenly, 1 a second: an even number of them, from 4 (if it has so
    many) to ``media.max_video_frames``. From a longer list that many are taken evenly.
    """

    def __init__(self, media: Media | None = None) -> None:
        if media is not None and not isinstance(media, Media):
            raise TypeError(f"media must be a pyrerank.Media or None, got {type(media).__name__}")
        self._media = Media() if media is None else media
        # What was given is held with its result, so that no other value gets its id.
        self._read: dict[object, tuple[object, Visual]] = {}

    def read(self, value: object, name: str, vision: bool = False) -> Content:
        """Reads a content.

        Args:
            name: what messages call it: ``documents[3]``, ``line 7``.
            vision: whether the model sees pictures. Then a str that is nothing but the path or URI
                of one is refused, as a data: URI of one always is.

        Raises:
            TypeError: a value of another type.
            ValueError: an unknown key or kind of part; no part at all; a str that is or names a
                picture; a picture that cannot be read or decoded, or has a size that is refused;
                frames of different sizes. (Text is not checked for lone surrogates.)
            ImportError: a video file, and PyAV is not installed.
        """
        if isinstance(value, str):
            _check_is_text(value, name, vision, self._media.files)
            return Content(text=str(value))  # numpy has a str of its own
        if isinstance(value, dict):
            parts = _dict_parts(value, name)
        elif isinstance(value, (list, tuple)):
            parts = [_part(part, f"{name}, part[{i}]") for i, part in enumerate(value)]
        else:
            raise TypeError(
                f"{name} must be a str, a dict with 'text', 'image' or 'video', or a list of "
                f"parts, got {type(value).__name__}; wrap a picture: {{'image': ...}}"
            )
        is_null = isinstance(value, dict) and value and all(v is None for v in value.values())
        if not parts and not is_null:
            raise ValueError(
                f"{name} is {shown(value)}, a content without any part; give a text, an image or a "
                "video, or leave it out"
            )
        texts, images, videos = [], [], []
        for kind, part, where in parts:
            if kind == "video":
                videos.append(self._once(read_video, part, where))
            elif kind == "image":
                images.append(self._once(read_image, part, where))
            elif isinstance(part, str):
                texts.append(str(part))
            else:
                raise TypeError(f"{where} must be str, got {type(part).__name__}")
        return Content(tuple(videos), tuple(images), "".join(texts) if texts else None)

    def _once(
        self, read: Callable[[object, str, Media], Visual], value: object, name: str
    ) -> Visual:
        key = (read, value if isinstance(value, (str, bytes, Path)) else id(value))
        if key not in self._read:
            self._media.check_wanted(name)
            self._read[key] = value, read(value, name, self._media)
        return self._read[key][1]


def is_parts(value: object) -> bool:
    """Whether a list is one content, in OpenAI's parts, and not a list of contents."""
    return isinstance(value, (list, tuple)) and any(
        isinstance(part, dict) and "type" in part for part in value
    )


def _check_is_text(value: str, name: str, vision: bool, files: bool) -> None:
    """Raises ValueError for a str that is a picture or a video, or only names one."""
    found = DATA_URI.fullmatch(value)
    if found:
        kind, what = found[1].lower(), "a data: URI"
    else:
        kind, what = vision and kind_of_name(value.strip(), files), "a path or URI"
    if kind:
        raise ValueError(
            f"{name} is {what} of {'an image' if kind == 'image' else 'a video'} as a bare string, "
            f"which would be read as text: {shown(value)}; give {{'{kind}': ...}}, or "
            "{'text': ...} if its characters are meant"
        )


Part = tuple[str, object, str]  # "text", "image" or "video"; its value; its name for messages


def _dict_parts(value: dict[Any, Any], name: str) -> list[Part]:
    if "type" in value:
        raise ValueError(f"{name} is a part by itself; wrap parts in a list: [{{'type': ...}}]")
    _check_keys(value, set(FIELDS), name)
    parts = []
    for kind, given in value.items():
        several = isinstance(given, (list, tuple))
        is_frames = kind == "video" and several and given and is_picture(given[0])
        if several and not is_frames:
            parts += [(kind, part, f"{name}, {kind}[{i}]") for i, part in enumerate(given)]
        elif given is not None:
            parts.append((kind, given, f"{name}, {kind}"))
    return parts


def _part(part: object, name: str) -> Part:
    if not isinstance(part, dict):
        raise TypeError(f"{name} must be a dict with a 'type', got {type(part).__name__}")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{name} is of type {shown(kind)}; known: {', '.join(KINDS)}")
    _check_keys(part, {"type", kind}, name)
    if kind not in part:
        raise ValueError(f"{name} is of type {kind!r} and has no {kind!r}")
    value = part[kind]
    if kind.endswith("_url"):
        if isinstance(value, dict):
            _check_keys(value, {"url", "detail"}, name)
            detail = value.get("detail")
            if detail is not None and not (isinstance(detail, str) and detail in DETAILS):
                raise ValueError(
                    f"{name}: 'detail' must be 'auto' or 'high', got {shown(detail)}; the sizes of "
                    "pictures are those of pyrerank.Media"
                )
            value = value.get("url")
        if not isinstance(value, str):
            raise TypeError(f"{name}: the URL must be str, got {type(value).__name__}")
    return kind.removesuffix("_url"), value, name


def _check_keys(value: dict[Any, Any], known: set[str], name: str) -> None:
    for key in value:
        if key not in known:
            raise ValueError(f"{name} has an unknown key {shown(key)}; known: {sorted(known)}")
