"""Media, against Pillow, the published sizes, and files written by other libraries' encoders."""

import base64
import io
import random
import struct
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pyrerank.media.images import SIDE, Visual, fitting_size
from pyrerank.media.reader import Content, Reader
from pyrerank.media.sources import MAX_IMAGE_TOKENS, MIN_IMAGE_TOKENS, Media
from pyrerank.media.video import FRAME_PIXELS

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parents[1] / "data/pictures"
IMAGE_PIXELS = MIN_IMAGE_TOKENS * SIDE**2, MAX_IMAGE_TOKENS * SIDE**2
CAT, PAGE, STARS = PICTURES / "cat.jpg", PICTURES / "page.png", PICTURES / "stars.mp4"


def read(value: object, name: str, **media: Any) -> Content:
    return Reader(Media(**media)).read(value, name)


def pixels(value: object) -> np.ndarray:
    """The pixels of one image."""
    [image] = read({"image": value}, "documents[0]").images
    return image.frames[0]


def encoded(picture: PIL.Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def plain(red: int, green: int, blue: int) -> PIL.Image.Image:
    """One colour, 64 x 64: no resizing changes it."""
    return PIL.Image.new("RGB", (64, 64), (red, green, blue))


def colour(shown: np.ndarray) -> tuple[int, ...]:
    """The one colour of an image."""
    [one] = np.unique(shown.reshape(-1, 3), axis=0)
    return tuple(one.tolist())


# height, width -> height, width, by smart_resize of qwen_vl_utils 0.0.14
# (factor=32, min_pixels=4 * 1024, max_pixels=1800 * 1024)
SIZES = [
    ((1, 1), (64, 64)),
    ((1, 200), (32, 192)),
    ((16, 16), (64, 64)),
    ((48, 80), (64, 64)),
    ((49, 80), (64, 64)),
    ((10, 1000), (32, 992)),
    ((112, 113), (128, 128)),
    ((300, 451), (288, 448)),
    ((427, 640), (416, 640)),
    ((1120, 896), (1120, 896)),
    ((1080, 1920), (992, 1792)),
    ((1344, 1372), (1312, 1344)),
    ((1411, 1411), (1344, 1344)),
    ((3000, 4000), (1152, 1536)),
    ((100, 20000), (96, 19200)),
    ((200, 20000), (128, 13568)),
]


@pytest.mark.parametrize(("given", "expected"), SIZES)
def test_size_of_the_published_reference(given: tuple, expected: tuple) -> None:
    assert fitting_size(*given, *IMAGE_PIXELS) == expected


@given(st.integers(16, 4000), st.floats(0.01, 100), st.sampled_from([IMAGE_PIXELS, FRAME_PIXELS]))
def test_sizes_equal_transformers(height: int, aspect: float, limits: tuple) -> None:
    """From 16 pixels a side on: below, transformers rounds a side to nothing."""
    width = max(17, int(height * aspect))
    height = max(17, height, width // 199)
    expected = smart_resize(height, width, 32, *limits)
    assert fitting_size(height, width, *limits) == expected


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "rocket.jpg", "page.png"])
def test_resized_as_pillow_does(name: str) -> None:
    with PIL.Image.open(PICTURES / name) as picture:
        width, height = picture.size
        size = fitting_size(height, width, *IMAGE_PIXELS)
        expected = picture.convert("RGB").resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    shown = pixels(PICTURES / name)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, np.asarray(expected))


