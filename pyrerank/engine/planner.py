"""The planner: divides prompts into passes, under a token budget.

Prompts are sorted, so that each shares its first tokens with the prompt before it, and attends to
the keys and values that are there already.  This module knows nothing of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count, islice

import numpy as np

from pyrerank.media.images import Visual
from pyrerank.prompts.items import Prompt, Span

# A prompt that is not known yet probably shares template, instruction and a short query.
LIKELY_PREFIX = 256
NO_KEY = np.empty(0, ">u8")
# So many prompts are sorted together, because all their token ids are held until then.
WINDOW = 1024


@dataclass
class Pass:
    """Prompts that go through the model together.

    Attributes:
        members: the place of each prompt among all that were planned.
        shared: how many first tokens each prompt shares with the one before it, and does not
            compute; the first prompt shares them with the last one of the pass before.
        next_prefix: how many first tokens of the last prompt the next pass starts from.
        computed, total_shared: how many tokens the prompts compute and share together.
    """

    members: list[int] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    next_prefix: int = 0
    computed: int = 0
    total_shared: int = 0

    def add(self, member: int, prompt: Prompt, shared: int) -> None:
        self.members.append(member)
        self.prompts.append(prompt)
        self.shared.append(shared)
        self.computed += len(prompt.ids) - shared
        self.total_shared += shared

    @property
    def ids(self) -> list[list[int]]:
        return [prompt.ids for prompt in self.prompts]

    @property
    def spans(self) -> list[tuple[Span, ...]]:
        return [prompt.spans for prompt in self.prompts]

    @property
    def visuals(self) -> list[Visual]:
        """The images and videos that are computed, because they are not shared."""
        return [
            visual
            for prompt, skip in zip(self.prompts, self.shared, strict=True)
            for visual, spans in _by_visual(prompt)
            if spans[0].start >= skip
        ]


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
    most_sequences: float = math.inf,
    most_shared: float = math.inf,
    leave_prefix: bool = True,
    prefix: np.ndarray = NO_KEY,
) -> Iterator[Pass]:
    """Divides a stream of prompts into passes that compute at most ``token_budget`` tokens each.

    With ``share``, the prompts of a window are sorted, and each computes what follows its longest
    prefix in common with the one before it, so that the tree that they form is computed once.
    Without, prompts stay in order, and compute all of their tokens.  A prompt that is over a limit
    gets a pass of its own.

    A pass goes on from one window to the next.  An empty window ends it instead, when what follows
    is not known yet: the pass then leaves what the next prompt probably shares.

    Args:
        most_sequences, most_shared: most prompts of a pass, and most tokens that they share.
        leave_prefix: whether a pass leaves a prefix for the next one; otherwise the first prompt of
            each pass computes all of its tokens.
        prefix: key of the tokens that the pass before the first one has left; see `key_of`.
    """
    current = Pass()
    previous = prefix  # the key of the prompt before
    places = count()
    for window in windows:
        if not window and current.members:
            likely = max(likely_prefix(current.prompts[-1]), current.shared[-1])
            previous = previous[: likely if leave_prefix else 0]
            current.next_prefix = len(previous)
            yield current
            current = Pass()
        keyed = [(next(places), each, key_of(each) if share else NO_KEY) for each in window]
        for member, prompt, key in sorted(keyed, key=lambda entry: entry[2].tobytes()):
            shared = common(previous, key)
            previous = key
            if current.members and (
                current.computed + len(prompt.ids) - shared > token_budget
                or current.total_shared + shared > most_shared
                or len(current.members) == most_sequences
            ):
                shared = shared if leave_prefix else 0
                current.next_prefix = shared
                yield current
                current = Pass()
            current.add(member, prompt, shared)
    if current.members:
        yield current


def likely_prefix(prompt: Prompt) -> int:
    """How many first tokens are left for a prompt that is not known yet: none from the first
    picture on."""
    return min(LIKELY_PREFIX, len(prompt.ids), *(span.start for span in prompt.spans))


def common(previous: np.ndarray, key: np.ndarray) -> int:
    """How many first tokens a prompt, of this ``key``, shares with another; never all of them."""
    shorter = max(0, min(len(previous), len(key) - 1))
    different = np.flatnonzero(previous[:shorter] != key[:shorter])
    return int(different[0]) if len(different) else shorter


def key_of(prompt: Prompt) -> np.ndarray:
    """A number for each token, its id or the name of its picture; big-endian, so that bytes sort as
    the numbers do."""
    key = np.array(prompt.ids, ">u8")
    for visual, spans in _by_visual(prompt):
        name = blake2b(visual.key, digest_size=8).digest()
        for start, height, width in spans:
            key[start : start + height * width] = np.frombuffer(name, ">u8")
    return key


def _by_visual(prompt: Prompt) -> Iterator[tuple[Visual, list[Span]]]:
    spans = iter(prompt.spans)
    for visual in prompt.visuals:
        yield visual, list(islice(spans, visual.span_count))
