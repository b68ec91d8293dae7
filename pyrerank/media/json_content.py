"""Contents as JSON objects: a line of a file, and an object of a request.

The fields ``text``, ``image`` and ``video`` are its content; others, such as ``_id`` and ``title``,
are the caller's own.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from pyrerank.media.reader import FIELDS

OTHER_NAMES = {"image_url": "image", "img": "image", "video_url": "video"}
# With these, other programs choose how a picture is sized and sampled.
SIZED = ("fps", "max_frames", "max_pixels", "min_pixels", "resized_height", "resized_width")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        ValueError: it is no JSON, or an object in it has a field twice.
        TypeError: it is JSON, and no object.
    """
    try:
        item = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("a JSON value that is nested too deep") from None
    if not isinstance(item, dict):
        raise TypeError(f"expected a JSON object, got {type(item).__name__}")
    return item


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for key, value in pairs:
        if key in item:
            raise ValueError(f"the field {key!r} is there twice")
        item[key] = value
    return item


def content_of(item: dict[str, Any], *heeded: str) -> dict[str, Any]:
    """The ``text``, ``image`` and ``video`` of an object whose fields ``heeded`` are read, too.

    Raises:
        ValueError: the object has none of the three; or another field seems to be meant for them,
            and would not be heeded: a misspelt one, another program's, or one for sizes.
    """
    for kind in (*FIELDS, *heeded):
        # one letter is wrong, or a short name lacks one
        near = get_close_matches(kind, map(str.lower, item), cutoff=max(0.8, 1 - 1 / len(kind)))
        wrong = [field for field in item if field.lower() in near and item[field]]
        if wrong and kind not in item:
            raise ValueError(
                f"the field {wrong[0]!r} would not be heeded, and looks like {kind!r} misspelt; "
                "write it so, or rename it"
            )
    for field, kind in OTHER_NAMES.items():
        given = item.get(field)  # a link is the caller's own, a picture is not
        is_picture = isinstance(given, dict) or str(given)[:5].lower() == "data:"
        if is_picture and kind not in item:
            raise ValueError(f"the field {field!r} would not be heeded; call it {kind!r}")
    content: dict[str, Any] = {kind: item[kind] for kind in FIELDS if kind in item}
    for field in SIZED:
        if item.get(field) and (content.get("image") or content.get("video")):
            raise ValueError(
                f"the field {field!r} would not be heeded: pictures are sized and sampled as "
                "published, within the limits of pyrerank.Media; leave it out"
            )
    if not content:
        raise ValueError("a document needs a 'text', an 'image' or a 'video'")
    return content
