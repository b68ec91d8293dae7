"""The command line: ``pyrerank COMMAND``, see ``pyrerank --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pyrerank import __version__
from pyrerank.display import in_words, print_scores
from pyrerank.errors import DeviceError
from pyrerank.serve import arguments

if TYPE_CHECKING:
    from pyrerank.jsonl import EmbedTask, ScoreTask
    from pyrerank.media import Media
    from pyrerank.reranker import Reranker

SCORING = """\
examples of scoring:
  pyrerank rank --model DIR --query "capital of China" "Beijing is ..." "Gravity is ..."
  pyrerank rank --model DIR --query-image photo.jpg --documents passages.jsonl --top-n 5
  pyrerank score --model DIR --input pairs.jsonl --output scores.jsonl
  pyrerank score --model DIR --input pairs.jsonl --output scores.jsonl --resume

A line of --documents is {"text": ..., "image": ..., "video": ...}, at least one of them; its other
fields are ignored.  A line of --input is {"query": ..., "document": ...} or
{"query": ..., "documents": [...]}, optionally with "id" and "instruction"; a query or a document
there is a text, such an object, or a list of OpenAI's parts.
"""
EMBEDDING = """\
examples of embedding:
  pyrerank embed --model DIR --instruction "Find passages that answer the query" "capital of China"
  pyrerank embed --model DIR --input passages.jsonl --output vectors.npy
  pyrerank embed --model DIR --input passages.jsonl --output vectors.npy --resume

A line of --input is {"text": ..., "image": ..., "video": ...}, at least one of them, optionally
with "id" and "instruction"; its other fields are ignored.  An --output that ends in .npy is a
float32 array with a row for each line that is not blank, NaN for a line in error; any other is JSON
lines.
"""
CONVERSION = """\
example:
  pyrerank convert Qwen/Qwen3-Reranker-0.6B reranker-classifier

