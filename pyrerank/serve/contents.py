"""Contents of the wire: what a `pyrerank.media.reader.Reader` takes, and how they are echoed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyrerank.media.json_content import content_of
from pyrerank.media.reader import KINDS, is_parts
from pyrerank.serve.errors import BadRequest
from pyrerank.serve.wire import RerankDocument


def content(value: Any) -> Any:
    """A content for `Reader`: of an object, what is under ``content``, or its text and pictures;
    other fields of it are the caller's own.  Raises ValueError where it has none of these, or both
    a content and one of the others, or a field that other servers heed there."""
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
    """One content, or a list of contents, as a list."""
    return value if isinstance(value, list) and not is_parts(value) else [value]


class Size(NamedTuple):
    """How much is to be read.

    Attributes:
        characters: of text.
        pictures: images, videos and frames.
        fetched: those of them that other hosts have.
    """

    characters: int = 0
    pictures: int = 0
    fetched: int = 0


def size(value: Any) -> Size:
    """The size of a content or a conversation, whether or not it can be read."""
    characters = pictures = fetched = 0
    texts, visuals = [value], []  # no recursion: it may be nested deep
    while texts:
        each = texts.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, list):
            texts += [one for one in each if isinstance(one, (str, dict))]  # no tokens
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
    """Instruction and content of a conversation: the system's text if there is one, and what the
    user says; an empty answer may follow.

    Raises: BadRequest, for any other conversation.
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
    """The text of a message without pictures; None of any other."""
    if isinstance(value, list):
        texts: list[str] = [
            part["text"]
            for part in value
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
        return "".join(texts) if len(texts) == len(value) else None
    return "" if value is None else value if isinstance(value, str) else None


def echo(document: Any, whole: bool) -> RerankDocument:
    """A document for an answer: its text, or its parts if it has pictures, whose data: URIs lose
    their data unless ``whole``."""
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
    """A copy of a JSON value, with all strings changed that are not under "text".

    Strings that nobody reads may hold what no answer can: lone surrogates.
    """
    if isinstance(value, str):
        return change(value).encode(errors="replace").decode()
    if isinstance(value, list):
        return [_strings(each, change) for each in value]
    if isinstance(value, dict):
        return {k: v if k == "text" else _strings(v, change) for k, v in value.items()}
    return value
