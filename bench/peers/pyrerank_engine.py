"""pyrerank, with its switches."""

from typing import Any

import pyrerank


class Engine:
    def __init__(self, model: str, device: str, dtype: str, task: str, **options: Any) -> None:
        kind = pyrerank.Embedder if task == "embed" else pyrerank.Reranker
        self._engine: Any = kind(model, device=device, dtype=dtype, **options)

    @property
    def computed(self) -> int:
        return int(self._engine.core.computed)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:  # a switch
            setattr(self._engine.core, name, value)

    def score(self, query: Any, documents: list[Any]) -> list[float]:
        scores: list[float] = self._engine.score(query, documents, progress=False)
        return scores

    def embed(self, inputs: list[Any]) -> list[list[float]]:
        vectors: list[list[float]] = self._engine.embed(inputs, progress=False).tolist()
        return vectors
