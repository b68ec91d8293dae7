"""A batch has the tensors of a pass, in which prompts lie end to end, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

# CANN's fused attention takes at most so many packed sequences in a call.
MAX_SEQUENCES = 4096
# Where the keys of all sequences are gathered, a pass has at most so many keys of other prompts for
# each token of the budget: they take little more memory than the MLP does, and are enough for
# documents that are a third as long as their prefix.
SHARED_PER_TOKEN = 3


@dataclass
class Batch:
    """Packed sequences: T tokens in B sequences, one after the other, V of them vision tokens.

    A sequence is a prompt without the tokens that it shares with the prompt before it.  It attends
    to those tokens and to its own; the keys of all sequences are K.

    Attributes:
        data: int32, all numbers that a device must know, so that one copy brings them there; the
            attributes from ``ids`` to ``kv_rows`` are views of it.
        lengths: the tokens of each sequence; B numbers on the host, which add up to T.
        kv_lengths: the keys of each sequence; B numbers on the host, which add up to K.  The last
            of a sequence's keys are those of its own tokens.
        vision_tokens: V.
        features: what the decoder reads in place of vision tokens' embeddings,
            [1 + levels, V, hidden_size], on the device and in the dtype of the decoder.  None where
            V is 0, and before the features are made.
        ids: [T], token ids.
        positions: [3, T], the positions of each token in its own prompt; see `positions`.
        cu_seqlens, cu_keys: [B + 1], where the tokens and where the keys of each sequence start;
            they end with T and with K.
        index: [V], where the vision tokens are among all tokens.
        kv_rows: [K], the rows of the keys and values that each sequence attends to, one sequence
            after the other.  Rows count the tokens of the `Prefix` first, then the T tokens.  None
            where the sequences take one row after the other, from 0 on: then no rows are gathered.
    """

    data: Tensor
    lengths: list[int]
    kv_lengths: list[int]
    vision_tokens: int = 0
    features: Tensor | None = None
    ids: Tensor = field(init=False)
    positions: Tensor = field(init=False)
    cu_seqlens: Tensor = field(init=False)
    index: Tensor = field(init=False)
    cu_keys: Tensor = field(init=False)
    kv_rows: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        tokens, bounds = sum(self.lengths), len(self.lengths) + 1
        sizes = [tokens, 3 * tokens, bounds, self.vision_tokens, bounds]
        gathered = len(self.data) - sum(sizes)
        assert gathered in (0, sum(self.kv_lengths)), (len(self.data), sizes)
        views = self.data.split([*sizes, gathered])
        self.ids, positions, self.cu_seqlens, self.index, self.cu_keys, kv_rows = views
        self.positions = positions.view(3, tokens)
        self.kv_rows = kv_rows if gathered else None

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def shared(self) -> int:
        """How many of the K keys are not of the sequences' own tokens."""
        return sum(self.kv_lengths) - self.tokens

    def prefix_rows(self, count: int) -> Tensor:
        """int32 [count], the rows that the next pass takes as its prefix: those of the last
        prompt's first ``count`` tokens."""
        if self.kv_rows is not None:
            return self.kv_rows[-self.kv_lengths[-1] :][:count]
        start = self.tokens - self.lengths[-1]
        return torch.arange(start, start + count, dtype=torch.int32, device=self.data.device)

    def last_tokens(self) -> Batch:
        """A batch of the last token of each sequence, with the same keys, for attention alone: ids
        and positions are 0."""
        count = len(self.lengths)
        ends = torch.arange(count + 1, dtype=torch.int32, device=self.data.device)
        rows = () if self.kv_rows is None else (self.kv_rows,)
        data = torch.cat((ends.new_zeros(4 * count), ends, self.cu_keys, *rows))
        return Batch(data, [1] * count, self.kv_lengths)

    def moved(self, data: Tensor) -> Batch:
        """The batch with a copy of its numbers, such as on a device."""
        return replace(self, data=data)


