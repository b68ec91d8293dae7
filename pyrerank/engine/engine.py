"""The engine: prompts in, results out.

`Engine` owns the flow batch -> model -> ops on a device, with graphs, failures and memory;
`pyrerank.reranker` and `pyrerank.embedder` put inputs before it and results after it.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, Generic, NoReturn, Self, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from pyrerank.checks import check_flag, check_int, warn
from pyrerank.devices.attention import FusedInfer, causal_mask, choose, gathers
from pyrerank.devices.select import (
    check_process,
    forked,
    is_out_of_memory,
    reserve,
    resolve,
    resolve_dtype,
    runtime,
    works,
)
from pyrerank.engine.ahead import ahead
from pyrerank.engine.batch import MAX_SEQUENCES, SHARED_PER_TOKEN, Batch, pack
from pyrerank.engine.features import Features
from pyrerank.engine.graphs import GraphError, Graphs
from pyrerank.engine.planner import NO_KEY, Pass, in_windows, key_of, plan
from pyrerank.engine.prefix import Prefix
from pyrerank.errors import (
    DeviceError,
    EngineClosed,
    NonFiniteScore,
    OutOfMemory,
    TruncationWarning,
)
from pyrerank.kernels.extension import npu_kernels
from pyrerank.model.decoder import Decoder, Head, Model
from pyrerank.model.vision import VisionTower
from pyrerank.prompts.encoder import Encoder
from pyrerank.prompts.items import Item, Prompt, unique
from pyrerank.weights.checkpoint import Checkpoint

TOKEN_BUDGET = 8192
# a larger pass is no faster there, and its largest tensors come from the system at each layer, page
# by page
TOKEN_BUDGET_CPU = 1024

Result = TypeVar("Result")


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
        if token_budget is not None:
            token_budget = check_int("token_budget", token_budget, "a positive int or None", 1)
        vision_cache = check_int("vision_cache", vision_cache, "a number of bytes or 0", 0)
        if graph is not None:
            graph = check_flag("graph", graph)
        self.device = resolve(device)
        if self.device.type == "npu":
            npu_kernels()  # that they do not load is said before the weights are read
        if graph and self.device.type == "cpu":
            raise ValueError("graph=True needs a device with graphs: npu or cuda")
        self.dtype = resolve_dtype(dtype, self.device)
        if token_budget is None:
            token_budget = TOKEN_BUDGET_CPU if self.device.type == "cpu" else TOKEN_BUDGET
        self.token_budget = token_budget
        check_process(claim=True)
        # Whoever has it may use the model, the graphs and the features.  One thread may take it
        # twice: a finaliser that the garbage collector runs in a pass may close the engine.
        self._lock = threading.RLock()
        self.checkpoint = checkpoint
        self._encoder = encoder
        self.computed = 0
        self.share_prefixes = self.prune_last_layer = True
        # The last stream's prefix for the next one, and the key of its tokens.
        self._prefix: tuple[Prefix, np.ndarray] | None = None
        self._lost: str | None = None
        self._loaded = False
        self.graphs: Graphs | None = None
        self.features: Features | None = None
        with self._failures():
            decoder = Decoder.load(checkpoint, self.device, self.dtype)
            if checkpoint.family == "qwen3-vl":
                tower = VisionTower.load(checkpoint, self.device, self.dtype)
                self.features = Features(tower, token_budget, vision_cache)
            self._model = Model(decoder, head(self.device))
            self._every_token = self._model.head.every_token
            self._attend = choose(self.device, self.dtype, captured=False)
            if graph or (graph is None and self.device.type == "npu"):
                self._start_graphs()
            elif self.device.type != "cpu":
                reserve(self.device, decoder.activation_bytes(token_budget, self._attend))
        self._loaded = True

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
        models.  A prompt longer than ``token_budget``, of at most ``max_tokens``, takes more; so
        do, without graphs, keys and values that a pass leaves for the next.
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
        if forked():
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
            f"{kind}s can be neither pickled nor copied, because each holds a model on a device: "
            "threads of one process can share one; processes, to be started with spawn, each make "
            "their own from the same arguments"
        )

    @property
    def max_tokens(self) -> int:
        """Most tokens of a whole prompt; can be set between calls, to None for the default."""
        return self._encoder.max_tokens

    @max_tokens.setter
    def max_tokens(self, max_tokens: int | None) -> None:
        self._encoder.limit(max_tokens, self.checkpoint.max_positions)

    def prompts(self, items: Sequence[Item], max_tokens: int | None = None) -> list[Prompt]:
        """Prompts of validated items, in any thread; see `Encoder.encode`."""
        return self._encoder.encode(items, max_tokens)

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text that has ``count`` tokens, in any thread."""
        return self._encoder.first_tokens(text, count)

    def result(self, prompt: Prompt, row: torch.Tensor, name: str) -> Result:
        """What a row of `stream` says of its prompt, which messages call ``name``.

        Raises:
            NonFiniteScore: nothing, because it is not finite, or of no direction.
        """
        raise NotImplementedError

    @cached_property
    def _bad_weights(self) -> list[str]:
        return self.checkpoint.not_finite()

    def _check_finite(self, row: torch.Tensor, name: str) -> None:
        if row.isfinite().all():
            return
        bad = self._bad_weights
        cause = (
            f"the checkpoint's weights are not finite: {', '.join(bad[:4])}"
            if bad
            else f"the arithmetic overflowed in {self.dtype}; try dtype='float32'"
        )
        raise NonFiniteScore(
            f"the model gave NaN or infinity for {name} ({self.checkpoint.path}): {cause}"
        )

    def _warn_of_cuts(self, results: Sequence[Any]) -> None:
        """Warns once of all results whose prompts were cut."""
        cut = [i for i, result in enumerate(results) if result.truncated]
        if cut:
            most = self.checkpoint.max_positions
            more = f"max_tokens= allows up to {most}" if self.max_tokens < most else "shorten them"
            warn(
                f"{len(cut)} of {len(results)} prompts were longer than {self.max_tokens} tokens "
                f"and lost the ends of their texts, the first one that of "
                f"{self._named.format(cut[0])}: {more}; details() tells what each lost",
                TruncationWarning,
            )

    def run(
        self,
        items: Sequence[Item],
        *,
        progress: bool | None = None,
        result: Callable[[Prompt, torch.Tensor, str], Result] | None = None,
    ) -> list[Result]:
        """Results of validated items, in order, however many there are; equal ones are run once.

        ``result`` makes them of rows; None: as `result` does.
        """
        if progress is not None:
            check_flag("progress", progress)
        # by the first of equal ones
        names = {item: self._named.format(i) for i, item in reversed(list(enumerate(items)))}
        results: dict[Item, Result] = {}
        for item, outcome in self.outcomes(items, names, progress=progress, result=result):
            if isinstance(outcome, NonFiniteScore):
                raise outcome
            results[item] = outcome
        return [results[item] for item in items]

    def outcomes(
        self,
        items: Sequence[Item],
        names: Mapping[Item, str] | None = None,
        *,
        progress: bool | None = None,
        result: Callable[[Prompt, torch.Tensor, str], Result] | None = None,
    ) -> Iterator[tuple[Item, Result | NonFiniteScore]]:
        """Each of the different ones among validated items, in no order, with its result, or with
        the error where its row says nothing.

        ``names`` are for errors, which call other items "it"; ``result`` as for `run`.
        """
        make, named = result or self.result, names or {}
        each = unique(items)
        passes = self.passes(self._encoder.stream(each), len(each), self._unit, progress)
        for item, (prompt, row) in zip(each, passes, strict=True):
            try:
                outcome: Result | NonFiniteScore = make(prompt, row, named.get(item, "it"))
            except NonFiniteScore as error:
                outcome = error
            yield item, outcome

    def stream(
        self, windows: Iterable[Sequence[Prompt]], *, keep: bool = False
    ) -> Generator[tuple[Pass, torch.Tensor], None, None]:
        """Runs prompts, however many there are; yields each pass with its rows of results, on the
        host.

        Windows are taken as passes need them, one pass ahead, in a thread of its own.  An empty
        window ends a pass; see `plan`.  With ``keep``, the next stream may share the beginning of
        the last prompt.
        """
        with self._use():
            prefix, key = self._prefix or (self._model.no_prefix(), NO_KEY)
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
            with suppress(EngineClosed), self._use():  # one closed since keeps nothing
                self._prefix = prefix, key

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
            for planned, rows in self.stream(in_windows(prompts)):
                pairs = zip(planned.prompts, rows, strict=True)
                waiting |= zip(planned.members, pairs, strict=True)
                while done in waiting:
                    yield waiting.pop(done)
                    done += 1
                bar.update(len(planned.members))

    @property
    def _prunes(self) -> bool:
        return self.prune_last_layer and not self._every_token

    def _plan(
        self,
        windows: Iterable[Sequence[Prompt]],
        prefix: np.ndarray = NO_KEY,
    ) -> Iterator[Pass]:
        graphs = self.graphs
        bounded = graphs is not None or gathers(self._attend)
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
        with self._use():
            if self.device.type == "cpu":  # where weights may be views of their files
                self.checkpoint.check_unchanged()
            with self._failures():
                if self.features is not None and (visuals := planned.visuals):
                    batch = replace(batch, features=self.features.rows(visuals))
                self.computed += batch.tokens
                out = self._replay(batch)
                if out is None:
                    on_device = batch.to(self.device)
                    prefix.rows = on_device.prefix_rows(planned.next_prefix)
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
        """The results of `Model` from a graph; None where there is none."""
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
        warn(
            "a forward pass could not be captured or replayed, so this engine runs eagerly from "
            f"here on, with the same scores ({error}). Free memory or streams on {self.device}, or "
            f"lower token_budget, which is {self.token_budget}, for fewer and smaller graphs; "
            "graph=False does without.",
            RuntimeWarning,
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
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(error) from error
            if self.device.type == "cpu" or isinstance(error, DeviceError):
                raise
            traceback.clear_frames(error.__traceback__)
            if not works(self.device):
                self._lose(str(error))
            raise DeviceError(f"{self.device} failed: {error}; it can be used again") from error

    def _out_of_memory(self, error: Exception) -> OutOfMemory:
        """Frees what can be freed, and says what to do."""
        traceback.clear_frames(error.__traceback__)  # they hold tensors
        if self.features is not None:
            self.features.clear()
        if self.device.type != "cpu":
            runtime(self.device).empty_cache()
        after = "the engine can be used again" if self._loaded else "no engine was made"
        return OutOfMemory(
            f"{self.device} has too little free memory: {error}. Lower token_budget, which is "
            f"{self.token_budget}, or free memory; {after}"
        )

    def _lose(self, reason: str) -> NoReturn:
        self._lost = (
            f"{self.device} or its runtime in this process is lost ({reason}); no engine in this "
            "process can use it any more: start a new process"
        )
        self._let_go()
        raise EngineClosed(self._lost)

    def _let_go(self) -> None:
        self.graphs = self.features = self._prefix = None
        vars(self).pop("_model", None)
