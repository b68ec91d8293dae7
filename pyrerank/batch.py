"""Batches: prompts packed end to end, without padding, under a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pyrerank.inputs import Prompt


@dataclass(frozen=True)
class Batch:
    """Packed prompts.

    Attributes:
        ids: int64 [T], token ids, one prompt after the other.
        positions: int64 [T], position of each token in its own prompt.
        cu_seqlens: int32 [B + 1], where each prompt starts; ends with T.
        lengths: the same as B plain numbers, for code that must not wait for the device.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: list[int]


def plan(prompts: Iterable[Prompt], token_budget: int) -> Iterator[list[Prompt]]:
    """Cuts a stream of prompts into consecutive runs of at most ``token_budget`` tokens.

    A prompt longer than the budget gets a run of its own.
    """
    run: list[Prompt] = []
    total = 0
    for prompt in prompts:
        if run and total + len(prompt.ids) > token_budget:
            yield run
            run, total = [], 0
        run.append(prompt)
        total += len(prompt.ids)
    if run:
        yield run


def pack(prompts: Sequence[Prompt], device: torch.device) -> Batch:
    """Packs B >= 1 prompts onto ``device``."""
    lengths = [len(prompt.ids) for prompt in prompts]
    seqlens = torch.tensor([0, *lengths])
    return Batch(
        ids=torch.tensor([id for prompt in prompts for id in prompt.ids]).to(device),
        positions=torch.cat([torch.arange(length) for length in lengths]).to(device),
        cu_seqlens=seqlens.cumsum(0).to(device, torch.int32),
        lengths=lengths,
    )
