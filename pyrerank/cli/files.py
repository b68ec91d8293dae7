"""Opens the files that ``--input`` and ``--output`` name, and has the input's lines answered.

This module knows what the options mean, and nothing of what lines hold: see `pyrerank.cli.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from pyrerank import __version__
from pyrerank.cli.display import show_warning
from pyrerank.cli.journal import Journal, identity, path_beside
from pyrerank.cli.jsonl import EmbedTask, ScoreTask, process
from pyrerank.cli.outputs import JsonLines, NpyRows
from pyrerank.media.sources import Media


def answer_lines(
    args: argparse.Namespace,
    media: Media,
    load: Callable[[], tuple[ScoreTask | EmbedTask, dict[str, Any]]],
) -> int:
    """Answers every line of the input, or every text of the command line.

    Args:
        args: the parsed command line.
        media: says how pictures are read.
        load: loads the model.  It returns the task, and those of the settings that results depend
            on which only this command has.

    Returns:
        The exit status.
    """
    with ExitStack() as stack:
        source: Iterable[bytes] = [json.dumps({"text": text}).encode() for text in args.texts]
        total: int | None = len(args.texts)
        if args.input == "-":
            source, total = sys.stdin.buffer, None
        elif args.input is not None:
            source = file = stack.enter_context(open(args.input, "rb"))
            total = None
            if file.seekable():
                total = sum(1 for _ in file)
                file.seek(0)
        task, own = load()
        target: BinaryIO = sys.stdout.buffer
        journal = None
        dim = task.engine.dim if isinstance(task, EmbedTask) else None
        npy = dim is not None and str(args.output).endswith(".npy")
        if args.output is not None:
            path = Path(args.output)
            target = stack.enter_context(_open_output(path, args.resume))
            settings = _settings(args, task, media) | own
            start = NpyRows.START if npy else JsonLines.START
            journal = stack.enter_context(Journal(path, target, settings, start))
        output = NpyRows(target, dim) if npy and dim else JsonLines(target)
        done = process(task, source, output, journal, total=total, progress=args.progress)
    if done.cut:
        limit = task.engine.max_tokens
        show_warning(f"{done.cut} prompts were cut to the limit of {limit} tokens")
    if done.errors:
        print(f"pyrerank: {done.errors} input lines were in error", file=sys.stderr)
    return 1 if done.errors else 0


def _settings(
    args: argparse.Namespace, task: ScoreTask | EmbedTask, media: Media
) -> dict[str, Any]:
    """The settings that results depend on besides the input, by the names of the options."""
    return {
        "pyrerank's version": __version__,
        "the command": args.command,
        "--model": identity(task.engine.core.checkpoint),
        "--device": task.engine.core.device.name,  # the kind, because the index may change
        "--dtype": str(task.engine.dtype).removeprefix("torch."),
        "the limit of tokens": task.engine.max_tokens,
        "--instruction": args.instruction,
        "--max-image-tokens": media.max_image_tokens,
        "--max-video-frames": media.max_video_frames,
    }


def _open_output(path: Path, resume: bool) -> BinaryIO:
    path_beside(path)  # raises before anything is written
    try:
        return open(path, "r+b" if resume and path.exists() else "x+b")
    except FileExistsError:
        raise ValueError(
            f"{path} exists; add --resume to go on with it, or remove it to start over"
        ) from None
