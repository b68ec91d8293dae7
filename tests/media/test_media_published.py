"""Pictures and videos equal those of the published package, to the pixel and the second."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from published_media import Clip, package, resized

from pyrerank.media.reader import Reader
from pyrerank.media.sources import Media

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parents[1] / "data/pictures"
# width, height: at the edges of what is rounded, enlarged, shrunk or refused
EDGES = [(1, 1), (1, 200), (200, 1), (31, 33), (48, 80), (160, 120), (896, 1120), (1024, 768)]
STRIPS = [(100, 20000), (20000, 101), (95, 19000), (19000, 95), (1, 201), (97, 19400), (9, 1801)]


def sizes(seed: int) -> list[tuple[int, int]]:
    """Some hundred sizes: tiny, ordinary, narrow, wide and big ones."""
    rng = random.Random(seed)
    found = EDGES + STRIPS
    found += [(rng.randint(1, 70), rng.randint(1, 70)) for _ in range(30)]
    found += [(rng.randint(17, 700), rng.randint(17, 700)) for _ in range(40)]
    found += [(rng.randint(700, 2600), rng.randint(700, 2600)) for _ in range(6)]
    for _ in range(20):
        short = rng.randint(1, 20)
        strip = short, rng.randint(short, 205 * short)
        found.append(rng.choice([strip, strip[::-1]]))
    return found


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Every difference in resizing shows in it."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values)


def frames(count: int, width: int, height: int) -> list[PIL.Image.Image]:
    """Up to four different ones, again and again."""
    return ([noise(width, height, i) for i in range(min(count, 4))] * count)[:count]


def check_video(value: object, want: Clip) -> None:
    [got] = Reader().read({"video": value}, "query").videos
    np.testing.assert_array_equal(got.frames, want.frames)
    assert got.seconds == pytest.approx(want.seconds, rel=1e-12)


@pytest.mark.parametrize(("width", "height"), sizes(0))
def test_images(width: int, height: int) -> None:
    picture = noise(width, height)
    try:
        want = resized(picture)
    except ValueError:
        with pytest.raises(ValueError, match=r"query, image is .* pixels, a ratio over 200"):
            Reader().read({"image": picture}, "query")
        return
    [got] = Reader().read({"image": picture}, "query").images
    np.testing.assert_array_equal(got.frames[0], want)


@pytest.mark.parametrize("limit", [4, 5, 20, 1000, 5000])
def test_images_under_another_limit(limit: int) -> None:
    """Where the package keeps to it: it makes some pictures larger than a low limit allows."""
    reader = Reader(Media(max_image_tokens=limit))
    compared = 0
    for width, height in sizes(1)[:60]:
        picture = noise(width, height)
        if max(width, height) > 200 * min(width, height):
            continue
        rows, columns = package.smart_resize(height, width, 32, 4 * 1024, limit * 1024)
        if not 0 < rows * columns <= limit * 1024:
            continue
        [got] = reader.read({"image": picture}, "query").images
        np.testing.assert_array_equal(got.frames[0], resized(picture, limit))
        compared += 1
    assert compared > 20


@pytest.mark.parametrize(("width", "height"), sizes(2))
def test_frames_of_any_size(width: int, height: int) -> None:
    """A strip is refused, too, that the first resizing makes narrower than 200 to 1."""
    given = frames(2, width, height)
    try:
        want = Clip.of_pictures(given)
    except ValueError:
        with pytest.raises(ValueError, match=r"query, video, frame\[0\].* a ratio over 200"):
            Reader().read({"video": given}, "query")
        return
    check_video(given, want)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 20, 21, 22, 31, 63, 64, 65, 70])
def test_any_number_of_frames(count: int) -> None:
    """Of sizes that come under the limit of a frame, or of the whole video, or under none."""
    for width, height in [(160, 120), (640, 480), (50 + 7 * count, 300)][: 3 if count < 23 else 1]:
        given = frames(count, width, height)
        check_video(given, Clip.of_pictures(given))


def test_a_list_of_paths(tmp_path: Path) -> None:
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
        noise(333, 217, i).save(paths[-1])
    want = Clip.of_pictures([f"file://{path}" for path in paths])
    check_video(paths, want)
    check_video([str(path) for path in paths], want)


# codec, pixel format, container, frames, a second, width, height
FILMS = [
    ("libx264", "yuv420p", "mp4", 3, 25, 176, 144),
    ("libx264", "yuv420p", "mp4", 2400, 30, 64, 48),
    ("libx264", "yuv444p", "mkv", 47, Fraction(30000, 1001), 141, 97),
    ("libx264", "yuv420p", "mp4", 8, 1, 1280, 720),
    ("libx265", "yuv420p", "mp4", 30, 10, 320, 240),
    ("libvpx-vp9", "yuv420p", "webm", 24, 12, 318, 202),
    ("mjpeg", "yuvj444p", "avi", 31, 4, 333, 251),
    ("mjpeg", "yuvj420p", "avi", 70, 1, 640, 480),  # frames as large as a video of 64 may have them
    ("mpeg4", "yuv420p", "mp4", 50, 2, 352, 288),
    ("ffv1", "bgr0", "mkv", 5, Fraction(24000, 1001), 75, 333),
]


def film(path: Path, codec: str, pixels: str, count: int, rate: object, *size: int) -> None:
    """A picture that moves over noise; the rate None varies."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate or 10)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.options = {
            "libx264": {"preset": "ultrafast"},
            "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
            "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        }.get(codec, {})
        still, tick = np.asarray(noise(*size)), 0
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 3 * i, 1), format="rgb24")
            if rate is None:
                frame.time_base, frame.pts = Fraction(1, 1000), tick
                tick += 40 + 97 * i % 331
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("case", FILMS, ids=lambda case: f"{case[0]}-{case[3]}")
def test_files(case: tuple, tmp_path: Path) -> None:
    codec, pixels, container, *rest = case
    path = tmp_path / f"film.{container}"
    film(path, codec, pixels, *rest)
    check_video(path, Clip.of_file(path))


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_a_file_whose_rate_varies(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    film(path, codec, "yuv420p", 33, None, 176, 144)
    with av.open(path) as file:
        steps = np.diff([frame.time for frame in file.decode(video=0)])
    assert steps.max() > 2 * steps.min()
    check_video(path, Clip.of_file(path))


def test_the_shipped_file() -> None:
    check_video(PICTURES / "stars.mp4", Clip.of_file(PICTURES / "stars.mp4"))
