"""Reranking computes the scores of pairs, each a query with a document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pyrerank.checks import check_int, check_list, entries
from pyrerank.engine.core import Core
from pyrerank.engine.engine import Engine
from pyrerank.engine.loaded import Loaded
from pyrerank.media.reader import Reader, is_parts
from pyrerank.media.sources import Media
from pyrerank.model.heads import ScoreHead
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.prompts.items import Explanation, Prompt, pair_up
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Score:
    """The result of one pair.

    Attributes:
        score: probability of "yes" against "no", 0 to 1: the sigmoid of ``logit``.
        logit: float32 difference of the two logits; finer than ``score`` near 0 and 1.
        tokens: length of the whole prompt in tokens, template included.
        truncated: text tokens cut from document and query to fit the model's limit.
    """

    score: float
    logit: float
    tokens: int
    truncated: int


@dataclass(frozen=True)
class Ranked:
    """One document of a ranking.

    Attributes:
        index: its place in the caller's list.
        score: 0 to 1.
        document: itself, as it was given.
    """

    index: int
    score: float
    document: Any


@dataclass(frozen=True)
class ScoringTask:
    """The `Task` of a reranker, which scores pairs; see `ScoreHead`."""

    w: torch.Tensor
    bias: float
    unit: ClassVar[str] = "pair"
    named: ClassVar[str] = "pair {}"

    def head(self, device: torch.device) -> ScoreHead:
        return ScoreHead(self.w.to(device), self.bias)

    def result(self, prompt: Prompt, row: torch.Tensor, name: str) -> Score:
        score, logit = row.tolist()
        return Score(score, logit, len(prompt.ids), prompt.truncated)


class Reranker(Engine):
    """A reranker that is loaded and scores documents against queries.

    Args:
        model: folder or hub name of a Qwen3-Reranker, a Qwen3-VL-Reranker, or a one-label
            sequence-classification checkpoint made from one; or what `open_checkpoint` returns.
        device: ``"cpu"``, ``"npu"``, ``"npu:1"``, ``"cuda"`` or ``"cuda:1"``; None takes an NPU
            where there is one, else a CUDA device, else the CPU.
        dtype: ``"float32"`` or ``"bfloat16"`` for weights and activations; None takes bfloat16,
            except on a CPU that does not multiply it natively.  Scores are float32 from the last
            hidden state on in either case.
        instruction: what counts as relevant, for calls and templated pairs that do not say; None
            takes the default the model was published with.
        max_tokens: most tokens of a whole prompt, template included, up to the checkpoint's
            ``max_position_embeddings``; documents, then queries, lose what is over it at their
            ends.  None takes the limit the model was published with.
        token_budget: most tokens in one forward pass, which bounds the memory of activations; a
            single longer prompt still runs, alone.  None takes 8192, and 1024 on a CPU.
        graph: whether passes are captured as graphs and replayed; None does so on an NPU.  A prompt
            longer than ``token_budget`` runs eagerly.
        vision_cache: bytes of device memory for the features of pictures, which are encoded once
            while they are remembered; 0 remembers none from one pass to the next.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or run.
        DeviceError: the device or its software is not there.
        OutOfMemory: the weights do not fit.
        ValueError: an argument is outside what is described here.
        TypeError: an argument is of another type.
    """

    core: Core[PairEncoder, ScoringTask]

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        instruction: str | None = None,
        max_tokens: int | None = None,
        token_budget: int | None = None,
        graph: bool | None = None,
        vision_cache: int = 1 << 30,
    ) -> None:
        checkpoint = open_checkpoint(model)
        encoder = PairEncoder.of(checkpoint, max_tokens, instruction)
        self._instruction = instruction
        task = ScoringTask(*checkpoint.classifier_vector(encoder.yes, encoder.no))
        super().__init__(
            Core(checkpoint, encoder, task, device, dtype, token_budget, graph, vision_cache)
        )

    @property
    def instruction(self) -> str | None:
        """What counts as relevant for calls that do not say, as it was given."""
        return self._instruction

    def score(
        self,
        query: Any,
        documents: Sequence[Any],
        *,
        instruction: str | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> list[float]:
        """Returns the relevance of each document, from 0 to 1, in the order given.

        Everything is read before anything is scored: pictures take 3 KiB of host memory a token.

        Args:
            query: one content for all documents, or a list with one for each.  A content is a text,
                a dict with "text", "image" and "video", or a list of OpenAI's parts; see
                docs/inputs.md.
            documents: a list of at least one content.  Other sequences, and arrays and Series of
                one dimension, do as well, also for ``query``.
            instruction: what counts as relevant in this call; None takes the engine's.
            media: how pictures are read; None takes the limits of the published models and fetches
                nothing.
            progress: True or False shows or hides a progress bar on stderr; None shows it on a
                terminal when the call takes more than a second.

        Warns:
            TruncationWarning: texts were cut to ``max_tokens``; a call warns once.

        Raises:
            TypeError: an argument or a part of a content is of the wrong type.  The message names
                it, with its index, and nothing was scored, as with ValueError.
            ValueError: lists are of the wrong length, a text is not valid Unicode, a picture cannot
                be read, or there are pictures and the model reads text only.
            ImportError: there is a video file, and PyAV is not installed.
            NonFiniteScore: the weights or the arithmetic gave a NaN or an infinity.
            DeviceError: the device failed; `OutOfMemory` and `EngineClosed` say what that leaves.
        """
        results = self.details(
            query, documents, instruction=instruction, media=media, progress=progress
        )
        self._warn_of_cuts(results)
        return [result.score for result in results]

    def details(
        self,
        query: Any,
        documents: Sequence[Any],
        *,
        instruction: str | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> list[Score]:
        """As `score`, but returns logits and token counts as well, and warns of no cuts."""
        self.core.failures.check_usable()
        reader, encoder = Reader(media), self.core.encoder
        pairs = [
            encoder.pair(f"documents[{i}]", q, document, instruction, reader)
            for i, (q, document) in enumerate(pair_up(query, documents))
        ]
        return self.core.results(pairs, progress=progress)

    def rank(
        self,
        query: Any,
        documents: Sequence[Any],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> list[Ranked]:
        """Returns ``top_n`` documents, or all, from most to least relevant; equal scores keep the
        order given.  ``query`` is one content; all else is as in `score`.
        """
        if entries(query) is not None and not is_parts(query):
            raise TypeError("query must be one content, got a list of them; rank takes one query")
        if top_n is not None:
            top_n = check_int("top_n", top_n, "a positive int or None", 1)
        documents = check_list("documents", documents)
        results = self.details(
            query, documents, instruction=instruction, media=media, progress=progress
        )
        self._warn_of_cuts(results)
        # the logit orders documents whose scores round to the same float
        order = sorted(range(len(results)), key=lambda i: -results[i].logit)[:top_n]
        return [Ranked(i, results[i].score, documents[i]) for i in order]

    def explain(
        self,
        query: Any,
        document: Any,
        *,
        instruction: str | None = None,
        media: Media | None = None,
    ) -> Explanation:
        """Returns the prompt that `score` makes of this pair; computes no score."""
        self.core.failures.check_usable()
        encoder = self.core.encoder
        return encoder.explain(
            encoder.pair("document", query, document, instruction, Reader(media))
        )


def score(
    query: Any,
    documents: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_tokens: int | None = None,
    media: Media | None = None,
    progress: bool | None = None,
) -> list[float]:
    """Scores documents against a query with the checkpoint ``model``; see `Reranker.score`.

    The checkpoint stays loaded for the next call of `score` or `rank`, until one asks for another
    checkpoint, device or dtype, its files change, or `close` is called.  Calls take turns.
    """
    with LOADED.engine(model, device, dtype, max_tokens) as engine:
        return engine.score(
            query, documents, instruction=instruction, media=media, progress=progress
        )


def rank(
    query: Any,
    documents: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    top_n: int | None = None,
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_tokens: int | None = None,
    media: Media | None = None,
    progress: bool | None = None,
) -> list[Ranked]:
    """Ranks documents with the checkpoint ``model``; see `Reranker.rank` and `score`."""
    with LOADED.engine(model, device, dtype, max_tokens) as engine:
        return engine.rank(
            query, documents, top_n=top_n, instruction=instruction, media=media, progress=progress
        )


def explain(
    query: Any,
    document: Any,
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    max_tokens: int | None = None,
    media: Media | None = None,
) -> Explanation:
    """Returns the prompt that `score` makes of this pair; reads the tokenizer, and no weights."""
    encoder = PairEncoder.of(open_checkpoint(model), max_tokens)
    return encoder.explain(encoder.pair("document", query, document, instruction, Reader(media)))


LOADED = Loaded(Reranker)
