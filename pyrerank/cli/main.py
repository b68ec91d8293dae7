"""The command line: ``pyrerank COMMAND``, see ``pyrerank --help``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pyrerank import __version__
from pyrerank.cli.arguments import parser
from pyrerank.cli.display import in_words, print_scores
from pyrerank.errors import DeviceError

if TYPE_CHECKING:
    from pyrerank.cli.jsonl import EmbedTask, ScoreTask
    from pyrerank.media.reader import Media
    from pyrerank.reranker import Reranker

SOURCES = {"texts": "texts as arguments", "documents": "--documents FILE", "input": "--input FILE"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's).

    Returns:
        The exit status: 0 done, 1 done but some input lines were in error, 2 failed, 130
        interrupted.
    """
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rather than no table at all
    hint = "; --resume goes on with an --output file" if "resume" in args else ""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(globals()[f"_{args.command}"](args))
    except KeyboardInterrupt:
        print(f"pyrerank: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has gone (`| head`); stdout goes nowhere, so that the last flush is silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DeviceError as error:
        print(f"pyrerank: error: {error}{hint}", file=sys.stderr)
        return 2
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        OSError,
        ImportError,
        MemoryError,
        Warning,
    ) as error:
        print(f"pyrerank: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pyrerank: warning: {message}", file=sys.stderr)


def _demo(args: argparse.Namespace) -> int:
    from pyrerank import demo

    ranked = list(demo.rankings(args.device))
    for n, ranking in enumerate(ranked):
        print("\n" * (n > 0) + in_words(ranking.query))
        print_scores(ranking.scores, ranking.documents)
    if args.html is not None:
        Path(args.html).write_text(demo.page(ranked), "utf-8")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from pyrerank.bench.kernels import main

    return main(args.arguments)


def _info(args: argparse.Namespace) -> int:
    from pyrerank.cli.info import report

    print(report())
    return 0


def _explain(args: argparse.Namespace) -> int:
    from pyrerank.media.reader import Reader
    from pyrerank.prompts.encoder import PairEncoder
    from pyrerank.weights.checkpoint import open_checkpoint

    _source(args, "texts", "documents")
    query, documents = _pairs(args)
    reader = Reader(_media(args))
    encoder = PairEncoder.of(open_checkpoint(args.model), args.max_tokens)
    for i, document in enumerate(documents):
        # as `score` makes it, where --instruction is for documents that do not say
        pair = encoder.pair(f"documents[{i}]", query, document, None, reader, args.instruction)
        result = encoder.explain(pair)
        ids = f"{len(result.ids)} tokens, {result.truncated} cut: {result.ids}"
        print(f"{result.text}\n\n{ids}", end="\n" if i == len(documents) - 1 else "\n\n")
    return 0


def _score(args: argparse.Namespace) -> int:
    if _source(args, "texts", "documents", "input") == "input":
        return _score_lines(args)
    query, documents = _pairs(args)
    media = _media(args)
    scores = _reranker(args).score(query, documents, media=media, progress=args.progress)
    print_scores(enumerate(scores), documents)
    return 0


def _rank(args: argparse.Namespace) -> int:
    if _source(args, "texts", "documents", "input") == "input":
        return _score_lines(args)
    query, documents = _pairs(args)
    media = _media(args)
    ranking = _reranker(args).rank(
        query, documents, top_n=args.top_n, media=media, progress=args.progress
    )
    print_scores(((item.index, item.score) for item in ranking), documents)
    return 0


def _score_lines(args: argparse.Namespace) -> int:
    from pyrerank.cli.jsonl import ScoreTask
    from pyrerank.media.reader import Content, Reader

    ranked = args.command == "rank"
    top_n = args.top_n if ranked else None
    media, query = _media(args), _query(args)
    content = Content() if query is None else Reader(media).read(query, "--query")

    def load() -> tuple[ScoreTask, dict[str, Any]]:
        task = ScoreTask(_reranker(args), media, query, ranked, top_n)
        if content.visuals and task.engine.features is None:
            raise ValueError("--query-image and --query-video need a Qwen3-VL checkpoint")
        pictures = [visual.digest.hex() for visual in content.visuals]
        own = {"--query": content.text, "pictures of the query": pictures, "--top-n": top_n}
        return task, own

    return _run_lines(args, media, load)


def _embed(args: argparse.Namespace) -> int:
    from pyrerank.cli.jsonl import EmbedTask
    from pyrerank.embedder import Embedder

    _source(args, "texts", "input")
    media = _media(args)

    def load() -> tuple[EmbedTask, dict[str, Any]]:
        engine = Embedder(
            args.model,
            dim=args.dim,
            normalize=False if args.no_normalize else None,
            max_tokens=args.max_tokens,
            device=args.device,
            dtype=args.dtype,
            graph=args.graph,
        )
        own = {"--dim": engine.dim, "--no-normalize": args.no_normalize}
        return EmbedTask(engine, media, args.instruction), own

    return _run_lines(args, media, load)


