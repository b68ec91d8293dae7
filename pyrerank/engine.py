"""The engine: prompts in, results out.

`Engine` owns the flow batch -> model -> ops on a device, with graphs, failures and memory;
`pyrerank.reranker` and `pyrerank.embedder` put inputs before it and results after it.
"""

from __future__ import annotations

import math
import os
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Generic, NoReturn, Protocol, Self, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from pyrerank.ahead import ahead
from pyrerank.attention import Attend, FusedInfer, causal_mask, choose, gathers
from pyrerank.batch import (
    MAX_SEQUENCES,
    NOTHING,
    SHARED_PER_TOKEN,
    Batch,
    Prefix,
    Run,
    in_windows,
    key_of,
    pack,
    plan,
)
from pyrerank.checkpoint import Checkpoint
from pyrerank.device import check_process, reserve, resolve, runtime, works
from pyrerank.errors import DeviceError, EngineClosed, NonFiniteScore, OutOfMemory
from pyrerank.features import Features
from pyrerank.graph import GraphError, Graphs
from pyrerank.inputs import Encoder, Item, Prompt, unique
from pyrerank.model import Decoder, RMSNorm
from pyrerank.vision import VisionTower

TOKEN_BUDGET = 8192
# a larger pass is no faster there, and its largest tensors come from the system at each layer, page
# by page
TOKEN_BUDGET_CPU = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Head(Protocol):
    """From hidden states, before the final norm, to rows of results, one a sequence.

    Attributes:
        every_token: whether it wants the hidden states of all tokens, [T, hidden_size]; else those
            of last tokens, [B, hidden_size].  Then a prompt computes all of its tokens.
    """

    @property
    def every_token(self) -> bool: ...

    def __call__(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, norm: RMSNorm
    ) -> torch.Tensor:
        """cu_seqlens: int32 [B + 1], where each sequence starts among the T tokens."""


Result = TypeVar("Result")


@dataclass(frozen=True)
class _Model:
    """Decoder and head: what runs on the device."""

    decoder: Decoder
    head: Head

    def __call__(
        self, batch: Batch, attend: Attend, prefix: Prefix, *, prune: bool
    ) -> torch.Tensor:
        every = self.head.every_token
        hidden = self.decoder(batch, attend, prefix, prune=prune and not every, every_token=every)
        return self.head(hidden, batch.cu_seqlens, self.decoder.norm)

    def no_prefix(self) -> Prefix:
        """For a pass that nothing came before."""
        return Prefix(deque([None] * len(self.decoder.layers)))


