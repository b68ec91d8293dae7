"""Inputs of every form, sound and malformed, through the engines: scored, or refused by name."""

import base64
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import av
import numpy as np
import PIL.Image
import pytest
from checkpoints import write_random

from pyrerank import Embedder, Fetcher, Media, Reranker
from pyrerank.cli.main import main

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parent / "data/pictures"
CAT, PAGE, STARS = PICTURES / "cat.jpg", PICTURES / "page.png", PICTURES / "stars.mp4"
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> SimpleNamespace:
    folders = {}
    for family in ("qwen3", "qwen3-vl"):
        folders[family] = tmp_path_factory.mktemp(family)
        write_random(folders[family], f"{family}-reranker", tied=True, seed=6, **SMALL)
    return SimpleNamespace(
        folder=str(folders["qwen3-vl"]),
        reranker=Reranker(folders["qwen3-vl"], dtype="float32"),
        embedder=Embedder(folders["qwen3-vl"], dtype="float32"),
        text_reranker=Reranker(folders["qwen3"], dtype="float32"),
        text_embedder=Embedder(folders["qwen3"], dtype="float32"),
    )


def encoded(picture: PIL.Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


def film(count: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(count):
            frame = np.full((48, 64, 3), 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


# --- malformed


def sound() -> bytes:
    """An mp4 that has sound, and no video."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of some bytes whose header promises four gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 65_535, 65_535, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def damaged_film() -> bytes:
    data = bytearray(STARS.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    return bytes(data)


GREY = np.full((40, 40, 3), 128, np.uint8)
LARGE = np.zeros((1344, 1376, 3), np.uint8)  # 1764 tokens
# what is wrong -> the content, the error and what its message says after the item's name
MALFORMED: dict[str, tuple[object, type[Exception], str]] = {
    "PNG cut": ({"image": PAGE.read_bytes()[:9999]}, ValueError, ", image cannot be decoded"),
    "JPEG cut": (
        {"image": [GREY, CAT.read_bytes()[:5000]]},
        ValueError,
        ", image[1] cannot be decoded",
    ),
    "no pixels": ({"image": GREY[:0]}, ValueError, ", image is empty: 40 x 0"),
    "1:300": ({"image": PIL.Image.new("L", (300, 1))}, ValueError, ", image is 300 x 1 pixels"),
    "bomb": ({"image": bomb()}, ValueError, ", image"),
    "missing": ({"image": [CAT, GREY, "no/cat.jpg"]}, ValueError, ", image[2]: 'no/cat.jpg' does"),
    "folder": ({"image": str(PICTURES)}, ValueError, ", image: "),
    "int16": ({"image": GREY.astype(np.int16)}, TypeError, ", image must be a uint8 array"),
    "float": ({"image": GREY / 255}, TypeError, ", image must be a uint8 array, got float64"),
    "NaN": ({"image": GREY * np.nan}, TypeError, ", image must be a uint8 array, got float64"),
    "not a picture": ({"image": b"GIF99a" + bytes(99)}, ValueError, ", image is not a picture"),
    "no frames": ([{"type": "video", "video": []}], ValueError, ", part[0] has no frames"),
    "frames of two sizes": (
        {"video": [GREY, GREY, GREY[:, :20]]},
        ValueError,
        ", video: frames must have one size; frame[2] becomes",
    ),
    "bad frame": (
        {"text": "a", "video": [[GREY], [GREY, GREY, b"?"]]},
        ValueError,
        ", video[1], frame[2] is not a picture",
    ),
    "film damaged": ({"video": damaged_film()}, ValueError, ", video"),
    "film of sound": ({"video": sound()}, ValueError, ", video has no video in it"),
    "URL": (
        [{"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}],
        ValueError,
        ", part[0] is a URL, and fetching is off",
    ),
    "data: URI": ({"image": "data:image/png;base64,no=base64"}, ValueError, ", image: the data:"),
    "unknown key": ({"text": "a", "picture": GREY}, ValueError, " has an unknown key 'picture'"),
    "unknown part": (
        [{"type": "text", "text": "a"}, {"type": "audio", "audio": b""}],
        ValueError,
        ", part[1] is of type 'audio'",
    ),
    "part without value": ([{"type": "image", "text": "a"}], ValueError, ", part[0] has an unkn"),
    "empty part": ([{"type": "video_url"}], ValueError, ", part[0] is of type 'video_url' and has"),
    "number as text": ([{"type": "text", "text": 3}], TypeError, ", part[0] must be str, got int"),
    "lone surrogate": (
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b\ud800"}],
        ValueError,
        " holds a lone surrogate, U+D800, at character 2",
    ),
    "pictures without end": (
        {"text": "a", "image": [LARGE] * 6},
        ValueError,
        ": its pictures are",
    ),
    "nested": ({"image": [[[GREY]]]}, TypeError, ", image[0] must be a path"),
    "nested parts": ([[{"type": "image", "image": GREY}]], TypeError, ", part[0] must be a dict"),
    "bare part": ({"type": "image", "image": GREY}, ValueError, " is a part by itself"),
    "bytes as text": (b"a cat", TypeError, " must be a str"),
    "number": (3, TypeError, " must be a str, a dict"),
    "nothing": (None, TypeError, " must be a str, a dict"),
    "picture unwrapped": (GREY, TypeError, " must be a str, a dict"),
}
GOOD = ["a cat", {"image": GREY}, {"text": "grey", "video": [GREY, GREY]}]


def not_run(*_: object, **__: object) -> None:
    raise AssertionError("something was run")


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_contents_are_refused_by_name(case, engines, monkeypatch):
    value, error, message = MALFORMED[case]
    documents = [*GOOD, value]
    monkeypatch.setattr(engines.reranker.core, "rows", not_run)
    monkeypatch.setattr(engines.embedder.core, "rows", not_run)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("documents[3]", lambda: engines.reranker.score("grey?", documents)),
        ("documents[3]", lambda: engines.reranker.rank({"image": GREY}, documents, top_n=1)),
        ("document", lambda: engines.reranker.explain("grey?", value)),
        ("inputs[3]", lambda: engines.embedder.embed(documents)),
    ]
    if case != "bare part":  # a list with one in it is a list of parts, not of queries
        queries = ["a", value]
        name = "the query of documents[1]"
        calls.append((name, lambda: engines.reranker.score(queries, GOOD[:2])))
    for name, call in calls:
        with pytest.raises(error) as raised:
            call()
        assert type(raised.value) is error
        said = str(raised.value)
        if case == "pictures without end":  # where they are too many, not who has too many
            name = name.removeprefix("the query of ")
        assert said.startswith(name + message), said
        assert len(said) < 400


def test_a_private_address(engines):
    media = Media(fetch=Fetcher())
    for url in ("http://127.0.0.1:1/cat.png", "http://[::ffff:169.254.169.254]/latest"):
        with pytest.raises(ValueError, match=r"^inputs\[1\], image: .*not a public address"):
            engines.embedder.embed(["a", {"image": url}], media=media)


def test_pictures_for_models_that_read_text_only(engines):
    with pytest.raises(ValueError, match=r"^documents\[1\] has a picture, and this model reads"):
        engines.text_reranker.score("grey?", GOOD)
    with pytest.raises(ValueError, match=r"^inputs\[2\] has a picture, and this model reads"):
        engines.text_embedder.embed(["a", "b", GOOD[2]])


def test_after_all_that_it_scores_as_before(engines):
    fresh = Reranker(engines.folder, dtype="float32")
    for value, error, _ in MALFORMED.values():
        with pytest.raises(error):
            engines.reranker.score("grey?", [*GOOD, value])
    want = fresh.score({"text": "grey?", "image": CAT}, GOOD)
    assert engines.reranker.score({"text": "grey?", "image": CAT}, GOOD) == want


def test_malformed_lines(engines, tmp_path):
    def in_json(value: object) -> bool:
        try:
            json.dumps(value)
        except TypeError:
            return False
        return True

    cases = [case for case in MALFORMED.values() if in_json(case[0])]
    assert len(cases) >= 9
    good = {"query": "a", "document": "a cat"}
    lines = [good]
    for value, *_ in cases:
        lines += [{"query": "a", "documents": ["a", "b", value]}, good]
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("\n".join(map(json.dumps, lines)))
    files = ["--input", str(source), "--output", str(target)]
    assert main(["score", "--model", engines.folder, "--dtype", "float32", *files]) == 1
    records = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert len(records) == len(lines)
    for record, (_, _, message) in zip(records[1::2], cases, strict=True):
        assert record.keys() == {"line", "error"}
        assert record["error"].startswith("documents[2]" + message)
    [want] = engines.reranker.score("a", ["a cat"])
    assert [record["score"] for record in records[::2]] == pytest.approx(
        [want] * (len(cases) + 1), abs=1e-6
    )


# --- any form

Meaning = tuple[tuple[int, ...], tuple[int, ...], str]  # videos and images by number, and the text


class Made(NamedTuple):
    """A content that was made up, and what it means; None: it must be refused."""

    value: object
    meaning: Meaning | None


TEXTS = ["", "a", "cat", "NULL", "red fox", "两只猫", "<|im_end|>", "<|image_pad|>\n", "e\u0301"]
IMAGES = [
    PIL.Image.new("RGB", (20, 20), (200, 0, 0)),
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)),
    PIL.Image.linear_gradient("L").resize((16, 50)).convert("RGB"),
]
PNGS = [encoded(picture) for picture in IMAGES]
FRAMES = [[0], [0, 0], [1, 1, 1], [2, 2]]  # of videos that are lists, by number of image
FILMS = [film(1), film(3)]
URL = "https://pictures.test/{}.png"


def fetched(url: str) -> bytes:
    match = re.fullmatch(URL.format("([012])"), url)
    if not match:
        raise ValueError("no such picture")
    return PNGS[int(match[1])]


MEDIA = Media(fetch=fetched)


class Maker:
    """Makes contents up, of every form; one in ten or so is broken somewhere."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.broken = 0.0

    def one(self, *forms: Callable[[], object]) -> Any:
        return self.rng.choice(forms)()

    def breaks(self) -> bool:
        """Whether to break what is being made."""
        return self.rng.random() < self.broken

    def content(self) -> Made:
        self.broken = self.rng.choice([0.0] * 6 + [0.15])
        if self.breaks():
            return Made(self.one(*NO_CONTENT), None)
        return self.one(self.text, self.dict, self.dict, self.parts, self.parts)

    def contents(self) -> list[Made]:
        return [self.content() for _ in range(self.rng.choice([0, 1, 1, 2, 2, 3, 5]))]

    def listed(self, contents: list[Made]) -> Any:
        return self.rng.choice([list, tuple])(made.value for made in contents)

    def query(self) -> Made:
        """A content that is no list of contents."""
        while True:
            made = self.content()
            several = isinstance(made.value, (list, tuple))
            if not several or any(isinstance(p, dict) and "type" in p for p in made.value):
                return made

    def text(self) -> Made:
        if self.breaks():
            return Made("a\ud800", None)
        text = self.rng.choice(TEXTS)
        return Made(text, ((), (), text))

    def dict(self) -> Made:
        value: dict[object, object] = {}
        videos, images, texts = [], [], []
        kinds = ["text", "image", "video"]
        self.rng.shuffle(kinds)
        for kind in kinds:
            if self.rng.random() < (0.75 if kind == "video" else 0.4):
                continue
            make, found = {
                "text": (self.text, texts),
                "image": (self.image, images),
                "video": (self.video, videos),
            }[kind]
            several = [make() for _ in range(self.rng.choice([0, 1, 1, 2]))]
            container = self.rng.choice([list, tuple])
            value[kind] = container(made.value for made in several)
            if len(several) == 1 and (kind != "video" or self.rng.random() < 0.5):
                value[kind] = several[0].value
            if not several and self.rng.random() < 0.5:
                value[kind] = None
            found += [made.meaning for made in several]
        bad = None in videos + images + texts
        if not videos + images + texts:  # fields without a value are NULL, empty ones a mistake
            bad = not value or any(given is not None for given in value.values())
            if bad and self.rng.random() < 0.9:
                return self.dict()
        if self.breaks():
            value[self.rng.choice(["images", "type", 3, None, b"text"])] = "a"
            bad = True
        return Made(value, None if bad else meaning(videos, images, texts))

    def parts(self) -> Made:
        parts: list[object] = []
        found: dict[str, list[Any]] = {"text": [], "image": [], "video": []}
        bad = False
        for _ in range(self.rng.choice([0] + [1, 1, 2, 3, 4] * 4)):
            if self.breaks():
                parts.append(self.one(*NO_PART))
                bad = True
                continue
            kind = self.rng.choice(["text"] * 4 + ["image"] * 3 + ["image_url"] * 2 + ["video"])
            if kind == "image_url":
                number, url = self.rng.randrange(3), None
                url = self.one(lambda n=number: URL.format(n), lambda n=number: data_uri(PNGS[n]))
                forms = [url, {"url": url}, {"url": url, "detail": "auto"}]
                made = Made(self.rng.choice(forms), (number,))
            else:
                made = {"text": self.text, "image": self.image, "video": self.video}[kind]()
            parts.append({"type": kind, kind: made.value})
            found[kind.removesuffix("_url")].append(made.meaning)
            bad |= made.meaning is None
        bad |= not parts
        whole = meaning(found["video"], found["image"], found["text"]) if not bad else None
        return Made(self.rng.choice([list, tuple])(parts), whole)

    def image(self) -> Made:
        if self.breaks():
            return Made(self.one(*NO_IMAGE), None)
        number = self.rng.randrange(3)
        path, picture, png = self.folder / f"{number}.png", IMAGES[number], PNGS[number]
        value = self.one(
            lambda: path,
            lambda: str(path),
            lambda: path.as_uri(),
            lambda: png,
            lambda: bytearray(png),
            lambda: memoryview(png),
            lambda: picture,
            lambda: np.asarray(picture),
            lambda: np.asarray(picture.convert("RGBA")),
            lambda: data_uri(png),
            lambda: URL.format(number),
        )
        return Made(value, (number,))

    def video(self) -> Made:
        """As a list of frames it must not be taken for several videos, nor several for one."""
        if self.breaks():
            return Made(self.one(*NO_VIDEO), None)
        number = self.rng.randrange(len(FRAMES) + len(FILMS))
        if number >= len(FRAMES):
            film = FILMS[number - len(FRAMES)]
            path = self.folder / f"{number}.mp4"
            uri = data_uri(film, "video/mp4")
            value = self.one(lambda: path, lambda: str(path), lambda: film, lambda: uri)
            return Made(value, (number,))
        broken, self.broken = self.broken, 0.0
        frames: list[object] = []
        for image in FRAMES[number]:
            while True:
                made = self.image()
                if made.meaning == (image,):
                    break
            frames.append(made.value)
        self.broken = broken
        return Made(self.rng.choice([list, tuple])(frames), (number,))


def meaning(videos: list[Any], images: list[Any], texts: list[Any]) -> Meaning:
    """Of parts in that order."""
    text = "".join(text for _, _, text in texts)
    if not videos + images + texts:
        text = "NULL"
    return tuple(n for (n,) in videos), tuple(n for (n,) in images), text


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


NO_CONTENT = [
    lambda: None,
    lambda: 3,
    lambda: b"a cat",
    lambda: IMAGES[0],
    lambda: np.zeros((8, 8, 3), np.uint8),
    lambda: {"a"},
    lambda: iter("ab"),
    lambda: object(),
    lambda: Path("cat.png"),
    lambda: ["a", "cat"],
    lambda: [["a"]],
]
NO_PART = [
    lambda: "a cat",
    lambda: None,
    lambda: IMAGES[0],
    lambda: {"text": "a"},
    lambda: {"type": "text"},
    lambda: {"type": "text", "text": b"a"},
    lambda: {"type": "text", "text": ["a"]},
    lambda: {"type": "image", "image": None},
    lambda: {"type": "image", "image": [PNGS[0]]},
    lambda: {"type": "image", "image": PNGS[0], "size": 3},
    lambda: {"type": "image_url", "image_url": IMAGES[0]},
    lambda: {"type": "image_url", "image_url": {"uri": URL.format(0)}},
    lambda: {"type": "input_text", "input_text": "a"},
    lambda: {"type": 3},
    lambda: [{"type": "text", "text": "a"}],
]
NO_IMAGE = [
    lambda: 7,
    lambda: {"url": URL.format(0)},
    lambda: "",
    lambda: "\udc80",
    lambda: "no such picture",
    lambda: URL.format(7),
    lambda: "data:image/png;base64,////",
    lambda: b"",
    lambda: PNGS[1][:-60],
    lambda: FILMS[0],
    lambda: [[PNGS[0]]],
    lambda: np.zeros((8, 8, 3)),
    lambda: np.zeros((0, 8, 3), np.uint8),
    lambda: np.zeros((1, 999), np.uint8),
    lambda: np.array("a"),
    lambda: PIL.Image.new("F", (8, 8)),
    lambda: complex(1, 1),
]
NO_VIDEO = [
    lambda: 7,
    lambda: {},
    lambda: b"",
    lambda: "no such film",
    lambda: FILMS[1][: len(FILMS[1]) // 2],
    lambda: [[]],
    lambda: [PNGS[0], None],
    lambda: [PNGS[0], "no such frame"],
    lambda: [IMAGES[0], IMAGES[1]],
    lambda: np.zeros((2, 8, 8, 3), np.uint8),
]
NO_LIST = [
    lambda: [],
    lambda: "a cat",
    lambda: b"a cat",
    lambda: None,
    lambda: 3,
    lambda: {"text": "a"},
    lambda: {"a", "cat"},
    lambda: iter(["a", "cat"]),
    lambda: range(2),
    lambda: [{"type": "text", "text": "a"}],
    lambda: np.array([["a", "cat"]]),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number, png in enumerate(PNGS):
        (folder / f"{number}.png").write_bytes(png)
    for number, data in enumerate(FILMS, len(FRAMES)):
        (folder / f"{number}.mp4").write_bytes(data)
    return folder


def plainly(meaning: Meaning) -> dict[str, object]:
    """A content that means that, in the one form that the fuzz compares with."""
    videos, images, text = meaning
    lists = [[IMAGES[i] for i in frames] for frames in FRAMES]
    return {
        "video": [[*lists, *FILMS][number] for number in videos],
        "image": [IMAGES[number] for number in images],
        "text": text,
    }


NAMED = re.compile(r"(the query of )?(documents|inputs)\b(\[\d\])?|query |document\b")


def is_sound(contents: list[Made], text_only: bool) -> bool:
    meanings = [made.meaning for made in contents]
    return bool(contents) and all(
        meaning is not None and not (text_only and (meaning[0] or meaning[1]))
        for meaning in meanings
    )


def fuzz_embed(maker: Maker, engine: Embedder, text_only: bool) -> bool:
    """One call: whether it was answered."""
    several = maker.contents()
    sound = is_sound(several, text_only)
    inputs = maker.listed(several)
    if maker.rng.random() < 0.02:
        inputs, sound = maker.one(*NO_LIST), False
    try:
        vectors = engine.embed(inputs, media=MEDIA)
    except (ValueError, TypeError) as error:
        assert not sound and NAMED.match(str(error)), error
        return False
    assert sound and vectors.dtype == np.float32 and vectors.shape == (len(several), 32)
    assert np.isfinite(vectors).all()
    i = maker.rng.randrange(len(several))
    alone = engine.embed([plainly(several[i].meaning)])
    np.testing.assert_allclose(vectors[i], alone[0], atol=2e-6)
    return True


def fuzz_score(maker: Maker, engine: Reranker, text_only: bool) -> bool:
    """One call: whether it was answered."""
    several = maker.contents()
    documents = maker.listed(several)
    ranked = maker.rng.random() < 0.2
    paired = not ranked and maker.rng.random() < 0.3
    queries = [maker.content() for _ in several] if paired else [maker.query()]
    sound = is_sound(several, text_only) and is_sound(queries, text_only)
    if paired and maker.rng.random() < 0.05:
        queries.append(maker.content())
        sound = False
    if maker.rng.random() < 0.02:
        documents, sound = maker.one(*NO_LIST), False
    query = maker.listed(queries) if paired else queries[0].value
    try:
        if ranked:
            ranking = engine.rank(query, documents, media=MEDIA)
            assert [r.score for r in ranking] == sorted((r.score for r in ranking), reverse=True)
            ranking.sort(key=lambda ranked: ranked.index)
            assert [r.index for r in ranking] == list(range(len(documents)))
            assert all(r.document is documents[r.index] for r in ranking)
            scores = [r.score for r in ranking]
        else:
            scores = engine.score(query, documents, media=MEDIA)
    except (ValueError, TypeError) as error:
        assert not sound and NAMED.match(str(error)), error
        return False
    assert sound and len(scores) == len(several)
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
    i = maker.rng.randrange(len(several))
    asked = queries[i if paired else 0].meaning
    [alone] = engine.score(plainly(asked), [plainly(several[i].meaning)])
    assert abs(alone - scores[i]) <= 2e-6
    return True


@pytest.mark.parametrize("block", range(20))
def test_any_form_is_answered_or_refused(block, engines, files):
    """10,000 calls. Of each that is sound, an answer is compared with that to the same meaning in
    another form and alone."""
    answered = 0
    for seed in range(block * 500, block * 500 + 500):
        maker = Maker(seed, files)
        text_only = maker.rng.random() < 0.1
        embed = maker.rng.random() < 0.4
        try:
            if embed:
                engine = engines.text_embedder if text_only else engines.embedder
                answered += fuzz_embed(maker, engine, text_only)
            else:
                engine = engines.text_reranker if text_only else engines.reranker
                answered += fuzz_score(maker, engine, text_only)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert 250 < answered < 400