def _serve(args: argparse.Namespace) -> int:
    if args.fetch:
        raise ValueError("a server asks the hosts that it is told: give --fetch-host, not --fetch")
    try:
        from pyrerank.serve.command import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; serving needs pip install 'pyrerank[serve]'") from None

    return serve(args, _media(args, files=False))


def _convert(args: argparse.Namespace) -> int:
    from pyrerank.weights.convert import BOUND, convert

    done = convert(args.source, args.target, merge_lora=args.merge_lora)
    files = "1 file" if done.files == 1 else f"{done.files} files"
    print(f"{args.target}: {done.architecture}, weights in {files}")
    print(
        f"{done.compared}, before and after: at most {done.difference:.1e} apart "
        f"({BOUND:.0e} is allowed)"
    )
    return 0


def _source(args: argparse.Namespace, *names: str) -> str:
    """Which of the sources ``names`` is given.

    Raises:
        ValueError: none is, or several, or an output that does not go with it.
    """
    given = [name for name in names if getattr(args, name) not in (None, [])]
    if len(given) != 1:
        raise ValueError(f"give {', or '.join(SOURCES[name] for name in names)}")
    if "input" not in names:
        return given[0]
    if args.output is not None and args.input is None:
        raise ValueError("--output goes with --input; redirect standard output instead")
    if args.resume and args.output is None:
        raise ValueError("--resume needs --output, the file to go on with")
    if args.output == "-":
        raise ValueError("--output names a file; leave it out for standard output")
    if str(args.output).endswith(".npy") and args.command != "embed":
        raise ValueError(f"--output {args.output} is for vectors; scores are written as JSON lines")
    return given[0]


def _run_lines(
    args: argparse.Namespace,
    media: Media,
    load: Callable[[], tuple[ScoreTask | EmbedTask, dict[str, Any]]],
) -> int:
    """Works through the input.  ``load`` gives the task, and those of its settings that only its
    command has."""
    from pyrerank.cli.journal import Journal
    from pyrerank.cli.jsonl import EmbedTask, process
    from pyrerank.cli.outputs import JsonLines, NpyRows

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
        _show_warning(f"{done.cut} prompts were cut to the limit of {limit} tokens")
    if done.errors:
        print(f"pyrerank: {done.errors} input lines were in error", file=sys.stderr)
    return 1 if done.errors else 0


def _settings(
    args: argparse.Namespace, task: ScoreTask | EmbedTask, media: Media
) -> dict[str, Any]:
    """What results depend on besides the input, by the names of the options."""
    from pyrerank.cli.journal import identity

    return {
        "pyrerank's version": __version__,
        "the command": args.command,
        "--model": identity(task.engine.checkpoint),
        "--device": task.engine.device.type,
        "--dtype": str(task.engine.dtype).removeprefix("torch."),
        "the limit of tokens": task.engine.max_tokens,
        "--instruction": args.instruction,
        "--max-image-tokens": media.max_image_tokens,
        "--max-video-frames": media.max_video_frames,
    }


def _open_output(path: Path, resume: bool) -> BinaryIO:
    from pyrerank.cli.journal import path_beside

    path_beside(path)  # before anything is written
    try:
        return open(path, "r+b" if resume and path.exists() else "x+b")
    except FileExistsError:
        raise ValueError(
            f"{path} exists; add --resume to go on with it, or remove it to start over"
        ) from None


def _reranker(args: argparse.Namespace) -> Reranker:
    from pyrerank.reranker import Reranker

    return Reranker(
        args.model,
        device=args.device,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
        instruction=args.instruction,
        graph=args.graph,
    )


def _media(args: argparse.Namespace, files: bool = True) -> Media:
    from pyrerank.media.fetch import Fetcher
    from pyrerank.media.reader import Media

    limits = {
        name: getattr(args, name)
        for name in ("max_image_tokens", "max_video_frames")
        if getattr(args, name) is not None
    }
    fetch = Fetcher(hosts=args.fetch_host) if args.fetch or args.fetch_host else None
    return Media(files=files, fetch=fetch, **limits)


def _pairs(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The query and the documents, contents all of them."""
    query = _query(args)
    if query is None:
        raise ValueError("--query is missing")
    if args.texts:
        return query, args.texts
    from pyrerank.media.json_content import content_of, parse_object

    documents = []
    for number, raw in enumerate(Path(args.documents).read_bytes().split(b"\n"), 1):
        if raw.strip():
            try:
                item = parse_object(raw)
                if "instruction" in item:
                    raise ValueError("'instruction' is not for a document; give --instruction")
                documents.append(content_of(item))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{args.documents}, line {number}: {error}") from None
    return query, documents


def _query(args: argparse.Namespace) -> object:
    """The query, a content; None where there is none."""
    parts = [
        {"type": kind, kind: file}
        for kind in ("video", "image")
        for file in getattr(args, f"query_{kind}") or ()
    ]
    if parts and args.query is not None:
        parts.append({"type": "text", "text": args.query})
    return parts or args.query
