"""Batches: prompts packed end to end, without padding, under a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch

from pyrerank.inputs import Prompt

# of one pass; the limit of CANN's fused attention on packed sequences
MAX_SEQUENCES = 4096


@dataclass(frozen=True)
class Batch:
    """Packed sequences: T tokens in B sequences, one after the other.

    Attributes:
        data: int32 [2 T + B + 1], all that a device must know, in one tensor so that one copy
            brings it there: ids, positions, cu_seqlens.
        lengths: tokens of each sequence, B numbers on the host, adding up to T.
    """

    data: torch.Tensor
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """T."""
        return (len(self.data) - len(self.lengths) - 1) // 2

    @property
    def ids(self) -> torch.Tensor:
        """int32 [T], token ids."""
        return self.data[: self.tokens]

    @property
    def positions(self) -> torch.Tensor:
        """int32 [T], position of each token in its own sequence."""
        return self.data[self.tokens : 2 * self.tokens]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """int32 [B + 1], where each sequence starts; ends with T."""
        return self.data[2 * self.tokens :]

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, without waiting for the copy."""
        data = self.data if device.type == "cpu" else self.data.pin_memory()
        return Batch(data.to(device, non_blocking=True), self.lengths)


def plan(prompts: Iterable[Prompt], token_budget: int) -> Iterator[list[Prompt]]:
    """Cuts a stream of prompts into consecutive runs of at most ``token_budget`` tokens.

    A prompt longer than the budget gets a run of its own.
    """
    run: list[Prompt] = []
    total = 0
    for prompt in prompts:
        if run and (total + len(prompt.ids) > token_budget or len(run) == MAX_SEQUENCES):
            yield run
            run, total = [], 0
        run.append(prompt)
        total += len(prompt.ids)
    if run:
        yield run


def pack(prompts: Sequence[Prompt]) -> Batch:
    """Packs B >= 1 prompts, on the host."""
    return _pack([prompt.ids for prompt in prompts])


def pad(batch: Batch, tokens: int, sequences: int) -> Batch:
    """The batch with ``tokens`` rows and ``sequences`` + 1 sequences.

    Sequences that are missing are empty; the last one, which is no prompt, takes the spare rows.
    """
    spare = tokens - batch.tokens
    empty = sequences - len(batch.lengths)
    ids, positions, cu_seqlens = batch.ids, batch.positions, batch.cu_seqlens
    ends = [batch.tokens] * empty + [tokens]
    data = (
        *(ids, ids.new_zeros(spare)),
        *(positions, torch.arange(spare, dtype=torch.int32)),
        *(cu_seqlens, cu_seqlens.new_tensor(ends)),
    )
    return Batch(torch.cat(data), [*batch.lengths, *[0] * empty, spare])


def _pack(sequences: Sequence[Sequence[int]]) -> Batch:
    lengths = [len(ids) for ids in sequences]
    numbers = chain(*sequences, *map(range, lengths), accumulate(lengths, initial=0))
    return Batch(torch.tensor(list(numbers), dtype=torch.int32), lengths)