class Engine(Generic[Item, Result]):
    """A decoder with a head, loaded onto a device.

    Threads may share an engine: a lock is held over each pass, from its inputs to the copy of its
    results on the host, so that the passes of several calls take turns.

    Args:
        checkpoint: where the decoder's weights are.
        encoder: makes prompts of items.
        head: makes the head, on the device that it is given.
        device, dtype, token_budget, graph, vision_cache: see `Reranker`.

    Attributes:
        graphs: the captured passes with their counters; None where passes run eagerly.
        features: the vision tower with its counter; None where the model reads text only.
        computed: tokens that went through the decoder so far.
        share_prefixes: whether what prompts have in common at their start is computed once; with
            graphs, once a pass.
        prune_last_layer: whether the last layer computes queries and MLP for last tokens only.
            Both change no score beyond rounding, and can be switched for comparison.  Each setting
            of the latter has graphs of its own, captured when they are needed.  Where a checkpoint
            pools over all tokens of a prompt, neither is done.

    Raises: as `Reranker`.
    """

    _unit: str  # what an item is called, beside a number
    _named: str  # what the item of an index is called

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: Encoder[Item],
        head: Callable[[torch.device], Head],
        *,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        token_budget: int | None,
        graph: bool | None,
        vision_cache: int,
    ) -> None:
        if token_budget is not None and (not isinstance(token_budget, int) or token_budget < 1):
            raise ValueError(f"token_budget must be a positive int or None, got {token_budget!r}")
        if not isinstance(vision_cache, int) or vision_cache < 0:
            raise ValueError(f"vision_cache must be a number of bytes or 0, got {vision_cache!r}")
        self.device = resolve(device)
        if graph and self.device.type == "cpu":
            raise ValueError("graph=True needs a device with graphs: npu or cuda")
        self.dtype = _dtype(dtype, self.device)
        if token_budget is None:
            token_budget = TOKEN_BUDGET_CPU if self.device.type == "cpu" else TOKEN_BUDGET
        self.token_budget = token_budget
        self._process = check_process(claim=True)
        # Whoever has it may use the model, the graphs and the features.  One thread may take it
        # twice: a finaliser that the garbage collector runs in a pass may close the engine.
        self._lock = threading.RLock()
        self.checkpoint = checkpoint
        self._encoder = encoder
        self.computed = 0
        self.share_prefixes = self.prune_last_layer = True
        self._left: Prefix | None = None  # by the last stream, for the next
        self._lost: str | None = None
        self.graphs: Graphs | None = None
        self.features: Features | None = None
        with self._failures():
            decoder = Decoder.load(checkpoint, self.device, self.dtype)
            if checkpoint.family == "qwen3-vl":
                tower = VisionTower.load(checkpoint, self.device, self.dtype)
                self.features = Features(tower, token_budget, vision_cache)
            self._model = _Model(decoder, head(self.device))
            self._every_token = self._model.head.every_token
            self._attend = choose(self.device, self.dtype, captured=False)
            if graph or (graph is None and self.device.type == "npu"):
                self._start_graphs()
            elif self.device.type != "cpu":
                reserve(self.device, decoder.activation_bytes(token_budget, self._attend))

    def _start_graphs(self) -> None:
        attend = choose(self.device, self.dtype, captured=True)
        updated = len(self._model.decoder.layers) if isinstance(attend, FusedInfer) else 0
        forward = partial(self._model, attend=attend, prefix=self._model.no_prefix())
        try:
            self.graphs = Graphs(
                forward,
                self.device,
                self.token_budget,
                updated,
                self._model.decoder.activation_bytes(self.token_budget, attend),
                self.features,
            )
        except GraphError as error:
            self._give_up_graphs(error)

    def device_memory(self) -> int:
        """Bytes of device memory the engine takes: weights, and one pass of ``token_budget``.

        Of a model that reads pictures also the tower, its pass, and all of ``vision_cache``.
        Allocators round up what they take, by less than a twentieth of the sum for the published
        models.  A prompt longer than ``token_budget`` takes more; so do, without graphs, keys and
        values that a pass leaves for the next.
        """
        with self._use():
            decoder = self._model.decoder
            attend = choose(self.device, self.dtype, captured=self.graphs is not None)
            mask = causal_mask(self.device).nbytes if isinstance(attend, FusedInfer) else 0
            weights = sum(parameter.nbytes for parameter in decoder.parameters())
            vision = self.features.device_memory() if self.features is not None else 0
            return weights + mask + decoder.activation_bytes(self.token_budget, attend) + vision

    def warmup(self) -> None:
        """Captures the graph of every bucket now, instead of at its first use; without graphs,
        does nothing.

        Raises: `DeviceError`, as `score`.
        """
        with self._use(), self._failures(), torch.inference_mode():
            if self.graphs is not None:
                try:
                    self.graphs.warmup(prune=self._prunes)
                except GraphError as error:
                    self._give_up_graphs(error)

    def close(self) -> None:
        """Lets go of weights, graphs and features; the engine cannot be used afterwards.

        Waits for a pass that runs in another thread; the call that the pass belongs to then raises
        `EngineClosed`, unless that pass was its last.  Closing again does nothing.  In a forked
        child it does nothing either: what an engine holds is the parent's.  ``with Reranker(...) as
        engine:`` closes it at the end.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            if self._lost is None:
                self._lost = f"this {type(self).__name__} was closed; make a new one"
                self._let_go()
                if self.device.type != "cpu":
                    runtime(self.device).empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} can be neither pickled nor copied, because it holds a model on a device: "
            "threads of one process can share it; processes, to be started with spawn, each make "
            f"a {kind} of their own from the same arguments"
        )

    @property
    def max_tokens(self) -> int:
        """Most tokens of a whole prompt."""
        return self._encoder.max_tokens

    def encode(self, items: Sequence[Item], max_tokens: int | None = None) -> list[Prompt]:
        """Prompts of validated items, in any thread; see `Encoder.encode`."""
        return self._encoder.encode(items, max_tokens)

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text that has ``count`` tokens, in any thread."""
        return self._encoder.first_tokens(text, count)

    def result(self, prompt: Prompt, row: torch.Tensor) -> Result:
        """What a finite row of `stream` says of its prompt."""
        raise NotImplementedError

    @cached_property
    def _bad_weights(self) -> list[str]:
        return self.checkpoint.not_finite()

    def not_finite(self, name: str = "it") -> NonFiniteScore:
        """The error, with its cause, for a row that is not finite; ``name`` is what it calls its
        prompt."""
        bad = self._bad_weights
        cause = (
            f"the checkpoint's weights are not finite: {', '.join(bad[:4])}"
            if bad
            else f"the arithmetic overflowed in {self.dtype}; try dtype='float32'"
        )
        return NonFiniteScore(
            f"the model gave NaN or infinity for {name} ({self.checkpoint.path}): {cause}"
        )

    def run(self, items: Sequence[Item], *, progress: bool | None = None) -> list[Result]:
        """Results of validated items, in order, however many there are; equal ones are run once."""
        results: dict[Item, Result] = {}
        for item, result in self.outcomes(items, progress=progress):
            if result is None:
                raise self.not_finite(self._named.format(items.index(item)))
            results[item] = result
        return [results[item] for item in items]

    def outcomes(
        self, items: Sequence[Item], *, progress: bool | None = None
    ) -> Iterator[tuple[Item, Result | None]]:
        """Each of the different ones among validated items, in no order, with its result: None
        where its row is not finite, and `not_finite` is the error."""
        each = unique(items)
        passes = self.passes(self._encoder.stream(each), len(each), self._unit, progress)
        for item, (prompt, row) in zip(each, passes, strict=True):
            yield item, self.result(prompt, row) if row.isfinite().all() else None

    def stream(
        self, windows: Iterable[Sequence[Prompt]], *, keep: bool = False
    ) -> Generator[tuple[Run, torch.Tensor], None, None]:
        """Runs prompts, however many there are; yields each pass with its rows of results, on the
        host.

        Windows are taken as passes need them, one pass ahead, in a thread of its own.  An empty
        window ends a pass; see `plan`.  With ``keep``, the next stream may share the beginning of
        the last prompt.
        """
        with self._use():
            prefix, self._left = self._left or self._model.no_prefix(), None
        runs = self._plan(windows, prefix.key, keep)
        last = None
        with closing(ahead((run, pack(run)) for run in runs)) as packed:
            for run, batch in packed:
                prefix.cut(run.shared[0])
                last = run
                yield run, self._forward(run, batch, prefix)
        if last is not None and last.kept:
            prefix.key = key_of(last.prompts[-1])[: last.kept]
            with suppress(EngineClosed), self._use():  # one closed since keeps nothing
                self._left = prefix

    def passes(
        self, prompts: Iterable[Prompt], total: int, unit: str, progress: bool | None
    ) -> Iterator[tuple[Prompt, torch.Tensor]]:
        """As `stream`, but yields prompts in order, each with its row.

        ``total`` and ``unit`` are for the progress bar; ``progress`` as in `Reranker.score`.
        """
        hide = None if progress is None else not progress  # tqdm's None: hidden unless a terminal
        delay = 1 if progress is None else 0
        with tqdm(total=total, unit=unit, disable=hide, delay=delay, leave=False) as bar:
            waiting: dict[int, tuple[Prompt, torch.Tensor]] = {}
            done = 0
            for run, rows in self.stream(in_windows(prompts)):
                waiting |= zip(run.members, zip(run.prompts, rows, strict=True), strict=True)
                while done in waiting:
                    yield waiting.pop(done)
                    done += 1
                bar.update(len(run.members))

    @property
    def _prunes(self) -> bool:
        return self.prune_last_layer and not self._every_token

    def _plan(
        self,
        windows: Iterable[Sequence[Prompt]],
        before: np.ndarray = NOTHING,
        keep: bool = False,
    ) -> Iterator[Run]:
        graphs = self.graphs
        bounded = graphs is not None or gathers(self._attend)
        return plan(
            windows,
            self.token_budget,
            share=self.share_prefixes and not self._every_token,
            sequences=MAX_SEQUENCES if graphs is None else graphs.buckets[-1].sequences,
            most_shared=SHARED_PER_TOKEN * self.token_budget if bounded else math.inf,
            chained=graphs is None,
            before=before,
            keep=keep,
        )

    @torch.inference_mode()
    def _forward(self, run: Run, batch: Batch, prefix: Prefix) -> torch.Tensor:
        with self._use():
            if self.device.type == "cpu":  # where weights may be views of their files
                self.checkpoint.check_unchanged()
            with self._failures():
                if self.features is not None and (visuals := run.visuals):
                    batch = replace(batch, features=self.features.rows(visuals))
                self.computed += batch.tokens
                out = self._replay(batch)
                if out is None:
                    on_device = batch.to(self.device)
                    prefix.rows = on_device.kept(run.kept)
                    out = self._model(on_device, self._attend, prefix, prune=self._prunes)
                # NaN first, so that a copy that never happened leaves no result; before the lock is
                # given up, because a graph's next replay writes to the same ``out``
                rows = torch.full(out.shape, torch.nan, dtype=out.dtype).copy_(out)
            if self.device.type == "cpu":
                self.checkpoint.check_unchanged()
            elif rows.isnan().any() and not works(self.device):
                self._lose("the device dropped work")
            return rows

    def _replay(self, batch: Batch) -> torch.Tensor | None:
        """The results of `_Model` from a graph; None where there is none."""
        if self.graphs is None:
            return None
        try:
            return self.graphs.run(batch, prune=self._prunes)
        except GraphError as error:
            self._give_up_graphs(error)
            return None

    def _give_up_graphs(self, error: GraphError) -> None:
        traceback.clear_frames(error.__traceback__)
        self.graphs = None
        if not works(self.device):
            self._lose(f"a graph failed and left it unusable: {error}")
        warnings.warn(
            "a forward pass could not be captured or replayed, so this engine runs eagerly from "
            f"here on, with the same scores ({error}). Free memory or streams on {self.device}, or "
            f"lower token_budget, which is {self.token_budget}, for fewer and smaller graphs; "
            "graph=False does without.",
            RuntimeWarning,
            stacklevel=2,
        )

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Around all that needs the model: the lock, once the engine is known to be usable."""
        self._check_usable()
        with self._lock:
            self._check_usable()
            yield

    def _check_usable(self) -> None:
        """Raises `EngineClosed` where the engine cannot be used, or not in this process."""
        check_process()
        if self._lost is not None:
            raise EngineClosed(self._lost)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Around all that a device does: names its failures, and decides what they leave behind."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            if self.features is not None:
                self.features.clear()
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
                self._lose(str(error))
            raise DeviceError(f"{self.device} failed: {error}; it can be used again") from error

    def _lose(self, reason: str) -> NoReturn:
        self._lost = (
            f"{self.device} or its runtime in this process is lost ({reason}); no engine in this "
            "process can use it any more: start a new process"
        )
        self._let_go()
        raise EngineClosed(self._lost)

    def _let_go(self) -> None:
        self.graphs = self.features = self._left = None
        vars(self).pop("_model", None)


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