DST is checked before it appears: it scores sample pairs as SRC does.
"""
PICTURES = """
An image or a video is a path, relative to the working directory, a data: URI, or with --fetch an
http(s) URL.
"""
DEVICE = "cpu, npu[:N] or cuda[:N] (default: the best there is)"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's).

    Returns:
        The exit status: 0 done, 1 done but some input lines were in error, 2 failed, 130
        interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except KeyboardInterrupt:
        hint = "; --resume goes on with an --output file" if "resume" in args else ""
        print(f"pyrerank: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has gone (`| head`); stdout goes nowhere, so that the last flush is silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError, DeviceError) as error:
        print(f"pyrerank: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "pyrerank",
        description="Relevance scores and embeddings from the Qwen3 retrieval models.",
        epilog=f"{SCORING}\n{EMBEDDING}{PICTURES}",
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"pyrerank {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", required=True, help="checkpoint folder, cached hub name, or demo"
    )
    common.add_argument(
        "--instruction",
        help="what counts as relevant, or what vectors are for (default: the model's)",
    )
    media = common.add_argument_group("pictures")
    media.add_argument(
        "--max-image-tokens", type=int, metavar="N", help="make larger images smaller"
    )
    media.add_argument(
        "--max-video-frames", type=int, metavar="N", help="take at most N frames from a video"
    )
    media.add_argument(
        "--fetch", action="store_true", help="fetch http(s) URLs, from public addresses only"
    )
    media.add_argument(
        "--fetch-host",
        action="append",
        metavar="HOST",
        help="fetch from this host; repeat it for several; no other host is asked",
    )

    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument("--device", help=DEVICE)
    loading.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="capture passes as graphs and replay them (default: on an NPU)",
    )
    loading.add_argument("--dtype", help="float32 or bfloat16 (default: what suits the device)")

    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument("--query", metavar="TEXT", help="the query, for all documents")
    for kind in ("image", "video"):
        pairs.add_argument(
            f"--query-{kind}",
            action="append",
            metavar="FILE",
            help=f"the query has this {kind}; repeat it for several",
        )
    pairs.add_argument("texts", nargs="*", metavar="DOCUMENT", help="a document's text")
    pairs.add_argument("--documents", metavar="FILE", help="JSON lines with documents")

    work = argparse.ArgumentParser(add_help=False, parents=[loading])
    work.add_argument("--input", metavar="FILE", help="JSON lines to work through; - is stdin")
    work.add_argument("--output", metavar="FILE", help="a new file for the results of --input")
    work.add_argument("--resume", action="store_true", help="go on with an existing --output")
    work.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: on a terminal)",
    )

    top = argparse.ArgumentParser(add_help=False)
    top.add_argument("--top-n", type=int, metavar="N", help="keep the N most relevant")
    vectors = argparse.ArgumentParser(add_help=False)
    vectors.add_argument("texts", nargs="*", metavar="TEXT", help="a text to embed")
    vectors.add_argument("--dim", type=int, metavar="N", help="numbers a vector (default: all)")
    vectors.add_argument(
        "--no-normalize", action="store_true", help="do not bring vectors to length 1"
    )

    demo = argparse.ArgumentParser(add_help=False)
    demo.add_argument("--html", metavar="FILE", help="write a page with the pictures, too")
    demo.add_argument("--device", help=DEVICE)
    conversion = argparse.ArgumentParser(add_help=False)
    conversion.add_argument("source", metavar="SRC", help="checkpoint folder, or a cached hub name")
    conversion.add_argument("target", metavar="DST", help="a new folder")
    conversion.add_argument(
        "--merge-lora", metavar="ADAPTER", help="folder of an adapter that PEFT saved, to merge"
    )

    benchmark = argparse.ArgumentParser(add_help=False)
    benchmark.add_argument("subject", choices=["kernels"])
    benchmark.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="see `pyrerank bench kernels --help`"
    )

    def command(name: str, text: str, parents: list[argparse.ArgumentParser], more: str) -> None:
        sub = commands.add_parser(
            name,
            parents=parents,
            help=text,
            description=text,
            epilog=more,
            formatter_class=style,
        )
        sub.set_defaults(command=globals()[f"_{name}"])

    scoring = SCORING + PICTURES
    command("demo", "rank what ships with pyrerank, by a model that does", [demo], "")
    command("score", "score documents, in the order given", [common, pairs, work], scoring)
    command("rank", "sort documents by relevance", [common, pairs, work, top], scoring)
    command("explain", "print the exact prompts and their token ids", [common, pairs], scoring)
    command("embed", "make vectors", [common, work, vectors], EMBEDDING + PICTURES)
    serving = [common, loading, arguments.parser()]
    command("serve", "answer requests over HTTP", serving, arguments.EXAMPLES)
    command("convert", "make a reranker a one-label classifier", [conversion], CONVERSION)
    command("bench", "time the kernels against the same in plain torch", [benchmark], "")
    command("info", "print versions, devices, kernels, and what an NPU would need", [], "")
    return parser


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
    from pyrerank.bench_kernels import main

    return main(args.arguments)


def _info(args: argparse.Namespace) -> int:
    from pyrerank.info import report

    print(report())
    return 0


def _explain(args: argparse.Namespace) -> int:
    from pyrerank.reranker import explain

    _source(args, "texts", "documents")
    query, documents = _pairs(args)
    media = _media(args)
    for i, document in enumerate(documents):
        result = explain(
            query, document, model=args.model, instruction=args.instruction, media=media
        )
        ids = f"{len(result.ids)} tokens, {result.truncated} cut: {result.ids}"
        print(f"{result.text}\n\n{ids}", end="\n" if i == len(documents) - 1 else "\n\n")
    return 0


def _score(args: argparse.Namespace) -> int:
    if _source(args, "texts", "documents", "input") == "input":
        return _score_lines(args, ranked=False)
    query, documents = _pairs(args)
    media = _media(args)
    scores = _reranker(args).score(query, documents, media=media, progress=args.progress)
    print_scores(enumerate(scores), documents)
    return 0


def _rank(args: argparse.Namespace) -> int:
    if _source(args, "texts", "documents", "input") == "input":
        return _score_lines(args, ranked=True)
    query, documents = _pairs(args)
    media = _media(args)
    ranking = _reranker(args).rank(
        query, documents, top_n=args.top_n, media=media, progress=args.progress
    )
    print_scores(((item.index, item.score) for item in ranking), documents)
    return 0


def _score_lines(args: argparse.Namespace, ranked: bool) -> int:
    from pyrerank.jsonl import ScoreTask

    media, query = _media(args), _query(args)
    top_n = args.top_n if ranked else None
    return _run_lines(args, lambda: ScoreTask(_reranker(args), media, query, ranked, top_n))


def _embed(args: argparse.Namespace) -> int:
    from pyrerank.embedder import Embedder
    from pyrerank.jsonl import EmbedTask

    _source(args, "texts", "input")
    media = _media(args)

    def load() -> EmbedTask:
        engine = Embedder(
            args.model,
            dim=args.dim,
            normalize=not args.no_normalize,
            device=args.device,
            dtype=args.dtype,
            graph=args.graph,
        )
        return EmbedTask(engine, media, args.instruction)

    return _run_lines(args, load)


def _serve(args: argparse.Namespace) -> int:
    if args.fetch:
        raise ValueError("a server asks the hosts that it is told: give --fetch-host, not --fetch")
    try:
        from pyrerank.serve.command import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; serving needs pip install 'pyrerank[serve]'") from None

    return serve(args, _media(args, files=False))


def _convert(args: argparse.Namespace) -> int:
    from pyrerank.convert import BOUND, convert

    done = convert(args.source, args.target, merge_lora=args.merge_lora)
    files = "1 file" if done.files == 1 else f"{done.files} files"
    print(f"{args.target}: {done.architecture}, weights in {files}")
    print(
        f"logits of {done.pairs} pairs, before and after: at most {done.difference:.1e} apart "
        f"({BOUND:.0e} is allowed)"
    )
    return 0


def _source(args: argparse.Namespace, *names: str) -> str:
    """Which of the sources ``names`` is given.  Raises ValueError unless it is exactly one."""
    known = {
        "texts": "texts as arguments",
        "documents": "--documents FILE",
        "input": "--input FILE",
    }
    given = [name for name in names if getattr(args, name)]
    if len(given) != 1:
        raise ValueError(f"give {', or '.join(known[name] for name in names)}")
    if "input" in names and args.output is not None and args.input is None:
        raise ValueError("--output goes with --input; redirect standard output instead")
    if "input" in names and args.resume and args.output is None:
        raise ValueError("--resume needs --output, the file to go on with")
    return given[0]


def _run_lines(args: argparse.Namespace, load: Callable[[], ScoreTask | EmbedTask]) -> int:
    from pyrerank.jsonl import EmbedTask, process
    from pyrerank.outputs import JsonLines, NpyRows

    with ExitStack() as stack:
        source: Iterable[bytes] = [json.dumps({"text": text}).encode() for text in args.texts]
        total: int | None = len(args.texts)
        if args.input == "-":
            source, total = sys.stdin.buffer, None
        elif args.input is not None:
            file = stack.enter_context(open(args.input, "rb"))
            source, total = file, sum(1 for _ in file)
            file.seek(0)
        task = load()
        target: BinaryIO = sys.stdout.buffer
        if args.output is not None:
            target = stack.enter_context(_open_output(Path(args.output), args.resume))
        output: JsonLines | NpyRows
        if isinstance(task, EmbedTask) and str(args.output).endswith(".npy"):
            output = NpyRows(target, task.engine.dim)
        else:
            output = JsonLines(target, args.resume)
        errors = process(task, source, output, total=total, progress=args.progress)
    if errors:
        print(f"pyrerank: {errors} input lines were in error", file=sys.stderr)
    return 1 if errors else 0


def _open_output(path: Path, resume: bool) -> BinaryIO:
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
        instruction=args.instruction,
        graph=args.graph,
    )


def _media(args: argparse.Namespace, files: bool = True) -> Media:
    from pyrerank.fetch import Fetcher
    from pyrerank.media import Media

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
    from pyrerank.jsonl import content_of, parse

    documents = []
    for number, raw in enumerate(Path(args.documents).read_bytes().splitlines(), 1):
        if raw.strip():
            try:
                documents.append(content_of(parse(raw)))
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
