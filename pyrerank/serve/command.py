"""The process of ``pyrerank serve``: it loads a model, serves it, and ends in order.

This module puts the parts of the server together, and knows nothing of single requests.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from pyrerank.embedder import Embedder
from pyrerank.engine.engine import Engine
from pyrerank.errors import CheckpointError
from pyrerank.media.sources import Media
from pyrerank.reranker import Reranker
from pyrerank.serve.app import build
from pyrerank.serve.arguments import LIMITS
from pyrerank.serve.metrics import Metrics
from pyrerank.serve.protocol import http_server
from pyrerank.serve.schedule import Scheduler
from pyrerank.serve.service import Service
from pyrerank.serve.settings import Settings
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger("pyrerank.serve")


def serve(args: argparse.Namespace, media: Media) -> int:
    """Serves until SIGTERM or SIGINT, then answers the requests that are here, and returns.

    Args:
        args: the parsed command line.
        media: says how pictures are read.

    Returns:
        The exit status.

    Raises:
        OSError: the address cannot be bound to, or a file cannot be read.
        Other errors: as `Reranker`.
    """
    settings = Settings(
        names=tuple(args.served_model_name or [args.model]),
        api_keys=_keys(args.api_key_file),
        cors_origins=tuple(args.cors_origin or ()),
        page=args.page,
        **{name: getattr(args, name) for name in LIMITS},
    )
    # Tokenizers would use all cores for each text, and an engine on the CPU needs them.
    os.environ.setdefault("RAYON_NUM_THREADS", "2")
    checkpoint = open_checkpoint(args.model)
    embeds = _task(checkpoint, args) == "embed"
    _log_to_stderr()
    with _bound(args.host, args.port) as bound:

        def load() -> Engine:
            options = {name: getattr(args, name) for name in ("device", "dtype", "graph")}
            options["max_tokens"] = args.max_model_len
            if embeds:
                return Embedder(checkpoint, **options)
            return Reranker(checkpoint, instruction=args.instruction, **options)

        metrics = Metrics()
        scheduler = Scheduler(load, settings.batch_wait, metrics.passed)
        metrics.watch(scheduler)
        default = args.instruction if embeds else None  # a reranker holds it itself
        service = Service(scheduler, settings, media, args.model, default)
        host, port = bound.getsockname()[:2]
        at = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = http_server(build(service, settings, metrics), args.drain)
        bound.listen(server.config.backlog)
        log.info("%s serves %s on %s", at, settings.names[0], scheduler.engine.device)
        if not settings.api_keys and not host.startswith(("127.", "::1")):
            log.warning("no API key is asked for, and %s may be open to others", host)
        # After its drain, uvicorn sends itself the signal again, which would end the process before
        # the lines below do it in order.
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run([bound])
        finally:
            service.close()
            scheduler.engine.close()
    return 0


def _task(checkpoint: Checkpoint, args: argparse.Namespace) -> str:
    """What the checkpoint is served for: "score" or "embed"."""
    if args.task is not None:
        return str(args.task)
    if checkpoint.task is not None:
        return checkpoint.task
    name = str(args.model).lower()
    told = [task for word, task in (("rerank", "score"), ("embed", "embed")) if word in name]
    if len(told) != 1:
        raise CheckpointError(
            f"{args.model} can score and embed, and its name does not tell what it is for; add "
            "--task score or --task embed"
        )
    return told[0]


def _keys(file: str | None) -> tuple[str, ...]:
    text = os.environ.get("PYRERANK_API_KEYS", "")
    if file is not None:
        text = Path(file).read_text("utf-8")
        if not text.split():
            raise ValueError(f"{file} holds no API key")
    return tuple(text.split())


def _bound(host: str, port: int) -> socket.socket:
    """Binds a socket, which refuses connections until somebody listens on it."""
    [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot bind to {host} port {port}: {error.strerror}") from error
    return bound


def _log_to_stderr() -> None:
    """Logs to stderr: the access log as it is, and other messages with their levels."""
    for name, form in (("pyrerank.access", "%(message)s"), ("", "%(levelname)s: %(message)s")):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(form))
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    logging.getLogger("pyrerank.access").propagate = False
