"""The engine: pairs in, scores out.

`Reranker` owns the flow prompt -> inputs -> batch -> model -> ops; everything a user calls, in
Python or from the command line, is a thin caller of it.
"""

from __future__ import annotations

import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NoReturn

import torch
from tqdm import tqdm

from pyrerank import ops
from pyrerank.attention import Attend, FusedInfer, causal_mask, choose
from pyrerank.batch import Batch, pack, plan
from pyrerank.checkpoint import Checkpoint, open_checkpoint
from pyrerank.device import reserve, resolve, runtime, works
from pyrerank.errors import (
    CheckpointError,
    DeviceError,
    EngineClosed,
    NonFiniteScore,
    OutOfMemory,
)
from pyrerank.graph import GraphError, Graphs
from pyrerank.inputs import Explanation, Pair, Prompt, PromptEncoder, pair_up
from pyrerank.model import Decoder
from pyrerank.prompt import TEMPLATES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Score:
    """One pair's result.

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
    """One document of a ranking: its place in the caller's list, its score, its text."""

    index: int
    score: float
    document: str


@dataclass(frozen=True)
class _Model:
    """Decoder and head: what runs on the device."""

    decoder: Decoder
    w: torch.Tensor
    bias: float

    def __call__(self, batch: Batch, attend: Attend) -> torch.Tensor:
        """Score and logit of each sequence, float32 [2, B]."""
        norm = self.decoder.norm
        hidden = self.decoder(batch, attend)
        last = batch.cu_seqlens[1:] - 1
        return torch.stack(ops.score_head(hidden, last, norm.weight, norm.eps, self.w, self.bias))