def test_every_form_of_an_image_is_the_same_image() -> None:
    data = CAT.read_bytes()
    picture = PIL.Image.open(CAT)
    forms = [
        str(CAT),
        CAT,
        CAT.as_uri(),
        data,
        bytearray(data),
        memoryview(data),
        picture,
        np.asarray(picture),
        np.dstack([np.asarray(picture), np.full((300, 451), 255, np.uint8)]),
        np.asarray(picture)[:, ::-1][:, ::-1],  # negative strides
        "data:image/jpeg;base64," + base64.b64encode(data).decode(),
        "DATA:;Base64," + base64.encodebytes(data).decode().replace("+", "%2B"),
        "data:image/jpeg," + "".join(f"%{byte:02x}" for byte in data),
        "https://pictures.test/cat.jpg?size=1",
    ]
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return data

    content = read({"image": forms}, "query", fetch=fetch)
    assert content.images == (Visual(pixels(CAT)[None]),) * len(forms)
    assert len(set(content.images)) == 1
    assert asked == ["https://pictures.test/cat.jpg?size=1"]
    assert content.images[0] != Visual(pixels(PAGE)[None])


def test_digest_names_shape_and_pixels() -> None:
    black = np.zeros((1, 64, 96, 3), np.uint8)
    assert Visual(black).digest != Visual(black.reshape(1, 96, 64, 3)).digest
    assert Visual(black) != Visual(black + 1)
    assert hash(Visual(black)) == hash(Visual(black.copy()))


# --- contents


def test_contents() -> None:
    cat, page = Visual(pixels(CAT)[None]), Visual(pixels(PAGE)[None])
    url = "data:image/png;base64," + base64.b64encode(PAGE.read_bytes()).decode()
    cases = [
        ("", Content(text="")),
        ("cat.jpg", Content(text="cat.jpg")),
        ({"text": None, "image": None, "video": None}, Content()),
        ({"image": None}, Content()),
        ({"text": ""}, Content(text="")),
        ({"text": "a", "image": [], "video": None}, Content(text="a")),
        ({"text": ["a", "", " b"]}, Content(text="a b")),
        ({"text": "a", "image": CAT}, Content(images=(cat,), text="a")),
        ({"image": (CAT, PAGE)}, Content(images=(cat, page))),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], Content(text="ab")),
        (
            [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
                {"type": "image_url", "image_url": url},
                {"type": "image", "image": CAT},
            ],
            Content(images=(page, page, cat), text="a"),
        ),
    ]
    for value, expected in cases:
        assert read(value, "query") == expected, value


def test_videos_or_frames() -> None:
    """A list under "video" that starts with a picture is one video, otherwise it is videos."""
    frame = np.asarray(plain(1, 2, 3))
    png = encoded(plain(1, 2, 3), "PNG")
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    for frames in ([frame] * 2, [png, frame], [uri, frame], [CAT, CAT], [str(CAT), CAT]):
        [video] = read({"video": frames}, "query").videos
        assert video.seconds == (0.25,)
        assert [video, video] == list(read({"video": [frames, tuple(frames)]}, "query").videos)
        assert read([{"type": "video", "video": frames}], "query").videos == (video,)
    data = STARS.read_bytes()
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    stars = read({"video": STARS}, "query").videos
    for value in ([STARS], [str(STARS)], data, [data], url, [url]):
        assert read({"video": value}, "query").videos == stars
    part = {"type": "video_url", "video_url": {"url": url}}
    assert read([part, part], "query").videos == stars * 2
    named = [{"type": "video_url", "video_url": {"url": "http://host.test/stars"}}]
    assert read(named, "query", fetch=lambda url: data).videos == stars


