"""The arguments of the command line.

This module knows nothing of what commands do.  It imports no torch, so ``--help`` is quick.
"""

from __future__ import annotations

import argparse

from pyrerank import __version__
from pyrerank.serve import arguments

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


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the whole command line; it parses the command's name as ``command``."""
    style = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        "pyrerank",
        description="Relevance scores and embeddings from the Qwen3 retrieval models.",
        epilog=f"{SCORING}\n{EMBEDDING}{PICTURES}",
        formatter_class=style,
    )
    whole.add_argument("--version", action="version", version=f"pyrerank {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", required=True, help="checkpoint folder, cached hub name, or demo"
    )
    common.add_argument(
        "--instruction",
        help="what counts as relevant, or what vectors are for, where no line has its own; "
        "default: the model's",
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

    prompts = argparse.ArgumentParser(add_help=False)
    prompts.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="cut prompts to N tokens (default: as the model was published)",
    )

    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument("--query", metavar="TEXT", help="the query, where no line has its own")
    for kind in ("image", "video"):
        pairs.add_argument(
            f"--query-{kind}",
            action="append",
            metavar="FILE",
            help=f"the query has this {kind}; repeat it for several",
        )
    pairs.add_argument("texts", nargs="*", metavar="DOCUMENT", help="a document's text")
    pairs.add_argument("--documents", metavar="FILE", help="JSON lines with documents")

    work = argparse.ArgumentParser(add_help=False, parents=[loading, prompts])
    work.add_argument("--input", metavar="FILE", help="JSON lines to work through; - is stdin")
    work.add_argument(
        "--output",
        metavar="FILE",
        help="a new file for the results of --input; FILE.resume beside it is for --resume",
    )
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
        sub.set_defaults(command=name)

    scoring = SCORING + PICTURES
    command("demo", "rank what ships with pyrerank, by a model that does", [demo], "")
    command("score", "score documents, in the order given", [common, pairs, work], scoring)
    command("rank", "sort documents by relevance", [common, pairs, work, top], scoring)
    command(
        "explain", "print the exact prompts and their token ids", [common, prompts, pairs], scoring
    )
    command("embed", "make vectors", [common, work, vectors], EMBEDDING + PICTURES)
    serving = [common, loading, arguments.parser()]
    command("serve", "answer requests over HTTP", serving, arguments.EXAMPLES)
    command("convert", "make a reranker a one-label classifier", [conversion], CONVERSION)
    command("bench", "time the kernels against the same in plain torch", [benchmark], "")
    command("info", "print versions, devices, kernels, and what an NPU would need", [], "")
    return whole
