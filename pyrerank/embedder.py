"""Embedding computes the vectors of inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from pyrerank.checks import check_flag, check_int, check_list
from pyrerank.engine.core import Core
from pyrerank.engine.engine import Engine
from pyrerank.engine.loaded import Loaded
from pyrerank.errors import CheckpointError, NonFiniteScore
from pyrerank.media.reader import Reader
from pyrerank.media.sources import Media
from pyrerank.model.heads import PoolHead
from pyrerank.prompts.encoder import InputEncoder
from pyrerank.prompts.items import Prompt
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Embedding:
    """The result of one input.

    Attributes:
        vector: float32 [dim].
        tokens: length of the whole prompt in tokens, template included.
        truncated: text tokens cut to fit the model's limit.
    """

    vector: np.ndarray
    tokens: int
    truncated: int


@dataclass(frozen=True)
class EmbeddingTask:
    """The `Task` of an embedder, which makes vectors of inputs.

    The head gives ``size`` numbers; the last three fields are for calls that do not say how many a
    vector has, whether it has length 1, and whether it is scaled before it is cut.
    """

    checkpoint: Checkpoint
    size: int
    dim: int
    normalize: bool
    cuts_last: bool
    unit: ClassVar[str] = "input"
    named: ClassVar[str] = "inputs[{}]"

    def head(self, device: torch.device) -> PoolHead:
        return PoolHead.load(self.checkpoint, device)

    def result(
        self,
        prompt: Prompt,
        row: torch.Tensor,
        name: str,
        *,
        dim: int | None = None,
        normalize: bool | None = None,
    ) -> Embedding:
        """Makes the vector of an input; raises `NonFiniteScore` if its length is 0."""
        whole = row.double().numpy()
        vector = whole[: self.dim if dim is None else dim]
        length = np.linalg.norm(vector)
        if not length:
            raise NonFiniteScore(
                f"the model gave a vector of length 0 for {name} ({self.checkpoint.path}): its "
                f"first {len(vector)} numbers are 0, which is no direction; take a larger dim, or "
                "another checkpoint"
            )
        if self.cuts_last and dim is normalize is None:
            length = np.linalg.norm(whole)
        if self.normalize if normalize is None else normalize:
            vector = vector / length
        return Embedding(vector.astype(np.float32), len(prompt.ids), prompt.truncated)


class Embedder(Engine):
    """An embedding model that is loaded and makes vectors of inputs.

    Args:
        model: folder or hub name of a Qwen3-Embedding or Qwen3-VL-Embedding; see
            `open_checkpoint`.
        dim: how many numbers a vector has, from 1 to as many as the model gives; None keeps all, or
            as many as the folder's ``truncate_dim`` says.  The models are trained so that the first
            numbers alone are an embedding too (Matryoshka).
        normalize: whether vectors have length 1, after truncation to ``dim``; None does as the
            folder says, which for the published models is True.

    All else, and errors, are as for `Reranker`.
    """

    core: Core[InputEncoder, EmbeddingTask]

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint,
        *,
        dim: int | None = None,
        normalize: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_tokens: int | None = None,
        token_budget: int | None = None,
        graph: bool | None = None,
        vision_cache: int = 1 << 30,
    ) -> None:
        checkpoint = open_checkpoint(model)
        if checkpoint.task == "score":
            what = "a sequence classifier" if checkpoint.classifier else "a CrossEncoder"
            if checkpoint.settings.get("pyrerank_task"):
                what = "a reranker by training"
            raise CheckpointError(
                f"{checkpoint.path} is {what}, which scores pairs: use Reranker, or pyrerank score"
            )
        modules = checkpoint.modules
        sizes = [step.outputs for step in modules.steps if step is not None]
        size = sizes[-1] if sizes else checkpoint.config.hidden_size
        # a folder that cuts vectors does so after all steps, and leaves them as they are then
        cuts_last = modules.normalizes and bool(modules.dim) and dim is normalize is None
        dim = _checked_dim(dim, size) or min(modules.dim or size, size)
        normalize = modules.normalizes if normalize is None else check_flag("normalize", normalize)
        encoder = InputEncoder.of(checkpoint, max_tokens)
        task = EmbeddingTask(checkpoint, size, dim, normalize, cuts_last)
        super().__init__(
            Core(checkpoint, encoder, task, device, dtype, token_budget, graph, vision_cache)
        )

    @property
    def dim(self) -> int:
        """How many numbers a vector has, unless a call says."""
        return self.core.task.dim

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1, unless a call says."""
        return self.core.task.normalize

    def embed(
        self,
        inputs: Sequence[Any],
        *,
        instruction: str | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        normalize: bool | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Returns a vector for each input, in the order given.

        Args:
            inputs: a list of at least one content, as in `Reranker.score`.
            instruction: what the vectors are for.  With Qwen3-Embedding give one for queries, and
                none for documents; with Qwen3-VL-Embedding None takes the default it was published
                with.  If the folder has a default prompt, None takes that.
            prompt_name: one of the folder's prompts, such as "query", in place of an instruction.
            dim, normalize: as for `Embedder`, in this call; None takes the engine's.

        Returns float32 [inputs, dim].  All else is as in `Reranker.score`; a vector of length 0
        raises NonFiniteScore, too.
        """
        results = self.details(
            inputs,
            instruction=instruction,
            prompt_name=prompt_name,
            dim=dim,
            normalize=normalize,
            media=media,
            progress=progress,
        )
        self._warn_of_cuts(results)
        return np.stack([result.vector for result in results])

    def details(
        self,
        inputs: Sequence[Any],
        *,
        instruction: str | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        normalize: bool | None = None,
        media: Media | None = None,
        progress: bool | None = None,
    ) -> list[Embedding]:
        """As `embed`, but returns token counts as well, and warns of no cuts."""
        encoder, task = self.core.encoder, self.core.task
        if normalize is not None:
            check_flag("normalize", normalize)
        dim = _checked_dim(dim, task.size)
        self.core.failures.check_usable()
        reader = Reader(media)
        items = [
            encoder.input(f"inputs[{i}]", value, instruction, reader, prompt_name)
            for i, value in enumerate(check_list("inputs", inputs))
        ]
        result = partial(task.result, dim=dim, normalize=normalize)
        return self.core.results(items, progress=progress, result=result)


def embed(
    inputs: Sequence[Any],
    *,
    model: str | os.PathLike[str],
    instruction: str | None = None,
    prompt_name: str | None = None,
    dim: int | None = None,
    normalize: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_tokens: int | None = None,
    media: Media | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Embeds inputs with the checkpoint ``model``; see `Embedder` and `Embedder.embed`.

    The checkpoint stays loaded as with `score`, beside the one that scores.
    """
    with LOADED.engine(model, device, dtype, max_tokens) as engine:
        return engine.embed(
            inputs,
            instruction=instruction,
            prompt_name=prompt_name,
            dim=dim,
            normalize=normalize,
            media=media,
            progress=progress,
        )


def numbers(vector: np.ndarray) -> list[float]:
    """The numbers of a float32 vector, in the fewest digits that tell each from its neighbours."""
    return [float(digits) for digits in vector.astype(str)]


def _checked_dim(dim: int | None, size: int) -> int | None:
    if dim is None:
        return None
    return check_int("dim", dim, f"an int from 1 to {size}, or None", 1, size)


LOADED = Loaded(Embedder)