# --- decoding: as a viewer shows it


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """A quadrant of each colour, stored so that the tag puts it upright."""
    upright = np.zeros((64, 128, 3), np.uint8)
    upright[:32, :64], upright[:32, 64:], upright[32:, :64] = 250, (250, 0, 0), (0, 250, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    png = encoded(PIL.Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(png), upright)
    opened = PIL.Image.open(io.BytesIO(png))
    np.testing.assert_array_equal(pixels(opened), upright)
    assert opened.size == stored.shape[1::-1], "the caller's picture was changed"


def decoding_cases() -> dict[str, tuple[object, tuple[int, int, int]]]:
    red = plain(200, 0, 0)
    palette = red.quantize(4)
    clear = PIL.Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    half = PIL.Image.new("RGBA", (64, 64), (200, 0, 0, 51))
    grey = PIL.Image.new("L", (64, 64), 100)
    wide = np.full((64, 64), 100 * 257, np.uint16)
    down = np.full((64, 64), 65_280, np.uint16)  # 254.008 of 255, and 255 * 256
    up = np.full((64, 64), 129, np.uint16)  # 0.502 of 255, and 0.504 * 256
    return {
        "png": (encoded(red, "PNG"), (200, 0, 0)),
        "bmp": (encoded(red, "BMP"), (200, 0, 0)),
        "webp": (encoded(red, "WEBP", lossless=True), (200, 0, 0)),
        "tiff": (encoded(red, "TIFF"), (200, 0, 0)),
        "ppm": (encoded(red, "PPM"), (200, 0, 0)),
        "palette": (encoded(palette, "PNG"), (200, 0, 0)),
        "palette, clear entry": (encoded(palette, "PNG", transparency=0), (255, 255, 255)),
        "clear": (encoded(clear, "PNG"), (255, 255, 255)),
        "a fifth opaque": (encoded(half, "PNG"), (244, 204, 204)),
        "a fifth opaque, PIL": (half, (244, 204, 204)),
        "a fifth opaque, array": (np.asarray(half), (244, 204, 204)),
        "premultiplied": (half.convert("RGBa"), (244, 204, 204)),
        "clear colour": (encoded(red, "PNG", transparency=(200, 0, 0)), (255, 255, 255)),
        "grey": (encoded(grey, "PNG"), (100, 100, 100)),
        "grey, clear": (encoded(PIL.Image.new("LA", (64, 64), (9, 0)), "PNG"), (255, 255, 255)),
        "grey array": (np.asarray(grey), (100, 100, 100)),
        "grey array, 3 axes": (np.asarray(grey)[..., None], (100, 100, 100)),
        "1 bit": (encoded(PIL.Image.new("1", (64, 64), 1), "PNG"), (255, 255, 255)),
        "16 bits": (encoded(PIL.Image.fromarray(wide), "PNG"), (100, 100, 100)),
        "16 bits, TIFF": (encoded(PIL.Image.fromarray(wide), "TIFF"), (100, 100, 100)),
        "16 bits, rounded down": (encoded(PIL.Image.fromarray(down), "PNG"), (254, 254, 254)),
        "16 bits, rounded up": (encoded(PIL.Image.fromarray(up), "PNG"), (1, 1, 1)),
        "16 bits, PGM": (b"P5 64 64 65535\n" + wide.astype(">u2").tobytes(), (100, 100, 100)),
        "CMYK": (PIL.Image.new("CMYK", (64, 64), (0, 255, 255, 55)), (200, 0, 0)),
        "CMYK, TIFF": (
            encoded(PIL.Image.new("CMYK", (64, 64), (0, 255, 255, 55)), "TIFF"),
            (200, 0, 0),
        ),
        "CMYK, Adobe's inverted JPEG": (
            encoded(PIL.Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG", quality=100),
            (255, 255, 255),
        ),
        "animated GIF": (
            encoded(red, "GIF", save_all=True, append_images=[plain(0, 200, 0)]),
            (200, 0, 0),
        ),
        "animated WebP": (
            encoded(red, "WEBP", lossless=True, save_all=True, append_images=[plain(0, 200, 0)]),
            (200, 0, 0),
        ),
        "pages of a TIFF": (
            encoded(red, "TIFF", save_all=True, append_images=[plain(0, 200, 0)]),
            (200, 0, 0),
        ),
    }


@pytest.mark.parametrize("case", decoding_cases())
def test_decoded_as_a_viewer_shows_it(case: str) -> None:
    value, expected = decoding_cases()[case]
    assert colour(pixels(value)) == expected


# --- what cannot be read


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to nothing behind it."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def eps() -> bytes:
    return encoded(plain(1, 2, 3), "EPS")


def numbers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype)


def picture_url(detail: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": "data:,", "detail": detail}}


PART = "documents[7], part[0]"
MALFORMED: list[tuple[object, type[Exception], str]] = [
    (None, TypeError, "documents[7] must be a str, a dict"),
    (3.5, TypeError, "got float"),
    (numbers(8, 8, 3), TypeError, "got ndarray"),
    ({}, ValueError, "documents[7] is {}, a content without any part"),
    ([], ValueError, "documents[7] is [], a content without any part"),
    ((), ValueError, "documents[7] is (), a content without any part"),
    ({"image": []}, ValueError, "documents[7] is {'image': []}, a content without any part"),
    ({"text": (), "image": None}, ValueError, "a content without any part"),
    ({"img": "cat.jpg"}, ValueError, "unknown key 'img'"),
    ({"type": "text", "text": "a"}, ValueError, "wrap parts in a list"),
    ({"text": 3}, TypeError, "documents[7], text must be str, got int"),
    ({"text": ["a", b"b"]}, TypeError, "documents[7], text[1] must be str, got bytes"),
    (["a"], TypeError, "documents[7], part[0] must be a dict"),
    ([{"text": "a"}], ValueError, PART + " is of type None"),
    ([{"type": "audio", "audio": b""}], ValueError, PART + " is of type 'audio'"),
    ([{"type": ["text"], "text": "a"}], ValueError, PART + " is of type ['text']"),
    ([{"type": "image"}], ValueError, PART + " is of type 'image' and has no 'image'"),
    ([{"type": "image", "image": CAT, "max_pixels": 9}], ValueError, "unknown key 'max_pixels'"),
    ([{"type": "image_url", "image_url": {}}], TypeError, "the URL must be str, got NoneType"),
    ([{"type": "image_url", "image_url": b"x"}], TypeError, "the URL must be str, got bytes"),
    ([picture_url("low")], ValueError, PART + ": 'detail' must be 'auto' or 'high', got 'low'"),
    ([picture_url(1)], ValueError, PART + ": 'detail' must be 'auto' or 'high', got 1"),
    ([picture_url("\ud800")], ValueError, "got '\\ud800'"),
    ({"image": 5}, TypeError, "documents[7], image must be a path"),
    ({"image": [CAT, None]}, TypeError, "documents[7], image[1] must be a path"),
    ({"image": {"url": "x"}}, TypeError, "got dict"),
    ({"image": "missing.jpg"}, ValueError, "'missing.jpg' does not exist"),
    ({"image": PICTURES}, ValueError, "is not a file"),
    ({"image": "/dev/zero"}, ValueError, "is not a file"),
    ({"image": "a\0b.png"}, ValueError, "does not exist"),
    ({"image": ""}, ValueError, "is not a file"),
    ({"image": "A" * 5000}, ValueError, "start with 'data:'"),
    ({"image": "https://host.test/a.png"}, ValueError, "fetching is off"),
    ({"image": "data:image/png;base64"}, ValueError, "no comma"),
    ({"image": "data:image/png;base64,@@@@"}, ValueError, "not valid"),
    ({"image": "data:image/png;base64,"}, ValueError, "is empty"),
    ({"image": "data:,\udc80"}, ValueError, "not valid"),
    ({"image": b""}, ValueError, "documents[7], image is empty"),
    ({"image": b"not a picture"}, ValueError, "is not a picture"),
    ({"image": STARS}, ValueError, "is not a picture"),
    ({"image": eps()}, ValueError, "is not a picture"),
    ({"image": CAT.read_bytes()[:9000]}, ValueError, "documents[7], image cannot be decoded"),
    ({"image": PAGE.read_bytes()[:-3000]}, ValueError, "cannot be decoded"),
    ({"image": PAGE.read_bytes()[:20]}, ValueError, "documents[7], image"),
    ({"image": png_of(0, 10)}, ValueError, "documents[7], image"),
    ({"image": png_of(30_000, 30_000)}, ValueError, "documents[7], image"),
    ({"image": png_of(201, 1)}, ValueError, "201 x 1 pixels, a ratio over 200"),
    ({"image": numbers(0, 8, 3)}, ValueError, "is empty: 8 x 0 pixels"),
    ({"image": numbers(1, 201)}, ValueError, "201 x 1 pixels"),
    (
        {"image": np.broadcast_to(numbers(1), (9460, 9460))},
        ValueError,
        "over the limit of 89478485",
    ),
    ({"image": numbers(8, 8, 2)}, ValueError, "got [8, 8, 2]"),
    ({"image": numbers(2, 8, 8, 3)}, ValueError, "got [2, 8, 8, 3]"),
    ({"image": numbers(8, 8, 3, dtype=np.float32)}, TypeError, "got float32"),
    ({"image": PIL.Image.new("F", (8, 8))}, ValueError, "floating-point"),
    ({"image": PIL.Image.new("I", (8, 8), 70_000)}, ValueError, "more than 16 bits"),
    ({"video": 5}, TypeError, "documents[7], video must be a path"),
    ({"video": numbers(4, 8, 8, 3)}, TypeError, "a list of frames, got ndarray"),
    ({"video": [[]]}, ValueError, "documents[7], video[0] has no frames"),
    ({"video": [CAT, "missing.jpg"]}, ValueError, "documents[7], video, frame[1]: 'missing.jpg'"),
    ({"video": [[CAT, b"x"]]}, ValueError, "documents[7], video[0], frame[1] is not a picture"),
    ({"video": [CAT, PAGE]}, ValueError, "frame[1] becomes 896 x 1152 pixels"),
    ({"video": b""}, ValueError, "documents[7], video cannot be decoded"),
    ({"video": b"not a video, not by far"}, ValueError, "documents[7], video cannot be decoded"),
    ({"video": STARS.read_bytes().replace(b"avc1", b"what")}, ValueError, "PyAV cannot decode"),
    ({"video": STARS.read_bytes()[:4000]}, ValueError, "documents[7], video"),
    ({"video": STARS.read_bytes()[:-500]}, ValueError, "documents[7], video"),
]


@pytest.mark.parametrize(("value", "error", "message"), MALFORMED)
def test_malformed(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        read(value, "documents[7]")
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert str(raised.value).startswith("documents[7]")
    assert len(str(raised.value)) < 400


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(b"")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"^query, image: '.*a.png' cannot be read: Permission"):
        read({"image": path}, "query")


def test_what_a_fetch_raises_is_named() -> None:
    def fetch(url: str) -> bytes:
        raise ValueError(f"{url} answered 404")

    with pytest.raises(ValueError, match=r"^query, image\[0\]: http://a.test answered 404$"):
        read({"image": ["http://a.test"]}, "query", fetch=fetch)


@given(
    height=st.integers(1, 400),
    aspect=st.floats(0.006, 180),
    tokens=st.integers(MIN_IMAGE_TOKENS, 40),
)
def test_a_lower_limit_holds_for_any_shape(height: int, aspect: float, tokens: int) -> None:
    width = max(1, round(height * aspect))
    if max(height, width) > 200 * min(height, width):
        return
    value = {"image": np.zeros((height, width), np.uint8)}
    [image] = read(value, "query", max_image_tokens=tokens).images
    rows, columns, _ = image.frames[0].shape
    assert rows % SIDE == columns % SIDE == 0
    assert 1 <= rows * columns // SIDE**2 <= tokens


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_image_tokens": 3}, "max_image_tokens must be an int from 4 up, got 3"),
        ({"max_image_tokens": 10.5}, "max_image_tokens must be"),
        ({"max_video_frames": 0}, "max_video_frames must be an even int from 2 up, got 0"),
        ({"max_video_frames": 5}, "max_video_frames must be"),
    ],
)
def test_limits_outside_the_described(limits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Media(**limits)


def test_media_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"media must be a pyrerank.Media or None, got dict"):
        Reader({"max_image_tokens": 9})


