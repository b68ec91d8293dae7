"""sentence-transformers, with its CrossEncoder over the generative model and its
SentenceTransformer.  Both take batches of 32 padded prompts."""

from typing import Any

import PIL.Image
import torch
from prompts import EMBEDDING_PARTS, NO, YES, chat_template, family
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

BATCH = 32


class Engine:
    computed = None  # it computes tokens and padding, and does not count them

    def __init__(self, model: str, device: str, dtype: str, task: str) -> None:
        kind = family(model)
        load: dict[str, Any] = {"model_kwargs": {"dtype": getattr(torch, dtype)}}
        if task == "embed":
            self._before, self._after = EMBEDDING_PARTS[kind]
            body = Transformer(model, **load)
            pooling = Pooling(body.get_embedding_dimension(), "lasttoken")
            self._embedder = SentenceTransformer(
                modules=[body, pooling, Normalize()], device=device
            )
            return
        load["processor_kwargs"] = {"chat_template": chat_template(kind)}
        generative = "any-to-any" if kind == "qwen3_vl" else "text-generation"
        body = Transformer(model, transformer_task=generative, **load)
        head = LogitScore(true_token_id=YES, false_token_id=NO)
        self._encoder = CrossEncoder(modules=[body, head], device=device)

    def score(self, query: Any, documents: list[Any]) -> list[float]:
        queries = query if isinstance(query, list) else [query] * len(documents)
        pairs = [
            [_content(query), _content(document)]
            for query, document in zip(queries, documents, strict=True)
        ]
        # The sigmoid is taken in float32, as in pyrerank; it is the default.
        return self._encoder.predict(pairs, batch_size=BATCH, show_progress_bar=False).tolist()

    def embed(self, inputs: list[Any]) -> list[list[float]]:
        prompts = [self._before + text + self._after for text in inputs]
        vectors = self._embedder.encode(prompts, batch_size=BATCH, show_progress_bar=False)
        return vectors.tolist()


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return {"image": PIL.Image.open(content["image"])}  # torchvision may have no decoder for a path
