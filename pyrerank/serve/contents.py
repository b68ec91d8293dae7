"""Contents in the wire formats: makes them what a `Reader` takes, measures them, and echoes them.

This module knows nothing of engines or of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyrerank.media.json_content import content_of
from pyrerank.media.reader import KINDS, is_parts
from pyrerank.serve.errors import BadRequest
from pyrerank.serve.wire import RerankDocument


def content(value: Any) -> Any:
    """Makes a content that `Reader` takes from one of the wire.

    An object has its content under ``content``, or under ``text``, ``image`` and ``video``; other
    fields are the caller's own.

    Raises:
        ValueError: an object has none of these fields, or ``content`` and one of the others, or
            has a field that other servers would heed.
    """
    if not isinstance(value, dict) or value.get("type") in KINDS:
        return value
    if value.get("instruction"):
        raise ValueError("an 'instruction' of an object is not heeded; give that of the request")
    if value.get("content") is None:
        return content_of(value)
    for kind in ("text", "image", "video"):
        if value.get(kind) is not None:
            raise ValueError(f"an object has either 'content' or {kind!r}, and this one has both")
    return value["content"]


def several(value: Any) -> list[Any]:
    """Makes a list of a value that is one content or a list of contents."""
    return value if isinstance(value, list) and not is_parts(value) else [value]


class Size(NamedTuple):
    """How much there is to read.

    Attributes:
        characters: how many characters of text.
        pictures: how many images, videos and frames.
        fetched: how many of these are to be fetched from other hosts.
    """

    characters: int = 0
    pictures: int = 0
    fetched: int = 0


def size(value: Any) -> Size:
    """The size of a content or a conversation, whether or not it can be read."""
    characters = pictures = fetched = 0
    texts, visuals = [value], []  # no recursion, because values may be nested deep
    while texts:
        each = texts.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, list):
            texts += [one for one in each if isinstance(one, (str, dict))]  # token ids have no size
        elif isinstance(each, dict):
            texts += [each.get("content"), each.get("text")]
            visuals += [each.get(kind) for kind in KINDS if kind != "text"]
    while visuals:
        each = visuals.pop()
        if isinstance(each, list):
            visuals += each
        else:
            pictures += each is not None
            url = each.get("url") if isinstance(each, dict) else each
            fetched += isinstance(url, str) and url.lstrip()[:4].lower() == "http"
    return Size(characters, pictures, fetched)


def conversation(messages: Any, name: str) -> tuple[str | None, Any]:
    """Returns the instruction and the content of a conversation.

    The text of the system, if there is one, is the instruction, and what the user says is the
    content; an empty answer may follow.

    Raises:
        BadRequest: the conversation has another form.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadRequest(f"{name} must be a list of messages with 'role' and 'content'", name)
    roles = [message.get("role") for message in messages]
    if roles not in ([*a, "user", *b] for a in ([], ["system"]) for b in ([], ["assistant"])):
        raise BadRequest(
            f"{name} has the roles {roles}; one message of the user is embedded, a system "
            "message may stand before it and an empty one of the assistant after it",
            name,
        )
    given = {role: message.get("content") for role, message in zip(roles, messages, strict=True)}
    system, answer = (_text(given.get(role)) for role in ("system", "assistant"))
    if system is None or answer is None:
        raise BadRequest(f"{name}: system and assistant messages must be text", name)
    if answer:
        raise BadRequest(f"{name}: the assistant's message must be empty", name)
    return system if "system" in given else None, given["user"]


def _text(value: Any) -> str | None:
    """The text of a message; None if the message holds anything else than text."""
    if isinstance(value, list):
        texts: list[str] = [
            part["text"]
            for part in value
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
        return "".join(texts) if len(texts) == len(value) else None
    return "" if value is None else value if isinstance(value, str) else None


def echo(document: Any, whole: bool) -> RerankDocument:
    """Makes the document of an answer from that of a request.

    It is a text, or parts if there are pictures.  Unless ``whole``, data: URIs lose their data.
    """
    given = content(document)
    if isinstance(given, dict):
        if not size(given)[1]:
            return RerankDocument(text="".join(given.get("text") or ()), multi_modal=None)
        given = [
            {"type": kind, kind: each}
            for kind, value in given.items()
            for each in (value if isinstance(value, list) else [value])
        ]
    if isinstance(given, str):
        return RerankDocument(text=given, multi_modal=None)
    keep: Callable[[str], str] = str if whole else _without_data
    return RerankDocument(text=None, multi_modal=_strings(given, keep))


def _without_data(text: str) -> str:
    return text.partition(",")[0] if text[:5].lower() == "data:" else text


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    """Copies a JSON value and changes all strings in it that are not under "text".

    It also replaces lone surrogates, which answers cannot hold; a text that has some was refused.
    """
    if isinstance(value, str):
        return change(value).encode(errors="replace").decode()
    if isinstance(value, list):
        return [_strings(each, change) for each in value]
    if isinstance(value, dict):
        return {k: v if k == "text" else _strings(v, change) for k, v in value.items()}
    return value
