"""Batches: prompts packed end to end, without padding, under a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
import torch.nn.functional as F

from pyrerank.inputs import Prompt, Span

# of one pass; the limit of CANN's fused attention on packed sequences
MAX_SEQUENCES = 4096


@dataclass(frozen=True)
class Batch:
    """Packed sequences: T tokens in B sequences, one after the other, V of them vision tokens.

    Attributes:
        data: int32 [4 T + B + 1 + V], all numbers that a device must know, in one tensor so that
            one copy brings them there: ids, positions, cu_seqlens, index.
        lengths: tokens of each sequence, B numbers on the host, adding up to T.
        features: what stands in place of vision tokens, [1 + levels, V, hidden_size] on the device
            and in the dtype of the decoder; None where V is 0.
    """

    data: torch.Tensor
    lengths: list[int]
    features: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @property
    def ids(self) -> torch.Tensor:
        """int32 [T], token ids."""
        return self.data[: self.tokens]

    @property
    def positions(self) -> torch.Tensor:
        """int32 [3, T], positions of each token in its own sequence; see `positions`."""
        return self.data[self.tokens : 4 * self.tokens].view(3, -1)

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """int32 [B + 1], where each sequence starts; ends with T."""
        start = 4 * self.tokens
        return self.data[start : start + len(self.lengths) + 1]

    @property
    def index(self) -> torch.Tensor:
        """int32 [V], where the vision tokens are among all tokens."""
        return self.data[4 * self.tokens + len(self.lengths) + 1 :]

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, without waiting for the copy."""
        data = self.data if device.type == "cpu" else self.data.pin_memory()
        return Batch(data.to(device, non_blocking=True), self.lengths, self.features)


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


def pack(prompts: Sequence[Prompt], features: torch.Tensor | None = None) -> Batch:
    """Packs B >= 1 prompts, on the host.

    ``features``: of the prompts' pictures, in their order; on the device already.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    starts = list(accumulate(lengths, initial=0))
    numbers = chain(*(prompt.ids for prompt in prompts))
    index = [
        torch.arange(offset + start, offset + start + height * width, dtype=torch.int32)
        for prompt, offset in zip(prompts, starts, strict=False)
        for start, height, width in prompt.spans
    ]
    data = (
        torch.tensor(list(numbers), dtype=torch.int32),
        torch.cat([positions(len(p.ids), p.spans) for p in prompts], dim=1).flatten(),
        torch.tensor(starts, dtype=torch.int32),
        *index,
    )
    return Batch(torch.cat(data), lengths, features)


def pad(batch: Batch, tokens: int, sequences: int) -> Batch:
    """The batch with ``tokens`` rows and ``sequences`` + 1 sequences, for a pass of fixed size.

    Sequences that are missing are empty; the last one, which is no prompt, takes the spare rows.
    Of a batch with pictures, the index grows to ``tokens`` entries, the first one again and again,
    for features that do the same: what is written twice is the same.
    """
    spare = tokens - batch.tokens
    index = batch.index
    if len(index):
        index = torch.cat((index, index[:1].expand(tokens - len(index))))
    empty = sequences - len(batch.lengths)
    ends = [batch.tokens] * empty + [tokens]
    data = (
        F.pad(batch.ids, (0, spare)),
        F.pad(batch.positions, (0, spare)).flatten(),
        *(batch.cu_seqlens, batch.cu_seqlens.new_tensor(ends)),
        index,
    )
    return Batch(torch.cat(data), [*batch.lengths, *[0] * empty, spare])


def positions(length: int, spans: Sequence[Span]) -> torch.Tensor:
    """Three-dimensional positions of one prompt's tokens, as Qwen3-VL counts them.

    Args:
        length: T, tokens of the prompt.
        spans: each run of vision tokens, in order: an image, or one pair of frames of a video,
            whose timestamp parts it from the next.

    Returns:
        int32 [3, T]: time, height and width.  Ordinary tokens count on by one in all three.  In a
        run, time stands still, height and width count from it; the token after a run comes
        max(height, width) after its first.
    """
    out = torch.empty(3, length, dtype=torch.int32)
    token = position = 0
    for start, height, width in [*spans, (length, 0, 0)]:
        assert token <= start and start + height * width <= length, (length, spans)
        text = start - token
        out[:, token:start] = torch.arange(position, position + text)
        token, position = start + height * width, position + text
        run = out[1:, start:token].unflatten(1, (height, width))
        run[0] = torch.arange(position, position + height)[:, None]
        run[1] = torch.arange(position, position + width)
        out[0, start:token] = position
        position += max(height, width)
    return out
