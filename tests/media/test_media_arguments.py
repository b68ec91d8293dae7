"""What a content, `Media` and `Fetcher` take: everything is heeded, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_random

from pyrerank import Embedder, Fetcher, Media, Reranker
from pyrerank.media.reader import Reader

pytestmark = pytest.mark.slow

CAT = Path(__file__).parents[1] / "data/pictures/cat.jpg"
SHORT = "data:image/png;base64,iVBORw0KGgo="

URIS = [
    (SHORT, "image"),
    ("DATA:Image/PNG;BASE64,iVBORw0KGgo=", "image"),
    ("data:image/png;charset=utf-8;base64,iVBO\r\nRw0KGgo=\r\n", "image"),
    ("\n data:image/jpeg,%ff%d8", "image"),
    ("data:image/svg+xml;utf8,<svg width='1' height='1'></svg>", "image"),
    ("data:image/svg+xml,%3Csvg width='1'%3E%3C/svg%3E", "image"),
    ("data:image/png", "image"),
    ("data:video/mp4;base64,AAAA", "video"),
    (np.str_(SHORT), "image"),
]
NAMES = [
    ("/pictures/cat.jpg", "image"),
    ("./cat.PNG", "image"),
    ("../cat.webp", "image"),
    ("~/cat.gif", "image"),
    ("~somebody/cat.gif", "image"),
    (r"C:\pictures\cat.bmp", "image"),
    ("d:/pictures/cat.tiff", "image"),
    (r"..\cat.heic", "image"),
    (r"\\server\share\cat.jpeg", "image"),
    ("file:///pictures/cat.svg", "image"),
    ("file:cat.avif", "image"),
    ("https://a.test/cat.jpg", "image"),
    ("HTTP://A.TEST/CAT.JPG", "image"),
    ("https://a.test/cat.jpg?width=3&sign=a/b.c#top", "image"),
    ("s3://bucket/cat.png", "image"),
    (" /pictures/cat.jpg\n", "image"),
    ("/films/cat.mp4", "video"),
    ("https://a.test/cat.webm?t=3", "video"),
    (np.str_("./cat.mkv"), "video"),
]
TEXTS = [
    "",
    "a cat",
    "cat.jpg",  # there is no such file
    "no/such/cat.jpg",
    "/pictures/cat.jpg is a picture of a cat",
    "see /pictures/cat.jpg",
    "/pictures/a cat.jpg",
    "https://a.test/cat.html",
    "https://a.test/?picture=cat.jpg",
    "/etc/passwd",
    "/",
    ".jpg",
    "and/or",
    f"its picture is {SHORT}",
    "data:image/png;base64, is how it begins",
    "data:text/plain,cat.jpg",
    "data: image/png",
    "/pictures/cat.jpg\n/pictures/dog.jpg",
]


def read(value: object, vision: bool = True, **media: Any) -> Any:
    return Reader(Media(**media)).read(value, "documents[1]", vision)


@pytest.mark.parametrize(("value", "kind"), URIS + NAMES)
def test_a_picture_as_a_bare_string(value: str, kind: str) -> None:
    """A data: URI is refused for every model, a name for those that see pictures."""
    message = rf"^documents\[1\] is a .* of an? {kind} as a bare string.*give \{{'{kind}': ...\}}"
    always = (value, kind) in URIS
    for vision in [True, False] if always else [True]:
        with pytest.raises(ValueError, match=message) as raised:
            read(value, vision)
        assert len(str(raised.value)) < 300
    if not always:
        assert read(value, vision=False).text == value
    # where it is said to be text, it is
    assert read({"text": value}).text == value
    assert read([{"type": "text", "text": value}]).text == value


@pytest.mark.parametrize("value", TEXTS)
def test_a_text_stays_a_text(value: str) -> None:
    assert read(value).text == value


def test_a_relative_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a picture where there is one, and no text of somebody else asks for files here."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "a cat.jpg", "cat.mp4"):
        assert read(name).text == name
        (tmp_path / name).write_bytes(CAT.read_bytes())
        with pytest.raises(ValueError, match=r"^documents\[1\] is a path or URI"):
            read(name)
        assert read(name, files=False).text == name
        assert read(name, vision=False).text == name
    (tmp_path / "cat").write_bytes(CAT.read_bytes())
    assert read("cat").text == "cat"


def test_long_texts_are_looked_at_quickly() -> None:
    """In time linear in their length: these have some millions of characters."""
    for value in (
        "data:image/png;base64," + "A" * 5_000_000 + " !",
        "data:image/png;base64," + "\n" * 5_000_000 + "!",
        "data:image/" + ";base64" * 700_000 + " ",
        "/" + "a/" * 2_500_000 + " .jpg",
    ):
        try:
            read(value)
        except ValueError as error:
            assert "as a bare string" in str(error)


@pytest.mark.parametrize("kind", ["qwen3-reranker", "qwen3-vl-reranker"])
def test_engines(kind: str, tmp_path: Path) -> None:
    write_random(tmp_path, kind, tied=True)
    engine, embedder = Reranker(tmp_path), Embedder(tmp_path)
    vision = "vl" in kind
    for bare in [SHORT, "/pictures/cat.jpg"]:
        if not vision and bare != SHORT:
            assert engine.score("a", [bare]) == engine.score("a", [{"text": bare}])
            continue
        with pytest.raises(ValueError, match=r"^documents\[1\] is a .* as a bare string"):
            engine.score("a", ["b", bare])
        with pytest.raises(ValueError, match=r"^the query of documents\[0\] is a .* as a bare"):
            engine.score(bare, ["b"])
        with pytest.raises(ValueError, match=r"^inputs\[1\] is a .* as a bare string"):
            embedder.embed(["b", bare])
    for empty in ({}, {"text": []}):
        with pytest.raises(ValueError, match=r"^documents\[1\] is \{.*a content without any part"):
            engine.score("a", ["b", empty])
        with pytest.raises(ValueError, match=r"^inputs\[0\] is \{.*a content without any part"):
            embedder.embed([empty])
    [null] = engine.score("a", [{"text": None}])
    assert [null] == engine.score("a", ["NULL"])
    assert engine.score(np.str_("a"), [np.str_("b")]) == engine.score("a", ["b"])


# --- Media and Fetcher


@pytest.mark.parametrize("integer", [int, np.int8, np.int64, np.uint16])
def test_whole_numbers_of_any_type(integer: type) -> None:
    media = Media(max_image_tokens=integer(20), max_video_frames=integer(6))
    assert media == Media(max_image_tokens=20, max_video_frames=6)
    assert type(media.max_image_tokens) is type(media.max_video_frames) is int
    fetcher = Fetcher(max_bytes=integer(100), redirects=integer(0), seconds=integer(3))
    assert fetcher == Fetcher(max_bytes=100, redirects=0, seconds=3.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_image_tokens": True}, ValueError, "max_image_tokens must be .* got True"),
        ({"max_image_tokens": 20.0}, ValueError, "max_image_tokens must be .* got 20.0"),
        ({"max_image_tokens": "20"}, ValueError, "max_image_tokens must be .* got '20'"),
        ({"max_image_tokens": None}, ValueError, "max_image_tokens must be .* got None"),
        ({"max_image_tokens": 3}, ValueError, "max_image_tokens must be .* got 3"),
        ({"max_video_frames": np.True_}, ValueError, "max_video_frames must be .* got"),
        ({"max_video_frames": np.int64(5)}, ValueError, "max_video_frames must be .* got"),
        ({"files": "false"}, TypeError, "files must be True or False, got 'false'"),
        ({"files": None}, TypeError, "files must be True or False, got None"),
        ({"fetch": True}, TypeError, "fetch must be a function .* got True"),
        ({"fetch": "https://a.test"}, TypeError, "fetch must be a function .* got 'https"),
        ({"wanted": True}, TypeError, "wanted must be a function, got True"),
    ],
)
def test_media_refuses(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Media(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_bytes": True}, ValueError, "max_bytes must be .* got True"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be .* got 0"),
        ({"max_bytes": 1e6}, ValueError, "max_bytes must be .* got 1000000.0"),
        ({"redirects": -1}, ValueError, "redirects must be .* got -1"),
        ({"redirects": False}, ValueError, "redirects must be .* got False"),
        ({"seconds": True}, ValueError, "seconds must be .* got True"),
        ({"seconds": 0}, ValueError, "seconds must be .* got 0"),
        ({"seconds": float("nan")}, ValueError, "seconds must be .* got nan"),
        ({"seconds": float("inf")}, ValueError, "seconds must be .* got inf"),
        ({"seconds": "20"}, ValueError, "seconds must be .* got '20'"),
        ({"private": "no"}, TypeError, "private must be True or False, got 'no'"),
        ({"hosts": "a.test"}, TypeError, "hosts must be a list of host names, got the str 'a"),
        ({"hosts": b"a.test"}, TypeError, "hosts must be a list of host names, got"),
        ({"hosts": 5}, TypeError, "hosts must be a list of host names, got"),
        ({"hosts": ["a.test", 5]}, TypeError, "hosts must be a list of host names, got .*5"),
        ({"hosts": ["https://a.test"]}, ValueError, "hosts: 'https://a.test' is no host name"),
        ({"hosts": ["a.test:443"]}, ValueError, "hosts: 'a.test:443' is no host name"),
        ({"hosts": ["a.test/b"]}, ValueError, "hosts: 'a.test/b' is no host name"),
        ({"hosts": ["*.a.test"]}, ValueError, r"hosts: '\*.a.test' is no host name"),
        ({"hosts": ["[::1]"]}, ValueError, r"hosts: '\[::1\]' is no host name"),
        ({"hosts": [""]}, ValueError, "hosts: '' is no host name"),
    ],
)
def test_fetcher_refuses(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Fetcher(**arguments)


def test_hosts_in_any_container() -> None:
    for hosts in (["A.test", "::1"], ("a.test", "::1"), {"a.test", "::1"}, iter(["a.test", "::1"])):
        fetcher = Fetcher(hosts=hosts)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"host 'b\.test' is not one of the allowed"):
                fetcher("http://b.test/")
            with pytest.raises(ValueError, match="not a public address"):
                fetcher("http://[::1]/")


def test_what_a_fetch_gives_is_bytes() -> None:
    with pytest.raises(TypeError, match=r"^documents\[1\], image: fetch must give bytes, and"):
        read({"image": "https://a.test/b.png"}, fetch=lambda url: "text")
