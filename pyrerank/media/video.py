"""Video: from a file or a list of frames to resized frames and their times.

Frames are sampled and resized as the published reference does it (see `pyrerank.media.images`).
torch and PyAV, the extra ``video``, are imported where they are needed, because text and images
need neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from pyrerank.media.images import SIDE, Pixels, Visual, check_size, fitting_size, resized_image
from pyrerank.media.sources import Media, open_source

# These numbers are the published reference's.  It first resizes a frame of a list as an image of
# squares, for whose sides it takes the side of a token for that of a patch, and doubles it.
LIST_SQUARES, LIST_SIDE = 16384, 2 * SIDE
FRAME_PIXELS = 128 * SIDE**2, 768 * SIDE**2  # the least and the most that a frame has
# The most pixels of a video, in which a pair of frames counts as one.  The reference has this limit
# for lists of frames only; without it, 64 frames of a file have more tokens than a prompt takes.
VIDEO_PIXELS = 7680 * SIDE**2
LIST_RATE = 2.0  # frames a second of a list
FILE_RATE = 1.0  # frames a second that are taken from a file
MIN_FILE_FRAMES = 4


def read_video(value: object, name: str, media: Media) -> Visual:
    """As `pyrerank.media.images.read_image`, for a video."""
    if isinstance(value, (list, tuple)):
        return _from_list(value, name, media)
    file = open_source(value, name, media)
    if file is None:
        raise TypeError(
            f"{name} must be a path, a URI, bytes or a list of frames, got {type(value).__name__}"
        )
    with file:
        return _from_file(file, name, media)


def _from_list(frames: Sequence[object], name: str, media: Media) -> Visual:
    if not frames:
        raise ValueError(f"{name} has no frames")
    most = min(len(frames), media.max_video_frames)
    picked = np.linspace(0, len(frames) - 1, most, dtype=int).tolist()
    images = (
        (i, resized_image(frames[i], f"{name}, frame[{i}]", media, LIST_SQUARES, LIST_SIDE))
        for i in picked
    )
    count = len(picked) + len(picked) % 2
    return Visual(_stack(images, count, name), _pair_means(range(count), LIST_RATE))


def _from_file(file: BinaryIO, name: str, media: Media) -> Visual:
    try:
        import av
    except ImportError:
        raise ImportError(
            f"{name} is a video file, and decoding one needs PyAV: pip install 'pyrerank[video]'"
        ) from None
    try:
        total, rate = _scan(file, name)
        picked = _sample(total, rate, media.max_video_frames)
        frames = _stack(_decode(file, picked, name, media), len(picked), name)
    except av.FFmpegError as error:
        raise ValueError(f"{name} cannot be decoded: {error.strerror}") from error
    return Visual(frames, _pair_means(picked, rate))


def _scan(file: BinaryIO, name: str) -> tuple[int, float]:
    """How many frames a file has, and how many a second."""
    with _container(file) as container:
        if not container.streams.video:
            raise ValueError(f"{name} has no video in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{name} is coded in a way that this build of PyAV cannot decode")
        check_size(stream.height, stream.width, name)
        total = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"{name} is truncated or damaged")
            total += packet.size > 0
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not total or not rate:
        raise ValueError(f"{name} has no frames, or does not say how many a second")
    return total, rate


def _container(file: BinaryIO) -> Any:
    """Opens a file from its start, and no other file, such as a playlist names."""
    import av

    file.seek(0)
    return av.open(file, options={"protocol_whitelist": "none"}, metadata_errors="replace")


def _sample(total: int, rate: float, most: int) -> list[int]:
    """The indices of the frames to take: an even number of them, at most ``most``."""
    import torch  # the reference's; numpy's linspace rounds otherwise

    count = min(max(total / rate * FILE_RATE, MIN_FILE_FRAMES), most, total)
    if count < 2:
        return [0, 0]
    return list(torch.linspace(0, total - 1, math.floor(count / 2) * 2).round().long().tolist())


def _decode(
    file: BinaryIO, picked: list[int], name: str, media: Media
) -> Iterator[tuple[int, Pixels]]:
    """The frames with the indices ``picked``, which ascend; upright."""
    wanted = iter(picked)
    index = next(wanted)
    with _container(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for i, frame in enumerate(container.decode(stream)):
            media.check_wanted(name)
            if frame.is_corrupt:
                raise ValueError(f"{name} is damaged at frame {i}")
            while i == index:
                check_size(frame.height, frame.width, name)
                pixels = frame.to_ndarray(format="rgb24")
                yield i, np.rot90(pixels, round(frame.rotation / 90))
                index = next(wanted, -1)
            if index < 0:
                return
    raise ValueError(f"{name} is truncated: frame {index} is missing")


def _stack(frames: Iterator[tuple[int, Pixels]], count: int, name: str) -> Pixels:
    """Resizes frames, of which the last may be repeated, for a video of ``count`` frames."""
    least, most = FRAME_PIXELS
    most_here = max(min(most, VIDEO_PIXELS / count * 2), int(least * 1.05))
    shape, resized = None, []
    for i, frame in frames:
        if shape is None:
            shape = frame.shape
            # the first resizing of a list's frames may have made a strip narrower still
            check_size(shape[0], shape[1], f"{name}, frame[{i}] as resized,")
            size = fitting_size(shape[0], shape[1], least, most_here)
        elif frame.shape != shape:
            raise ValueError(
                f"{name}: frames must have one size; frame[{i}] becomes {frame.shape[1]} x "
                f"{frame.shape[0]} pixels, the first one {shape[1]} x {shape[0]}"
            )
        resized.append(frame if shape[:2] == size else _resized(frame, size))
    resized += resized[-1:] * (count - len(resized))
    return np.stack(resized)


def _resized(frame: Pixels, size: tuple[int, int]) -> Pixels:
    import torch
    import torch.nn.functional as F

    channels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(channels, size, mode="bicubic", antialias=True)
    rounded = resized[0].permute(1, 2, 0).round().clamp(0, 255)
    return rounded.to(torch.uint8).numpy()


def _pair_means(indices: Sequence[int], rate: float) -> tuple[float, ...]:
    pairs = zip(indices[::2], indices[1::2], strict=True)
    return tuple((first / rate + second / rate) / 2 for first, second in pairs)
