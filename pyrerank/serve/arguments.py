"""The arguments of ``pyrerank serve``.

This module imports no torch and no part of the server, so the command line can import it at once.
"""

from __future__ import annotations

import argparse

from pyrerank.serve.settings import Settings

EXAMPLES = """\
example:
  pyrerank serve --model Qwen/Qwen3-Reranker-0.6B
  curl -s http://127.0.0.1:8000/v1/rerank -H 'Content-Type: application/json' \\
      -d '{"query": "capital of China", "documents": ["Beijing is ...", "Gravity is ..."]}'

The environment's PYRERANK_API_KEYS, keys with spaces between, does as well as --api-key-file.
Pictures come as data: URIs, or with --fetch-host as URLs of that host.
"""
LIMITS = {
    "max_requests": "requests that are answered or wait at a time; more get status 429",
    "max_body": "bytes of a request",
    "max_bodies": "bytes of all requests that are here at a time; more get status 429",
    "max_documents": "documents, pairs or inputs of a request",
    "max_pictures": "images, videos and frames of a request",
    "max_tokens": "tokens of all prompts of a request",
    "timeout": "seconds that a request may take",
    "batch_wait": "seconds that a request waits for others to share a pass with",
}


def parser() -> argparse.ArgumentParser:
    """Makes a parser of the arguments that only ``pyrerank serve`` has."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any (default: %(default)s)")
    parser.add_argument(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="what requests call the model; repeat it for several (default: as --model has it)",
    )
    parser.add_argument(
        "--task", choices=["score", "embed"], help="where neither the files nor the name tell"
    )
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="cut prompts to N tokens (default: as the model was published)",
    )
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="API keys, one a line (default: none is asked for)"
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="pages from there may read answers; repeat it for several (default: none)",
    )
    parser.add_argument(
        "--page",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have a page at / to try the model on (default: yes)",
    )
    parser.add_argument(
        "--drain",
        type=int,
        default=60,
        metavar="S",
        help="seconds for requests that are here when the server is stopped (default: %(default)s)",
    )
    limits = parser.add_argument_group("limits")
    for name, what in LIMITS.items():
        default = getattr(Settings, name)
        limits.add_argument(
            "--" + name.replace("_", "-"),
            type=type(default),
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )
    return parser
