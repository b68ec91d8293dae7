"""An engine is a loaded model as users see it: what `Reranker` and `Embedder` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Self

import torch

from pyrerank.checks import warn
from pyrerank.devices.select import forked
from pyrerank.engine.core import Core
from pyrerank.errors import TruncationWarning


class Engine:
    """A loaded model.  Threads may share it, because their passes take turns."""

    def __init__(self, core: Core[Any, Any]) -> None:
        self.core = core

    @property
    def device(self) -> torch.device:
        """The device that the model is on, with its index."""
        return self.core.device.torch_device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.core.dtype

    @property
    def token_budget(self) -> int:
        """Most tokens of one pass; a longer prompt has a pass of its own."""
        return self.core.token_budget

    @property
    def max_tokens(self) -> int:
        """Most tokens of a whole prompt.  Can be set between calls; None sets the default.  Less
        than a prompt needs, or more than the checkpoint allows, raises ValueError."""
        return self.core.encoder.max_tokens

    @max_tokens.setter
    def max_tokens(self, max_tokens: int | None) -> None:
        self.core.encoder.limit(max_tokens, self.core.checkpoint.max_positions)

    def warmup(self) -> None:
        """Captures the graph of every bucket now, and not at its first use; without graphs, does
        nothing.  Raises `DeviceError`, as a call would."""
        self.core.warmup()

    def device_memory(self) -> int:
        """Returns how many bytes of device memory the engine takes.

        They hold the weights and one pass of ``token_budget``; for a model that reads pictures also
        the tower, its pass, and all of ``vision_cache``.  Allocators add less than a twentieth for
        the published models.  A longer prompt takes more, and without graphs so do the keys and
        values that a pass leaves for the next.  Raises `EngineClosed`, as a call would.
        """
        return self.core.device_memory()

    def close(self) -> None:
        """Lets go of weights, graphs and features; the engine cannot be used afterwards.

        Waits for a pass in another thread, whose call then raises `EngineClosed` if it needs more.
        Closing again, or in a forked child, does nothing.  ``with`` closes an engine at the end.
        """
        if not forked():
            self.core.close(f"this {type(self).__name__} was closed; make a new one")

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

    def _warn_of_cuts(self, results: Sequence[Any]) -> None:
        cut = [i for i, result in enumerate(results) if result.truncated]
        if cut:
            most = self.core.checkpoint.max_positions
            more = f"max_tokens= allows up to {most}" if self.max_tokens < most else "shorten them"
            warn(
                f"{len(cut)} of {len(results)} prompts were longer than {self.max_tokens} tokens "
                f"and lost the ends of their texts, the first one that of "
                f"{self.core.task.named.format(cut[0])}: {more}; details() tells what each lost",
                TruncationWarning,
            )
