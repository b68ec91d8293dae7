"""The commands of the command line, one function for each.

Each function takes the parsed arguments and returns the exit status.  It imports what it needs when
it is called, because the module itself is imported for ``pyrerank --help``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrerank.cli.display import in_words, print_scores

if TYPE_CHECKING:
    from pyrerank.cli.jsonl import EmbedTask, ScoreTask
    from pyrerank.media.sources import Media
    from pyrerank.reranker import Reranker

SOURCES = {"texts": "texts as arguments", "documents": "--documents FILE", "input": "--input FILE"}


def demo(args: argparse.Namespace) -> int:
    from pyrerank.demo.ranking import page, rankings

    ranked = list(rankings(args.device))
    for n, ranking in enumerate(ranked):
        print("\n" * (n > 0) + in_words(ranking.query))
        print_scores(ranking.scores, ranking.documents)
    if args.html is not None:
        Path(args.html).write_text(page(ranked), "utf-8")
    return 0


def bench(args: argparse.Namespace) -> int:
    from pyrerank.bench.kernels import main

    return main(args.arguments)


def info(args: argparse.Namespace) -> int:
    from pyrerank.cli.info import report

    print(report())
    return 0


def explain(args: argparse.Namespace) -> int:
    from pyrerank.media.reader import Reader
    from pyrerank.prompts.encoder import PairEncoder
    from pyrerank.weights.checkpoint import open_checkpoint

    _source(args, "texts", "documents")
    query, documents = _pairs(args)
    reader = Reader(_media(args))
    encoder = PairEncoder.of(open_checkpoint(args.model), args.max_tokens, args.instruction)
    for i, document in enumerate(documents):
        pair = encoder.pair(f"documents[{i}]", query, document, reader=reader)
        result = encoder.explain(pair)
        ids = f"{len(result.ids)} tokens, {result.truncated} cut: {result.ids}"
        print(f"{result.text}\n\n{ids}", end="\n" if i == len(documents) - 1 else "\n\n")
    return 0


def score(args: argparse.Namespace) -> int:
    if _source(args, "texts", "documents", "input") == "input":
        return _score_lines(args)
    query, documents = _pairs(args)
    media = _media(args)
    scores = _reranker(args).score(query, documents, media=media, progress=args.progress)
    print_scores(enumerate(scores), documents)
    return 0


def rank(args: argparse.Namespace) -> int:
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
    """`score` and `rank` of the lines of a file."""
    from pyrerank.cli.files import answer_lines
    from pyrerank.cli.jsonl import ScoreTask
    from pyrerank.media.reader import Content, Reader

    ranked = args.command == "rank"
    top_n = args.top_n if ranked else None
    media, query = _media(args), _query(args)
    content = Content() if query is None else Reader(media).read(query, "--query")

    def load() -> tuple[ScoreTask, dict[str, Any]]:
        task = ScoreTask(_reranker(args), media, query, ranked, top_n)
        if content.visuals and task.engine.core.features is None:
            raise ValueError("--query-image and --query-video need a Qwen3-VL checkpoint")
        pictures = [visual.digest.hex() for visual in content.visuals]
        own = {"--query": content.text, "pictures of the query": pictures, "--top-n": top_n}
        return task, own

    return answer_lines(args, media, load)


def embed(args: argparse.Namespace) -> int:
    from pyrerank.cli.files import answer_lines
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

    return answer_lines(args, media, load)


def serve(args: argparse.Namespace) -> int:
    if args.fetch:
        raise ValueError("a server asks the hosts that it is told: give --fetch-host, not --fetch")
    try:
        from pyrerank.serve.command import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; serving needs pip install 'pyrerank[serve]'") from None

    return serve(args, _media(args, files=False))


def convert(args: argparse.Namespace) -> int:
    from pyrerank.converter import BOUND, convert

    done = convert(args.source, args.target, merge_lora=args.merge_lora)
    files = "1 file" if done.files == 1 else f"{done.files} files"
    print(f"{args.target}: {done.architecture}, weights in {files}")
    print(
        f"{done.compared}, before and after: at most {done.difference:.1e} apart "
        f"({BOUND:.0e} is allowed)"
    )
    return 0


def _source(args: argparse.Namespace, *names: str) -> str:
    """Says which of the sources ``names`` the command line gives.

    Raises:
        ValueError: it gives none or several of them, or an output that does not go with the one.
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
    from pyrerank.media.sources import Media

    limits = {
        name: getattr(args, name)
        for name in ("max_image_tokens", "max_video_frames")
        if getattr(args, name) is not None
    }
    fetch = Fetcher(hosts=args.fetch_host) if args.fetch or args.fetch_host else None
    return Media(files=files, fetch=fetch, **limits)


def _pairs(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The query and the documents; all of them are contents."""
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
    """The query as a content, or None if the command line has none."""
    parts = [
        {"type": kind, kind: file}
        for kind in ("video", "image")
        for file in getattr(args, f"query_{kind}") or ()
    ]
    if parts and args.query is not None:
        parts.append({"type": "text", "text": args.query})
    return parts or args.query
