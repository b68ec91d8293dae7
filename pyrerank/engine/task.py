"""What a core asks of its engine: the head, and what the head's rows mean."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from pyrerank.model.heads import Head
from pyrerank.prompts.items import Prompt


class Task(Protocol):
    """What an engine is for: it makes the head, and makes results of the head's rows.

    Attributes:
        unit: what the progress bar counts, such as "pair".
        named: what messages call the item of an index, such as "pair {}".
    """

    unit: ClassVar[str]
    named: ClassVar[str]

    def head(self, device: torch.device) -> Head:
        """Makes the head, with its weights on ``device``."""

    def result(self, prompt: Prompt, row: torch.Tensor, name: str) -> Any:
        """Makes the result of a prompt.

        Args:
            prompt: what was run.
            row: what the head gave for it, [N] on the host; all numbers are finite.
            name: what messages call the item.

        Raises:
            NonFiniteScore: the row gives no result.
        """
