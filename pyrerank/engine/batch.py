"""Batches: prompts packed end to end, without padding, under a token budget.

What prompts have in common at their start is computed once: prompts are sorted, so that each goes
on where it parts from the one before, and attends to keys and values that are there already.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate, count, islice

import numpy as np
import torch
import torch.nn.functional as F

from pyrerank.prompts.items import Prompt, Span, Visual

# of one pass; the limit of CANN's fused attention on packed sequences
MAX_SEQUENCES = 4096
# Keys of other prompts, for each token of the budget, where a pass gathers the keys of all its
# sequences before it attends: they take little more memory than the MLP does.  Enough for documents
# of a third of their prefix; shorter ones fill a pass less.
SHARED_PER_TOKEN = 3
# tokens whose keys and values a stream may leave for the next: template, instruction, short query
HEAD = 256
NOTHING = np.empty(0, ">u8")
# prompts that are sorted together: bounds the token ids that are held
WINDOW = 1024


@dataclass(frozen=True)
class Batch:
    """Packed sequences: T tokens in B sequences, one after the other, V of them vision tokens.

    A sequence is a prompt, or what of a prompt is computed; it attends to K keys and values in all.

    Attributes:
        data: int32 [4 T + B + 1 + V + B + 1 + K], all numbers that a device must know, in one
            tensor so that one copy brings them there: ids, positions, cu_seqlens, index, cu_keys,
            kv_rows.
        lengths: tokens of each sequence, B numbers on the host, adding up to T.
        kv_lengths: keys of each sequence, B numbers on the host; the last of them are its own.
            None: its own are all; then ``data`` ends with index.
        features: what stands in place of vision tokens, [1 + levels, V, hidden_size] on the device
            and in the dtype of the decoder; None where V is 0, and before they are made.
    """

    data: torch.Tensor
    lengths: list[int]
    kv_lengths: list[int] | None = None
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
        """int32 [3, T], positions of each token in its own prompt; see `positions`."""
        return self.data[self.tokens : 4 * self.tokens].view(3, -1)

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """int32 [B + 1], where each sequence starts; ends with T."""
        start = 4 * self.tokens
        return self.data[start : start + len(self.lengths) + 1]

    @property
    def index(self) -> torch.Tensor:
        """int32 [V], where the vision tokens are among all tokens."""
        end = len(self.data)
        if self.kv_lengths is not None:
            end -= len(self.kv_lengths) + 1 + sum(self.kv_lengths)
        return self.data[4 * self.tokens + len(self.lengths) + 1 : end]

    @property
    def cu_keys(self) -> torch.Tensor:
        """int32 [B + 1], where in kv_rows each sequence starts; ends with K.  Only with
        ``kv_lengths``."""
        end = len(self.data) - sum(self.kv_lengths or ())
        return self.data[end - len(self.lengths) - 1 : end]

    @property
    def kv_rows(self) -> torch.Tensor:
        """int32 [K], which keys and values each sequence attends to, one sequence after the other:
        first those of the `Prefix`, then those of the T tokens; empty without ``kv_lengths``."""
        return self.data[len(self.data) - sum(self.kv_lengths or ()) :]

    @property
    def shared(self) -> int:
        """How many of the K keys are not the sequences' own."""
        return sum(self.kv_lengths) - self.tokens if self.kv_lengths is not None else 0

    def kept(self, count: int) -> torch.Tensor | None:
        """int32 [count], keys and values of the last prompt's first tokens; None for 0."""
        if not count:
            return None
        if self.kv_lengths is not None:
            return self.kv_rows[-self.kv_lengths[-1] :][:count]
        start = self.tokens - self.lengths[-1]
        return torch.arange(start, start + count, dtype=torch.int32, device=self.data.device)

    def last_tokens(self) -> Batch:
        """The last token of each sequence, for attention alone: it sees what it saw."""
        count = len(self.lengths)
        ends = torch.arange(count + 1, dtype=torch.int32, device=self.data.device)
        data = torch.cat((ends.new_zeros(4 * count), ends, *self._paths()))
        return Batch(data, [1] * count, self.kv_lengths or self.lengths)

    def _paths(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cu_keys and kv_rows, also without ``kv_lengths``."""
        if self.kv_lengths is not None:
            return self.cu_keys, self.kv_rows
        rows = torch.arange(self.tokens, dtype=torch.int32, device=self.data.device)
        return self.cu_seqlens, rows

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, without waiting for the copy."""
        data = self.data if device.type == "cpu" else self.data.pin_memory()
        return replace(self, data=data.to(device, non_blocking=True))


@dataclass(frozen=True)
class Run:
    """Prompts for one pass.

    Attributes:
        members: place of each prompt among all that were planned.
        prompts: the prompts.
        shared: how many of its first tokens each has in common with the one before it, and does
            not compute; of the first prompt, with the last one of the run before.
        kept: the same of the first prompt of the next run; of the last run, how many first tokens
            of its last prompt are left for another stream.
    """

    members: list[int]
    prompts: list[Prompt]
    shared: list[int]
    kept: int

    @property
    def visuals(self) -> list[Visual]:
        """Images and videos that are computed."""
        return [
            visual
            for prompt, skip in zip(self.prompts, self.shared, strict=True)
            for visual, spans in _by_visual(prompt)
            if spans[0].start >= skip
        ]


@dataclass
class Prefix:
    """Keys and values that one pass leaves for the next.

    Attributes:
        layers: of each layer key and value [P, kv_heads, head_dim], or None where there are none.
        rows: int32, which of the P of before and the T of a pass it leaves; None: none.
        key: of the P tokens, between streams; see `key_of`.
    """

    layers: deque[tuple[torch.Tensor, torch.Tensor] | None]
    rows: torch.Tensor | None = None
    key: np.ndarray = field(default_factory=lambda: NOTHING)

    def cut(self, count: int) -> None:
        """Drops all but the first ``count`` tokens."""
        self.layers = deque(
            (layer[0][:count], layer[1][:count]) if layer and count else None
            for layer in self.layers
        )

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of before and of now.  Called once by each layer, in order."""
        before = self.layers.popleft()
        if before is not None:
            key, value = torch.cat((before[0], key)), torch.cat((before[1], value))
        left = None
        if self.rows is not None:
            left = key.index_select(0, self.rows), value.index_select(0, self.rows)
        self.layers.append(left)
        return key, value


def in_windows(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    """A stream of prompts in lists of as many as are sorted together."""
    stream = iter(prompts)
    while window := list(islice(stream, WINDOW)):
        yield window


def plan(
    windows: Iterable[Sequence[Prompt]],
    token_budget: int,
    *,
    share: bool,
    sequences: int = MAX_SEQUENCES,
    most_shared: float = math.inf,
    chained: bool = True,
    before: np.ndarray = NOTHING,
    keep: bool = False,
) -> Iterator[Run]:
    """Divides a stream of prompts into runs that compute at most ``token_budget`` tokens each.

    With ``share``, a prompt computes what follows its longest prefix in common with the one before
    it: the prompts of a window are sorted, and compute each token of the tree that they form once.
    Otherwise prompts stay in order, and compute all.  A prompt that is over a limit gets a run of
    its own.

    Args:
        windows: prompts that are sorted together; members of runs are counted through all of them.
            A run goes on from one window to the next, and so asks for the window after it before it
            is complete.  An empty window ends the run instead: what follows may be decided later.
        sequences: most prompts of a run.
        most_shared: most keys of a run that prompts have from others, the sum of ``Run.shared``.
        chained: whether a run goes on from the one before; else its first prompt computes all.
        before: key of the tokens that the stream before has left; see `key_of`.
        keep: whether the last run leaves the beginning of its last prompt, up to the first picture.
    """
    members: list[int] = []
    taken: list[Prompt] = []
    skips: list[int] = []
    computed = shared = 0
    places = count()
    for window in windows:
        if not window and members:
            # the next prompt is not known: it probably shares what this one shares
            left = max(head(taken[-1]), skips[-1]) if share and chained else 0
            before = before[:left]
            yield Run(members, taken, skips, left)
            members, taken, skips, computed, shared = [], [], [], 0, 0
        for member, prompt, key in _in_order(window, places, share):
            skip = common(before, key)
            before = key
            if members and (
                computed + len(prompt.ids) - skip > token_budget
                or shared + skip > most_shared
                or len(members) == sequences
            ):
                skip = skip if chained else 0
                yield Run(members, taken, skips, skip)
                members, taken, skips, computed, shared = [], [], [], 0, 0
            members.append(member)
            taken.append(prompt)
            skips.append(skip)
            computed += len(prompt.ids) - skip
            shared += skip
    if members:
        yield Run(members, taken, skips, head(taken[-1]) if keep and share and chained else 0)


def head(prompt: Prompt) -> int:
    """How many first tokens of a prompt its pass leaves, at least, for one that is not known."""
    return min(HEAD, len(prompt.ids), *(span.start for span in prompt.spans))


def _in_order(
    window: Sequence[Prompt], places: Iterator[int], share: bool
) -> list[tuple[int, Prompt, np.ndarray]]:
    """Places, prompts and keys, sorted if prompts share; else all keys are empty."""
    if not share:
        return [(n, prompt, NOTHING) for prompt, n in zip(window, places, strict=False)]
    keyed = [(next(places), prompt, key_of(prompt)) for prompt in window]
    return sorted(keyed, key=lambda entry: entry[2].tobytes())


def common(before: np.ndarray, key: np.ndarray) -> int:
    """How many first tokens of a prompt need not be computed after another; never all of them.

    Args:
        before, key: of the other prompt, and of this one; see `key_of`.
    """
    shorter = max(0, min(len(before), len(key) - 1))
    different = np.flatnonzero(before[:shorter] != key[:shorter])
    return int(different[0]) if len(different) else shorter


def key_of(prompt: Prompt) -> np.ndarray:
    """A number a token: its id, and for a vision token the name of the picture that it is of.

    Big-endian, so that their bytes sort as they do.
    """
    key = np.array(prompt.ids, ">u8")
    for visual, spans in _by_visual(prompt):
        name = blake2b(visual.key, digest_size=8).digest()
        for start, height, width in spans:
            key[start : start + height * width] = np.frombuffer(name, ">u8")
    return key


def _by_visual(prompt: Prompt) -> Iterator[tuple[Visual, list[Span]]]:
    spans = iter(prompt.spans)
    for visual in prompt.visuals:
        yield visual, list(islice(spans, visual.runs))


def pack(run: Run) -> Batch:
    """Packs a run of B >= 1 prompts, on the host, but for the features of ``run.visuals``."""
    lengths = [len(p.ids) - skip for p, skip in zip(run.prompts, run.shared, strict=True)]
    starts = list(accumulate(lengths, initial=0))
    before = run.shared[0]
    path = torch.arange(before, dtype=torch.int32)
    ids: list[int] = []
    places, index, paths = [], [], []
    for prompt, skip, start, end in zip(run.prompts, run.shared, starts, starts[1:], strict=False):
        ids += prompt.ids[skip:]
        places.append(positions(len(prompt.ids), prompt.spans)[:, skip:])
        for first, height, width in prompt.spans:
            if first >= skip:
                at = start + first - skip
                index.append(torch.arange(at, at + height * width, dtype=torch.int32))
        own = torch.arange(before + start, before + end, dtype=torch.int32)
        path = torch.cat((path[:skip], own))
        paths.append(path)
    data = (
        torch.tensor(ids, dtype=torch.int32),
        torch.cat(places, dim=1).flatten(),
        torch.tensor(starts, dtype=torch.int32),
        *index,
    )
    if not any(run.shared):
        return Batch(torch.cat(data), lengths)
    kv_lengths = [len(path) for path in paths]
    ends = torch.tensor([0, *accumulate(kv_lengths)], dtype=torch.int32)
    return Batch(torch.cat((*data, ends, *paths)), lengths, kv_lengths)


def pad(batch: Batch, tokens: int, sequences: int, keys: int) -> Batch:
    """The batch with ``tokens`` rows, ``sequences`` + 1 sequences and ``keys`` keys, for a pass of
    fixed size.

    The last sequence, which is no prompt, takes the spare rows and at least as many keys.
    Sequences that are missing have no row and one key: in `Batch.last_tokens`, where each has a
    row, none is without a key.  Spare keys are all that of row 0.  Of a batch with pictures, the
    index grows to ``tokens`` entries, the first one again and again, for features that do the same:
    what is written twice is the same.
    """
    spare = tokens - batch.tokens
    index = batch.index
    if len(index):
        index = torch.cat((index, index[:1].expand(tokens - len(index))))
    missing = sequences - len(batch.lengths)
    lengths = [*batch.lengths, *[0] * missing, spare]
    kv_lengths = [*(batch.kv_lengths or batch.lengths), *[1] * missing]
    kv_lengths.append(keys - sum(kv_lengths))
    assert kv_lengths[-1] >= max(spare, 1), (batch.tokens, batch.shared, tokens, keys)
    _, rows = batch._paths()
    data = (
        F.pad(batch.ids, (0, spare)),
        F.pad(batch.positions, (0, spare)).flatten(),
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        index,
        torch.tensor([0, *accumulate(kv_lengths)], dtype=torch.int32),
        F.pad(rows, (0, keys - len(rows))),
    )
    return Batch(torch.cat(data), lengths, kv_lengths)


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