class Reranker:
    """A loaded reranker.

    Args:
        model: folder or hub name of a Qwen3-Reranker, a Qwen3-VL-Reranker (text inputs), or a
            one-label sequence-classification checkpoint made from one; see `open_checkpoint`.
        device: ``"cpu"``, ``"npu"``, ``"npu:1"``, ``"cuda"`` or ``"cuda:1"``; None takes an NPU
            where there is one, else a CUDA device, else the CPU.  One engine a device.
        dtype: ``"float32"`` or ``"bfloat16"`` for weights and activations; None takes bfloat16,
            except on a CPU that does not multiply it natively.  Scores are float32 from the last
            hidden state on in either case.
        instruction: what counts as relevant, for calls that do not say; None takes the default
            the model was published with.
        token_budget: most tokens in one forward pass, which bounds the memory of activations; a
            single longer prompt still runs, alone.
        graph: whether passes are captured as graphs and replayed, see `pyrerank.graph`; None does
            so on an NPU.  A prompt longer than ``token_budget`` runs eagerly.

    Attributes:
        graphs: the captured passes with their counters; None where passes run eagerly.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or run.
        DeviceError: the device is not there, or its software; OutOfMemory: the weights do not fit.
        ValueError, TypeError: an argument outside what is described here.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        instruction: str | None = None,
        token_budget: int = 8192,
        graph: bool | None = None,
    ) -> None:
        if not isinstance(token_budget, int) or token_budget < 1:
            raise ValueError(f"token_budget must be a positive int, got {token_budget!r}")
        self.device = resolve(device)
        if graph and self.device.type == "cpu":
            raise ValueError("graph=True needs a device with graphs: npu or cuda")
        self.dtype = _dtype(dtype, self.device)
        self.instruction = instruction
        self.token_budget = token_budget
        self.checkpoint = open_checkpoint(model)
        self._encoder = _encoder(self.checkpoint)
        self._lost: str | None = None
        self.graphs: Graphs | None = None
        with self._failures():
            w, bias = self.checkpoint.classifier_vector(self._encoder.yes, self._encoder.no)
            decoder = Decoder.load(self.checkpoint, self.device, self.dtype)
            self._model = _Model(decoder, w.to(self.device), bias)
            self._attend = choose(self.device, self.dtype, captured=False)
            if graph or (graph is None and self.device.type == "npu"):
                self._start_graphs()
            elif self.device.type != "cpu":
                reserve(self.device, decoder.activation_bytes(token_budget, self._attend))

    def _start_graphs(self) -> None:
        attend = choose(self.device, self.dtype, captured=True)
        updated = len(self._model.decoder.layers) if isinstance(attend, FusedInfer) else 0
        forward: Callable[[Batch], torch.Tensor] = partial(self._model, attend=attend)
        try:
            self.graphs = Graphs(
                forward,
                self.device,
                self.token_budget,
                updated,
                self._model.decoder.activation_bytes(self.token_budget, attend),
            )
        except GraphError as error:
            self._give_up_graphs(error)

    def score(
        self,
        query: str | Sequence[str],
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[float]:
        """Relevance of each document, 0 to 1, in the order given.

        Args:
            query: one query for all documents, or as many as there are documents.
            documents: at least one text; an empty string is an empty document.
            instruction: overrides the engine's for this call.
            progress: True or False shows or hides a progress bar on stderr; None shows it on a
                terminal when the call takes more than a second.

        Raises:
            TypeError, ValueError: an argument of the wrong type or length, or a text that is not
                valid Unicode; names the argument and its index.  Nothing was scored.
            NonFiniteScore: the weights or the arithmetic gave a NaN or an infinity.
        """
        return [
            result.score
            for result in self.details(query, documents, instruction=instruction, progress=progress)
        ]

    def details(
        self,
        query: str | Sequence[str],
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[Score]:
        """Like `score`, with the logit and the token counts of each pair."""
        pairs = [
            self.pair(f"documents[{i}]", q, document, instruction)
            for i, (q, document) in enumerate(pair_up(query, documents))
        ]
        return self.run(pairs, progress=progress)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        progress: bool | None = None,
    ) -> list[Ranked]:
        """Documents from most to least relevant; equal scores keep the order given.

        Args:
            query: one query.
            documents, instruction, progress: as in `score`.
            top_n: how many to return, at least 1; None returns all.

        Raises: as `score`.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be str, got {type(query).__name__}")
        if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
            raise ValueError(f"top_n must be a positive int or None, got {top_n!r}")
        results = self.details(query, documents, instruction=instruction, progress=progress)
        # the logit orders documents whose scores round to the same float
        order = sorted(range(len(results)), key=lambda i: -results[i].logit)[:top_n]
        return [Ranked(i, results[i].score, documents[i]) for i in order]

    def explain(self, query: str, document: str, *, instruction: str | None = None) -> Explanation:
        """The prompt that `score` runs for this pair."""
        return self._encoder.explain(self.pair("document", query, document, instruction))

    def pair(
        self, name: str, query: object, document: object, instruction: str | None = None
    ) -> Pair:
        """Validates one pair for `run`; ``name`` is what error messages call it."""
        chosen = self.instruction if instruction is None else instruction
        return self._encoder.pair(name, query, document, chosen)

    def run(self, pairs: Sequence[Pair], *, progress: bool | None = None) -> list[Score]:
        """Scores validated pairs, in order, however many there are; equal pairs are run once."""
        results: dict[Pair, Score] = {}
        unique = list(dict.fromkeys(pairs))
        hide = None if progress is None else not progress  # tqdm's None: hidden unless a terminal
        delay = 1 if progress is None else 0
        with tqdm(total=len(unique), unit="pair", disable=hide, delay=delay, leave=False) as bar:
            for prompts in plan(self._encoder.stream(unique), self.token_budget):
                done = unique[len(results) : len(results) + len(prompts)]
                for pair, result in zip(done, self._forward(prompts), strict=True):
                    if not math.isfinite(result.logit):
                        raise NonFiniteScore(self._diagnosis(pairs.index(pair), result.logit))
                    results[pair] = result
                bar.update(len(prompts))
        return [results[pair] for pair in pairs]

    def device_memory(self) -> int:
        """Bytes of device memory the engine takes: weights, and one pass of ``token_budget``.

        Allocators round up what they take, by less than a twentieth of the sum for the published
        models.  A prompt longer than ``token_budget`` takes more.
        """
        decoder = self._model.decoder
        attend = choose(self.device, self.dtype, captured=self.graphs is not None)
        mask = causal_mask(self.device).nbytes if isinstance(attend, FusedInfer) else 0
        weights = sum(parameter.nbytes for parameter in decoder.parameters())
        return weights + mask + decoder.activation_bytes(self.token_budget, attend)

    def warmup(self) -> None:
        """Captures the graph of every bucket now, instead of at its first use; without graphs,
        does nothing.

        Raises: `DeviceError`, as `score`.
        """
        with self._failures(), torch.inference_mode():
            if self.graphs is not None:
                try:
                    self.graphs.warmup()
                except GraphError as error:
                    self._give_up_graphs(error)

    @torch.inference_mode()
    def _forward(self, prompts: Sequence[Prompt]) -> list[Score]:
        batch = pack(prompts)
        with self._failures():
            out = self._replay(batch)
            if out is None:
                out = self._model(batch.to(self.device), self._attend)
            # a copy that never happened leaves no score either
            scores, logits = torch.full(out.shape, torch.nan).copy_(out).tolist()
        if math.isnan(sum(logits)) and self.device.type != "cpu" and not works(self.device):
            self._close("the device dropped work")
        return [
            Score(score, logit, len(prompt.ids), prompt.truncated)
            for prompt, score, logit in zip(prompts, scores, logits, strict=True)
        ]

    def _replay(self, batch: Batch) -> torch.Tensor | None:
        """The results of `_Model` from a graph; None where there is none."""
        if self.graphs is None:
            return None
        try:
            return self.graphs.run(batch)
        except GraphError as error:
            self._give_up_graphs(error)
            return None

    def _give_up_graphs(self, error: GraphError) -> None:
        traceback.clear_frames(error.__traceback__)
        self.graphs = None
        if not works(self.device):
            self._close(f"a graph failed and left it unusable: {error}")
        warnings.warn(
            "a forward pass could not be captured or replayed, so this engine runs eagerly from "
            f"here on, with the same scores ({error}). Free memory or streams on {self.device}, or "
            f"lower token_budget, which is {self.token_budget}, for fewer and smaller graphs; "
            "graph=False does without.",
            RuntimeWarning,
            stacklevel=2,
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Around all that a device does: names its failures, and decides what they leave behind."""
        if self._lost is not None:
            raise EngineClosed(self._lost)
        try:
            yield
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            runtime(self.device).empty_cache()
            raise OutOfMemory(
                f"{self.device} has too little free memory: {error}. Lower token_budget, which is "
                f"{self.token_budget}, or free memory; the engine can be used again"
            ) from error
        except RuntimeError as error:
            if self.device.type == "cpu" or isinstance(error, DeviceError):
                raise
            traceback.clear_frames(error.__traceback__)
            if not works(self.device):
                self._close(str(error))
            raise DeviceError(f"{self.device} failed: {error}; it can be used again") from error

    def _close(self, reason: str) -> NoReturn:
        self._lost = (
            f"{self.device} or its runtime in this process is lost ({reason}); no engine in this "
            "process can use it any more: start a new process"
        )
        self.graphs = None
        raise EngineClosed(self._lost)

    def _diagnosis(self, index: int, logit: float) -> str:
        bad = self.checkpoint.not_finite()
        cause = (
            f"the checkpoint's weights are not finite: {', '.join(bad[:4])}"
            if bad
            else f"the arithmetic overflowed in {self.dtype}; try dtype='float32'"
        )
        return f"the model gave {logit} for pair {index} ({self.checkpoint.path}): {cause}"


def score(
    query: str | Sequence[str],
    documents: Sequence[str],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool | None = None,
) -> list[float]:
    """Scores documents against a query with the checkpoint ``model``; see `Reranker.score`.

    The checkpoint loaded last stays in memory for the next call; hold a `Reranker` to have several
    or to release one.
    """
    engine = _loaded(_key(model), device, dtype)
    return engine.score(query, documents, instruction=instruction, progress=progress)


def rank(
    query: str,
    documents: Sequence[str],
    *,
    model: str | os.PathLike[str],
    top_n: int | None = None,
    instruction: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool | None = None,
) -> list[Ranked]:
    """Ranks documents with the checkpoint ``model``; see `Reranker.rank` and `score`."""
    engine = _loaded(_key(model), device, dtype)
    return engine.rank(query, documents, top_n=top_n, instruction=instruction, progress=progress)


def explain(
    query: str, document: str, *, model: str | os.PathLike[str], instruction: str | None = None
) -> Explanation:
    """The prompt that `score` runs for this pair with the checkpoint ``model``.

    Reads the checkpoint's tokenizer, not its weights.
    """
    encoder = _encoder(open_checkpoint(model))
    return encoder.explain(encoder.pair("document", query, document, instruction))


def _encoder(checkpoint: Checkpoint) -> PromptEncoder:
    try:
        return PromptEncoder(checkpoint.tokenizer(), TEMPLATES[checkpoint.family])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


@lru_cache(maxsize=1)
def _loaded(
    model: str, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> Reranker:
    return Reranker(model, device=device, dtype=dtype)


def _key(model: str | os.PathLike[str]) -> str:
    """A folder by its absolute path, which still means the same when the process has moved."""
    return os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        native = device.type != "cpu" or cpu_multiplies_bfloat16()
        return torch.bfloat16 if native else torch.float32
    chosen = DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {dtype!r}")
    return chosen


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 dot products (AVX512-BF16, AMX, Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False  # torch is too old to tell
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
