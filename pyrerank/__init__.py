"""pyrerank: relevance scores from Qwen3 rerankers, prefill only, with its own Ascend C kernels."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrerank.engine import Ranked, Reranker, Score, explain, rank, score
    from pyrerank.errors import (
        CheckpointError,
        DeviceError,
        EngineClosed,
        NonFiniteScore,
        OutOfMemory,
    )
    from pyrerank.inputs import Explanation

__all__ = [
    "CheckpointError",
    "DeviceError",
    "EngineClosed",
    "Explanation",
    "NonFiniteScore",
    "OutOfMemory",
    "Ranked",
    "Reranker",
    "Score",
    "explain",
    "rank",
    "score",
]
__version__ = version("pyrerank")


def __getattr__(name: str) -> Any:
    # torch loads with the first use: `pyrerank --help` is quick, and `pyrerank info` can report
    # a torch that does not import
    if name not in __all__:
        raise AttributeError(f"module 'pyrerank' has no attribute {name!r}")
    errors = import_module("pyrerank.errors")
    return getattr(errors if hasattr(errors, name) else import_module("pyrerank.engine"), name)