def test_a_picture_that_comes_again_is_read_once() -> None:
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return CAT.read_bytes()

    reader = Reader(Media(fetch=fetch))
    picture, url = PIL.Image.open(CAT), "http://a.test/cat.jpg"
    contents = [reader.read({"image": [url, picture, CAT]}, "query") for _ in range(3)]
    assert asked == [url]
    first, *others = contents
    for other in others:
        for a, b in zip(first.images, other.images, strict=True):
            assert a is b
    # what is no longer there is not taken for something new at its place
    read_again = [reader.read({"image": plain(i, 0, 0)}, "query").images[0] for i in range(20)]
    assert len({image.digest for image in read_again}) == 20


# --- videos


def test_frames_of_a_long_list_are_taken_evenly() -> None:
    """64 of 130, by numpy's own rounding down, as the published script has it."""
    frames = [numbers(64, 64) + i for i in range(130)]
    [video] = read({"video": frames}, "query").videos
    expected = [int(i * 129 / 63) for i in range(64)]
    assert video.frames[:, 0, 0, 0].tolist() == expected


def film(count: int, rate: int, format: str = "mp4", codec: str = "libx264") -> bytes:
    """Grey frames; frame i has the level 3 * i + 16."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(count):
            grey = numbers(64, 96, 3) + np.uint8(3 * i + 16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


# frames in the file, frames a second -> indices of those taken: fetch_video of qwen_vl_utils with
# fps=1, max_frames=64 (smart_nframes, then torch.linspace(0, last, count).round()); a single
# frame, which it refuses, is doubled
FILMS = [
    ((1, 4), [0, 0]),
    ((2, 4), [0, 1]),
    ((3, 4), [0, 2]),
    ((5, 4), [0, 1, 3, 4]),
    ((24, 4), [0, 5, 9, 14, 18, 23]),
    ((31, 4), [0, 6, 12, 18, 24, 30]),
    ((8, 1), list(range(8))),
    ((70, 1), torch.linspace(0, 69, 64).round().int().tolist()),
]


@pytest.mark.parametrize(("given", "indices"), FILMS)
def test_video_file(given: tuple[int, int], indices: list[int]) -> None:
    [video] = read({"video": film(*given)}, "query").videos
    levels = video.frames.reshape(len(indices), -1).mean(1)
    assert np.abs(levels - (3 * np.array(indices) + 16)).max() < 1.5, levels
    times = np.array(indices) / given[1]
    np.testing.assert_allclose(video.seconds, (times[::2] + times[1::2]) / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("format", "codec"), [("matroska", "ffv1"), ("avi", "ffv1"), ("mpegts", "libx264")]
)
def test_video_formats(format: str, codec: str) -> None:
    [video] = read({"video": film(24, 4, format, codec)}, "query").videos
    levels = video.frames.reshape(len(video.frames), -1).mean(1)
    assert np.abs(levels - (3 * np.array([0, 5, 9, 14, 18, 23]) + 16)).max() < 1.5, levels


def test_a_cut_frame_is_not_shown() -> None:
    """AVI is read from its start, without its index: all but a part of a frame is there."""
    data = film(8, 1, "avi", "mpeg4")
    with pytest.raises(ValueError, match="query, video is truncated or damaged"):
        read({"video": data[: data.index(b"idx1") - 10]}, "query")


def test_turned_video() -> None:
    """A quarter turn clockwise by the track header, as telephones write it."""
    one, zero, back = (struct.pack(">i", value << 16) for value in (1, 0, -1))
    frames = numbers(64, 96, 3)
    frames[:32] = 200  # bright above, dark below
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frames, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(file.getvalue())
    matrix = data.index(b"tkhd") + 44
    assert data[matrix : matrix + 4] == one
    data[matrix : matrix + 20] = zero + one + zero + back + zero
    [video] = read({"video": data}, "query").videos
    _, height, width, _ = video.frames.shape
    assert height > width
    # what was above is to the right
    assert video.frames[0, :, : width // 3].mean() < 20
    assert video.frames[0, :, -width // 3 :].mean() > 180


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "part.ts").write_bytes(film(8, 4, "mpegts"))
    playlist = tmp_path / "list.m3u8"
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
    playlist.write_text(f"{head}file://{tmp_path}/part.ts\n#EXT-X-ENDLIST\n")
    concat = f"ffconcat version 1.0\nfile '{tmp_path}/part.ts'\n".encode()
    for value in (playlist, playlist.read_bytes(), concat):
        with pytest.raises(ValueError, match="query, video"):
            read({"video": value}, "query")


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"^query, video is a video file.*pyrerank\[video\]"):
        read({"video": STARS}, "query")
    assert len(read({"video": [CAT, CAT]}, "query").videos) == 1


# --- any form


def scraps() -> list[bytes]:
    """Encoded pictures and videos, whole and mangled."""
    rng = random.Random(0)
    whole = [encoded(plain(9, 9, 9), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF")]
    whole += [encoded(plain(9, 9, 9), "BMP"), film(2, 1)]
    mangled = []
    for data in whole * 6:
        bad = bytearray(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        for _ in range(rng.randrange(4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        mangled.append(bytes(bad))
    return [b"", b"\0" * 64, *whole, *mangled]


SCRAPS = scraps()
texts = st.text(max_size=8) | st.sampled_from(["\udc80", "data:,", "http://[", "file://", "."])
pictures = st.one_of(
    texts,
    st.sampled_from(SCRAPS),
    st.sampled_from([plain(1, 1, 1), numbers(8, 8), numbers(3), numbers(1, 1, 4), CAT, STARS]),
    st.sampled_from(SCRAPS).map(lambda b: "data:;base64," + base64.b64encode(b).decode()),
    st.none() | st.integers() | st.floats() | st.just({}),
)
videos = pictures | st.lists(pictures, max_size=3)
contents = st.one_of(
    texts,
    st.none() | st.integers(),
    st.dictionaries(texts, texts, max_size=2),
    st.fixed_dictionaries(
        {},
        optional={
            "text": texts | st.lists(texts | st.none(), max_size=3),
            "image": pictures | st.lists(pictures, max_size=3),
            "video": videos | st.lists(videos, max_size=2),
        },
    ),
    st.lists(
        st.one_of(
            st.none() | texts,
            st.fixed_dictionaries({"type": texts}),
            st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
            st.fixed_dictionaries({"type": st.just("image"), "image": pictures}),
            st.fixed_dictionaries({"type": st.just("video"), "video": videos}),
            st.fixed_dictionaries({"type": st.just("image_url"), "image_url": pictures}),
            st.fixed_dictionaries(
                {
                    "type": st.just("video_url"),
                    "video_url": st.fixed_dictionaries({"url": texts}),
                }
            ),
        ),
        max_size=3,
    ),
)


@settings(max_examples=1000)
@given(contents)
def test_any_form_is_read_or_refused_by_name(value: object) -> None:
    try:
        content = read(value, "documents[7]")
    except (TypeError, ValueError) as error:
        assert str(error).startswith("documents[7]")
        return
    for image in content.images:
        height, width, channels = image.frames[0].shape
        assert not height % 32 and not width % 32 and channels == 3
        assert 4 <= height * width // 1024 <= 1800
    for video in content.videos:
        count, height, width, channels = video.frames.shape
        assert not count % 2 and not height % 32 and not width % 32 and channels == 3
        assert len(video.seconds) == count // 2
    if isinstance(value, dict):
        expected = [given for given in (value.get("image"),) if given is not None]
        if expected and isinstance(expected[0], (list, tuple)):
            [expected] = expected
        assert len(content.images) == len(expected)
