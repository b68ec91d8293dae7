"""The core of an engine plans passes of prompts, packs their batches, and runs the model over them.

An encoder makes prompts of items before it, and a `Task` makes results of rows after it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from pyrerank.checks import check_flag, check_int, warn
from pyrerank.devices.base import Accelerator
from pyrerank.devices.select import resolve, resolve_dtype
from pyrerank.engine.ahead import ahead
from pyrerank.engine.batch import MAX_SEQUENCES, SHARED_PER_TOKEN, Batch, pack
from pyrerank.engine.failures import Failures
from pyrerank.engine.features import Features
from pyrerank.engine.graphs import GraphError, Graphs
from pyrerank.engine.planner import NO_KEY, Pass, in_windows, key_of, plan
from pyrerank.engine.prefix import Prefix
from pyrerank.errors import EngineClosed, NonFiniteScore, OutOfMemory
from pyrerank.model.decoder import Decoder
from pyrerank.model.heads import Head, Model
from pyrerank.model.vision import VisionTower
from pyrerank.prompts.encoder import Encoder
from pyrerank.prompts.items import Prompt, unique
from pyrerank.weights.checkpoint import Checkpoint


class Task(Protocol):
    """Makes the head, and results of the head's rows."""

    unit: ClassVar[str]  # what the progress bar counts, such as "pair"
    named: ClassVar[str]  # what messages call the item of an index, such as "pair {}"

    def head(self, device: torch.device) -> Head:
        """Makes the head, with its weights on ``device``."""

    def result(self, prompt: Prompt, row: torch.Tensor, name: str) -> Any:
        """Makes the result of a prompt of its row, [N] finite numbers on the host; raises
        `NonFiniteScore`, about ``name``, if the row gives none."""


E = TypeVar("E", bound=Encoder[Any])
T = TypeVar("T", bound=Task)
R = TypeVar("R")


