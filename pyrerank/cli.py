"""The command line: ``pyrerank score | rank | explain | info``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pyrerank import __version__
from pyrerank.errors import DeviceError

if TYPE_CHECKING:
    from pyrerank.reranker import Reranker

EXAMPLES = """\
examples:
  pyrerank rank --model DIR --query "capital of China" "Beijing is ..." "Gravity is ..."
  pyrerank rank --model DIR --query "capital of China" --documents passages.jsonl --top-n 5
  pyrerank score --model DIR --input pairs.jsonl --output scores.jsonl
  pyrerank score --model DIR --input pairs.jsonl --output scores.jsonl --resume

A line of --documents is {"text": ...}.  A line of --input is {"query": ..., "document": ...} or
{"query": ..., "documents": [...]}, optionally with "id" and "instruction".
"""


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
        print("pyrerank: interrupted; --resume goes on with an --output file", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has gone (`| head`); stdout goes nowhere, so that the last flush is silent
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, ArithmeticError, OSError, DeviceError) as error:
        print(f"pyrerank: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "pyrerank",
        description="Relevance scores from Qwen3 rerankers.",
        epilog=EXAMPLES,
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"pyrerank {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", required=True, help="checkpoint folder, or a cached hub name")
    common.add_argument("--query", help="the query, for all documents")
    common.add_argument("--instruction", help="what counts as relevant (default: the model's)")

    work = argparse.ArgumentParser(add_help=False, parents=[common])
    work.add_argument("texts", nargs="*", metavar="DOCUMENT", help="a document's text")
    work.add_argument("--documents", metavar="FILE", help="JSON lines with documents")
    work.add_argument("--input", metavar="FILE", help="JSON lines to work through; - is stdin")
    work.add_argument("--output", metavar="FILE", help="a new file for the results of --input")
    work.add_argument("--resume", action="store_true", help="go on with an existing --output")
    work.add_argument("--device", help="cpu, npu[:N] or cuda[:N] (default: the best there is)")
    work.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="capture passes as graphs and replay them (default: on an NPU)",
    )
    work.add_argument("--dtype", help="float32 or bfloat16 (default: what suits the device)")
    work.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: on a terminal)",
    )

    def command(name: str, text: str, parents: list[argparse.ArgumentParser]) -> None:
        sub = commands.add_parser(
            name,
            parents=parents,
            help=text,
            description=text,
            epilog=EXAMPLES if work in parents else None,
            formatter_class=style,
        )
        sub.set_defaults(command=globals()[f"_{name}"])

    command("score", "score documents, in the order given", [work])
    top = argparse.ArgumentParser(add_help=False)
    top.add_argument("--top-n", type=int, metavar="N", help="keep the N most relevant")
    command("rank", "sort documents by relevance", [work, top])
    single = argparse.ArgumentParser(add_help=False)
    single.add_argument("document", metavar="DOCUMENT", help="a document's text")
    command("explain", "print the exact prompt and token ids of a pair", [common, single])
    command("info", "print versions, devices, kernels, and what an NPU would need", [])
    return parser


def _info(args: argparse.Namespace) -> int:
    from pyrerank.info import report

    print(report())
    return 0


def _explain(args: argparse.Namespace) -> int:
    from pyrerank.reranker import explain

    query = _query(args)
    result = explain(query, args.document, model=args.model, instruction=args.instruction)
    print(f"{result.text}\n\n{len(result.ids)} tokens, {result.truncated} cut: {result.ids}")
    return 0


def _score(args: argparse.Namespace) -> int:
    if _lines_wanted(args):
        return _run_lines(args, ranked=False)
    query, documents = _query(args), _documents(args)
    scores = _engine(args).score(query, documents, progress=args.progress)
    _print(enumerate(scores), documents)
    return 0


def _rank(args: argparse.Namespace) -> int:
    if _lines_wanted(args):
        return _run_lines(args, ranked=True)
    query, documents = _query(args), _documents(args)
    ranking = _engine(args).rank(query, documents, top_n=args.top_n, progress=args.progress)
    _print(((item.index, item.score) for item in ranking), documents)
    return 0


def _lines_wanted(args: argparse.Namespace) -> bool:
    """Whether the work is in --input.  Raises ValueError for options that exclude each other."""
    sources = [bool(args.texts), args.documents is not None, args.input is not None]
    if sum(sources) != 1:
        raise ValueError("give documents as arguments, or --documents FILE, or --input FILE")
    if args.output is not None and args.input is None:
        raise ValueError("--output goes with --input; redirect standard output instead")
    if args.resume and args.output is None:
        raise ValueError("--resume needs --output, the file to go on with")
    return args.input is not None


def _run_lines(args: argparse.Namespace, ranked: bool) -> int:
    from pyrerank.jsonl import process

    with ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        total = None
        if args.input != "-":
            source = stack.enter_context(open(args.input, "rb"))
            total = sum(1 for _ in source)
            source.seek(0)
        engine = _engine(args)
        target: BinaryIO = sys.stdout.buffer
        if args.output is not None:
            target = stack.enter_context(_open_output(Path(args.output), args.resume))
        errors = process(
            engine,
            source,
            target,
            ranked=ranked,
            query=args.query,
            top_n=args.top_n if ranked else None,
            resume=args.resume,
            total=total,
            progress=args.progress,
        )
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


def _engine(args: argparse.Namespace) -> Reranker:
    from pyrerank.reranker import Reranker

    return Reranker(
        args.model,
        device=args.device,
        dtype=args.dtype,
        instruction=args.instruction,
        graph=args.graph,
    )


def _query(args: argparse.Namespace) -> str:
    if args.query is None:
        raise ValueError("--query is missing")
    return str(args.query)


def _documents(args: argparse.Namespace) -> list[str]:
    if args.texts:
        return list(args.texts)
    documents = []
    for number, raw in enumerate(Path(args.documents).read_bytes().splitlines(), 1):
        if raw.strip():
            try:
                documents.append(json.loads(raw)["text"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f'{args.documents}, line {number}: not an object with a "text" ({error!r})'
                ) from None
    return documents


def _print(results: Iterable[tuple[int, float]], documents: list[str]) -> None:
    width = shutil.get_terminal_size((100, 0)).columns - 17
    for index, score in results:
        print(f"{score:.6f}  [{index}]".ljust(16), _clip(documents[index], width))


def _clip(text: str, width: int) -> str:
    """The text on one line of at most ``width`` columns; Chinese characters take two."""
    text = " ".join(text.split())
    columns = 0
    for end, char in enumerate(text):
        columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if columns > width:
            return text[: end - 1] + "…"
    return text
