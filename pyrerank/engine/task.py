"""A task is what an engine is for."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from pyrerank.model.heads import Head
from pyrerank.prompts.items import Prompt


class Task(Protocol):
    """Makes the head, and results of the head's rows.

    Attributes:
        unit: what the progress bar counts, such as "pair".
        named: what messages call the item of an index, such as "pair {}".
    """

    unit: ClassVar[str]
    named: ClassVar[str]

    def head(self, device: torch.device) -> Head:
        """Makes the head, with its weights on ``device``."""

    def result(self, prompt: Prompt, row: torch.Tensor, name: str) -> Any:
        """Makes the result of a prompt of ``row``, what the head gave for it: [N] finite numbers on
        the host.  Raises `NonFiniteScore`, about ``name``, if the row gives no result."""
