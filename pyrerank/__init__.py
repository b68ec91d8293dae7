"""pyrerank: relevance scores from Qwen3 rerankers, prefill only, with its own Ascend C kernels."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrerank.checkpoint import CheckpointError
    from pyrerank.engine import NonFiniteScore, Ranked, Reranker, Score, explain, rank, score
    from pyrerank.inputs import Explanation

__all__ = [
    "CheckpointError",
    "Explanation",
    "NonFiniteScore",
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
    home = {"CheckpointError": "checkpoint", "Explanation": "inputs"}.get(name, "engine")
    return getattr(import_module(f"pyrerank.{home}"), name)