class Core(Generic[E, T]):
    """A decoder with a head on a device, and all that takes prompts through it.

    Threads may share it: a lock is held over each pass, from its inputs to the copy of its results
    on the host.  Arguments and errors are as for `Reranker`.

    Attributes:
        model: the decoder and the head; an engine that was closed or is lost has none.
        attend: the attention of passes that run eagerly.
        graphs: the captured passes with their counters; None where passes run eagerly.
        features: the vision tower with its counter; None where the model reads text only.
        failures: has the lock, and knows whether the engine can be used.
        computed: tokens that went through the decoder so far.
        share_prefixes: whether what prompts have in common at their start is computed once; with
            graphs, once a pass.
        prune_last_layer: whether the last layer computes queries and MLP for last tokens only; each
            setting has graphs of its own.

    The last two change no score beyond rounding, and can be switched for comparison.  Where a
    checkpoint pools over all tokens of a prompt, both count as off.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: E,
        task: T,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        token_budget: int | None,
        graph: bool | None,
        vision_cache: int,
    ) -> None:
        if token_budget is not None:
            token_budget = check_int("token_budget", token_budget, "a positive int or None", 1)
        vision_cache = check_int("vision_cache", vision_cache, "a number of bytes or 0", 0)
        if graph is not None:
            graph = check_flag("graph", graph)
        self.device = resolve(device)
        self.device.prepare()  # what is missing is said before the weights are read
        if graph and not isinstance(self.device, Accelerator):
            raise ValueError("graph=True needs a device with graphs: npu or cuda")
        self.dtype = resolve_dtype(dtype, self.device)
        self.token_budget = token_budget or self.device.token_budget
        self.failures = Failures(self.device, self.token_budget)
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.task = task
        self.computed = 0
        self.share_prefixes = self.prune_last_layer = True
        # what the last stream leaves for the next one, with the key of its tokens
        self._prefix: tuple[Prefix, np.ndarray] | None = None
        self.graphs: Graphs | None = None
        self.features: Features | None = None
        with self._turn():
            decoder = Decoder.load(checkpoint, self.device, self.dtype)
            if checkpoint.family == "qwen3-vl":
                tower = VisionTower.load(checkpoint, self.device, self.dtype)
                self.features = Features(tower, self.token_budget, vision_cache)
            self.model = Model(decoder, task.head(self.device.torch_device))
            self._every_token = self.model.head.every_token
            self.attend = self.device.attention(self.dtype, captured=False)
            if isinstance(self.device, Accelerator) and (
                self.device.graphs_by_default if graph is None else graph
            ):
                attend = self.device.attention(self.dtype, captured=True)
                budget, features = self.token_budget, self.features
                start = partial(Graphs, self.model, attend, self.device, budget, features)
                self.graphs = self._or_eagerly(start)
            else:
                self.device.reserve(decoder.activation_bytes(self.token_budget, self.attend))
        self.failures.loaded = True

    def device_memory(self) -> int:
        """See `Engine.device_memory`."""
        with self._turn():
            decoder = self.model.decoder
            attend = self.device.attention(self.dtype, captured=self.graphs is not None)
            weights = sum(parameter.nbytes for parameter in decoder.parameters())
            activations = decoder.activation_bytes(self.token_budget, attend)
            vision = self.features.device_memory() if self.features is not None else 0
            return weights + attend.constant_bytes() + activations + vision

    def warmup(self) -> None:
        """See `Engine.warmup`."""
        with self._turn(), torch.inference_mode():
            if self.graphs is not None:
                self._or_eagerly(partial(self.graphs.warmup, prune=self._prunes))

    def close(self, reason: str) -> None:
        """See `Engine.close`; later calls raise `EngineClosed` and say ``reason``."""
        with self.failures.lock:
            if self.failures.lost is None:
                self.failures.lost = reason
                self._let_go()
                self.device.empty_cache()

    def results(
        self,
        items: Sequence[Any],
        *,
        progress: bool | None = None,
        result: Callable[[Prompt, torch.Tensor, str], Any] | None = None,
    ) -> list[Any]:
        """Computes the results of items, in order; equal ones are computed once.  ``result`` makes
        results of rows in the place of `Task.result`."""
        if progress is not None:
            check_flag("progress", progress)
        # equal items are called by the index of the first of them
        names = {item: self.task.named.format(i) for i, item in reversed(list(enumerate(items)))}
        results: dict[Any, Any] = {}
        for item, outcome in self.outcomes(items, names, progress=progress, result=result):
            if isinstance(outcome, NonFiniteScore):
                raise outcome
            results[item] = outcome
        return [results[item] for item in items]

    def outcomes(
        self,
        items: Sequence[Any],
        names: Mapping[Any, str] | None = None,
        *,
        progress: bool | None = None,
        result: Callable[[Prompt, torch.Tensor, str], Any] | None = None,
    ) -> Iterator[tuple[Any, Any | NonFiniteScore]]:
        """Yields each item once, in order, with its result, or with an error if its row gives none.

        ``names`` says what errors call items, which otherwise are "it".
        """
        make, named = result or self.task.result, names or {}
        each = unique(items)
        prompts = self.encoder.stream(each)
        # the rows have no name, under which an error's traceback would keep them and their thread
        for item, (prompt, row) in zip(each, self.rows(prompts, len(each), progress), strict=True):
            name = named.get(item, "it")
            try:
                self._check_finite(row, name)
                outcome = make(prompt, row, name)
            except NonFiniteScore as error:
                outcome = error
            yield item, outcome

    def rows(
        self, prompts: Iterable[Prompt], total: int, progress: bool | None
    ) -> Iterator[tuple[Prompt, torch.Tensor]]:
        """Yields ``total`` prompts in order, each with its row of results, [N] on the host."""
        hide = None if progress is None else not progress  # tqdm's None: hidden unless a terminal
        delay = 1 if progress is None else 0
        with tqdm(total=total, unit=self.task.unit, disable=hide, delay=delay, leave=False) as bar:
            waiting: dict[int, tuple[Prompt, torch.Tensor]] = {}
            done = 0
            for planned, rows in self.stream(in_windows(prompts)):
                pairs = zip(planned.prompts, rows, strict=True)
                waiting |= zip(planned.members, pairs, strict=True)
                while done in waiting:
                    yield waiting.pop(done)
                    done += 1
                bar.update(len(planned.members))

    def stream(
        self, windows: Iterable[Sequence[Prompt]], *, keep: bool = False
    ) -> Generator[tuple[Pass, torch.Tensor], None, None]:
        """Computes prompts; yields each pass with its rows of results, [B, N] on the host.

        A thread takes windows as passes need them, one pass ahead; see `plan`.  With ``keep``, the
        next stream may share the beginning of the last prompt.
        """
        with self._turn():
            prefix, key = self._prefix or (self.model.no_prefix(), NO_KEY)
            self._prefix = None
            passes = self._plan(chain(windows, [[]]) if keep else windows, key)
        last = None
        with closing(ahead((p, pack(p.ids, p.spans, p.shared)) for p in passes)) as packed:
            for planned, batch in packed:
                prefix.cut(planned.shared[0])
                last = planned
                yield planned, self._forward(planned, batch, prefix)
        if last is not None and last.next_prefix:
            key = key_of(last.prompts[-1])[: last.next_prefix]
            with suppress(EngineClosed), self._turn():  # an engine closed since keeps nothing
                self._prefix = prefix, key

    @property
    def _prunes(self) -> bool:
        return self.prune_last_layer and not self._every_token

    def _plan(
        self, windows: Iterable[Sequence[Prompt]], prefix: np.ndarray = NO_KEY
    ) -> Iterator[Pass]:
        graphs = self.graphs
        bounded = graphs is not None or self.attend.key_copies > 1
        return plan(
            windows,
            self.token_budget,
            share=self.share_prefixes and not self._every_token,
            most_sequences=MAX_SEQUENCES if graphs is None else graphs.buckets[-1].sequences,
            most_shared=SHARED_PER_TOKEN * self.token_budget if bounded else math.inf,
            leave_prefix=graphs is None,
            prefix=prefix,
        )

    @torch.inference_mode()
    def _forward(self, planned: Pass, batch: Batch, prefix: Prefix) -> torch.Tensor:
        with self._turn():
            if self.device.maps_weights:
                self.checkpoint.check_unchanged()
            if self.features is not None and (visuals := planned.visuals):
                batch = replace(batch, features=self.features.rows(visuals))
            self.computed += batch.tokens
            out = None
            if self.graphs is not None:
                out = self._or_eagerly(partial(self.graphs.replay, batch, prune=self._prunes))
            if out is None:
                on_device = batch.moved(self.device.upload(batch.data))
                prefix.rows = on_device.prefix_rows(planned.next_prefix)
                out = self.model(on_device, self.attend, prefix, prune=self._prunes)
            # The rows begin as NaN, so that a copy that never happened leaves no result.  They are
            # copied while the lock is held, because a graph's next replay writes to ``out`` too.
            rows = torch.full(out.shape, torch.nan, dtype=out.dtype).copy_(out)
            if self.device.maps_weights:
                self.checkpoint.check_unchanged()
            elif rows.isnan().any():
                self.failures.check_works("the device dropped work")
            return rows

    def _or_eagerly(self, call: Callable[[], R]) -> R | None:
        """What ``call`` returns; if it finds that graphs fail, gives them up and returns None."""
        try:
            return call()
        except GraphError as error:
            traceback.clear_frames(error.__traceback__)
            self.graphs = None
            self.failures.check_works(f"a graph failed and left it unusable: {error}")
            warn(
                "a forward pass could not be captured or replayed, so this engine runs eagerly "
                f"from here on, with the same scores ({error}). Free memory or streams on "
                f"{self.device}, or lower token_budget, which is {self.token_budget}, for fewer "
                "and smaller graphs; graph=False does without.",
                RuntimeWarning,
            )
            return None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Stands around all that needs the model: holds the lock, names the device's errors, and
        frees what it can if memory was too little, or everything if the engine is lost."""
        self.failures.check_usable()
        with self.failures.lock:
            self.failures.check_usable()
            try:
                with self.failures.named():
                    yield
            except OutOfMemory:
                if self.features is not None:
                    self.features.clear()
                self.device.empty_cache()
                raise
            finally:
                if self.failures.lost is not None:
                    self._let_go()

    def _let_go(self) -> None:
        self.graphs = self.features = self._prefix = None
        vars(self).pop("model", None)

    @cached_property
    def _bad_weights(self) -> list[str]:
        return self.checkpoint.not_finite()

    def _check_finite(self, row: torch.Tensor, name: str) -> None:
        if row.isfinite().all():
            return
        cause = f"the arithmetic overflowed in {self.dtype}; try dtype='float32'"
        if self._bad_weights:
            cause = f"the checkpoint's weights are not finite: {', '.join(self._bad_weights[:4])}"
        raise NonFiniteScore(
            f"the model gave NaN or infinity for {name} ({self.checkpoint.path}): {cause}"
        )