def pack(
    ids: Sequence[list[int]],
    spans: Sequence[Sequence[tuple[int, int, int]]],
    shared: Sequence[int],
) -> Batch:
    """Packs B >= 1 prompts, on the host; the features of their pictures are added later.

    Each prompt has all of its token ids, its spans as `positions` takes them, and how many of its
    first tokens are shared with the prompt before it, or for the first prompt with the pass before.
    """
    tokens: list[int] = []
    lengths, places, index = [], [], []
    for prompt, each, skip in zip(ids, spans, shared, strict=True):
        for first, height, width in each:
            if first >= skip:
                start = len(tokens) + first - skip
                index.append(torch.arange(start, start + height * width, dtype=torch.int32))
        lengths.append(len(prompt) - skip)
        tokens += prompt[skip:]
        places.append(positions(len(prompt), each)[:, skip:])
    kv_lengths = [len(prompt) for prompt in ids]
    data = (
        torch.tensor(tokens, dtype=torch.int32),
        torch.cat(places, dim=1).flatten(),
        _bounds(lengths),
        *index,
        _bounds(kv_lengths),
        *(_kv_rows(lengths, shared) if any(shared) else ()),
    )
    return Batch(torch.cat(data), lengths, kv_lengths, sum(map(len, index)))


def _bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _kv_rows(lengths: Sequence[int], shared: Sequence[int]) -> list[Tensor]:
    """The rows of each sequence's keys: the first ones of the sequence before, then its own."""
    end = shared[0]  # the rows of the prefix come before all others
    rows = torch.arange(end, dtype=torch.int32)
    found = []
    for length, skip in zip(lengths, shared, strict=True):
        own = torch.arange(end, end + length, dtype=torch.int32)
        rows = torch.cat((rows[:skip], own))
        found.append(rows)
        end += length
    return found


def pad(batch: Batch, tokens: int, sequences: int, keys: int) -> Batch:
    """The batch with ``tokens`` rows, ``sequences`` + 1 sequences, ``keys`` keys and ``kv_rows``.

    The last sequence, which is no prompt, takes the spare rows and at least as many keys, all that
    of row 0.  Each sequence that is missing gets no row and one key, because in `Batch.last_tokens`
    it has a row, and a row must see a key.  If the batch has pictures, the index grows to
    ``tokens`` entries by repeating its first one.  Features must be repeated in the same way, so
    that the same is written to that row twice.
    """
    spare = tokens - batch.tokens
    missing = sequences - len(batch.lengths)
    lengths = [*batch.lengths, *[0] * missing, spare]
    kv_lengths = [*batch.kv_lengths, *[1] * missing]
    kv_lengths.append(keys - sum(kv_lengths))
    assert kv_lengths[-1] >= max(spare, 1), (batch.tokens, batch.shared, tokens, keys)
    index, rows = batch.index, batch.kv_rows
    if len(index):
        index = torch.cat((index, index[:1].expand(tokens - len(index))))
    if rows is None:
        rows = torch.arange(batch.tokens, dtype=torch.int32)
    data = (
        F.pad(batch.ids, (0, spare)),
        F.pad(batch.positions, (0, spare)).flatten(),
        _bounds(lengths),
        index,
        _bounds(kv_lengths),
        F.pad(rows, (0, keys - len(rows))),
    )
    return Batch(torch.cat(data), lengths, kv_lengths, len(index))


def positions(length: int, spans: Sequence[tuple[int, int, int]]) -> Tensor:
    """Three-dimensional positions of one prompt's tokens, as Qwen3-VL counts them.

    ``length`` is T.  A span of vision tokens is its first token, height and width.  An image is one
    span; a video is one for each pair of frames, and a timestamp stands before each.

    Returns int32 [3, T]: time, height and width.  Ordinary tokens count on by one in all three.
    Within a span, time stands still, and height and width count from it.  The token after a span
    has the position of the span's first token plus max(height, width).
    """
    out = torch.empty(3, length, dtype=torch.int32)
    token = position = 0
    for start, height, width in [*spans, (length, 0, 0)]:
        assert token <= start and start + height * width <= length, (length, spans)
        text = start - token
        out[:, token:start] = torch.arange(position, position + text)
        token, position = start + height * width, position + text
        grid = out[1:, start:token].unflatten(1, (height, width))
        grid[0] = torch.arange(position, position + height)[:, None]
        grid[1] = torch.arange(position, position + width)
        out[0, start:token] = position
        position += max(height, width)
    return out
