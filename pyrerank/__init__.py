"""pyrerank: relevance scores and embeddings from Qwen3 models, prefill only, with its own Ascend C
kernels."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrerank.converter import Converted, convert
    from pyrerank.embedder import Embedder, Embedding, embed
    from pyrerank.errors import (
        CheckpointChanged,
        CheckpointError,
        DeviceError,
        EngineClosed,
        NonFiniteScore,
        OutOfMemory,
        PyrerankError,
        TruncationWarning,
    )
    from pyrerank.media.fetch import Fetcher
    from pyrerank.media.sources import Media
    from pyrerank.prompts.items import Explanation
    from pyrerank.reranker import Ranked, Reranker, Score, explain, rank, score

__all__ = [
    "CheckpointChanged",
    "CheckpointError",
    "Converted",
    "DeviceError",
    "Embedder",
    "Embedding",
    "EngineClosed",
    "Explanation",
    "Fetcher",
    "Media",
    "NonFiniteScore",
    "OutOfMemory",
    "PyrerankError",
    "Ranked",
    "Reranker",
    "Score",
    "TruncationWarning",
    "close",
    "convert",
    "embed",
    "explain",
    "rank",
    "score",
]
__version__ = version("pyrerank")
# the modules of what `__all__` names, those without torch first
HOMES = (
    "errors",
    "media.fetch",
    "media.sources",
    "prompts.items",
    "embedder",
    "reranker",
    "converter",
)


def close() -> None:
    """Lets go of what `score`, `rank` and `embed` have loaded; the next call loads again.

    Waits for calls that run in other threads.  A `Reranker` or an `Embedder` stays loaded: it has a
    ``close`` of its own.
    """
    for home in ("embedder", "reranker"):
        module = sys.modules.get(f"pyrerank.{home}")
        if module is not None:
            module.LOADED.close()


def __getattr__(name: str) -> Any:
    # torch is imported at the first use: so `pyrerank --help` is quick, and `pyrerank info` can
    # report a torch that does not import
    if name == "ops":
        return import_module("pyrerank.kernels.ops")
    if name not in __all__:
        raise AttributeError(f"module 'pyrerank' has no attribute {name!r}")
    for home in HOMES:
        module = import_module(f"pyrerank.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(name)


class _WithTorch(MetaPathFinder):
    """Finds torch where it would be found anyway, and registers pyrerank's operators once torch is
    imported.  So ``torch.ops.pyrerank`` is there, whichever of the two is imported first."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname) if fullname == "torch" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                sys.meta_path.remove(self)
                execute(module)
                import_module("pyrerank.kernels.ops")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "torch" not in sys.modules:
    sys.meta_path.insert(0, _WithTorch())
elif sys.modules["torch"] is not None:  # None: somebody keeps it from being imported
    import_module("pyrerank.kernels.ops")
