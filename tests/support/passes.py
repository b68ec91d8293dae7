"""Packs prompts as one pass, counts the tree they form, and makes engines that share a model."""

from collections.abc import Sequence
from typing import TypeVar

from pyrerank.engine.batch import Batch, pack
from pyrerank.engine.planner import plan
from pyrerank.prompts.items import Prompt

T = TypeVar("T")


def packed(prompts: Sequence[Prompt], *, share: bool = False) -> Batch:
    """As one pass."""
    [planned] = plan([prompts], sum(len(prompt.ids) for prompt in prompts), share=share)
    return pack(planned.ids, planned.spans, planned.shared)


def sharing(prompts: Sequence[Prompt]) -> Batch:
    """As one pass, in the order of their tokens."""
    return packed(prompts, share=True)


def trie(prompts: Sequence[Prompt]) -> int:
    """Tokens that must be computed: the nodes of the tree that the prompts form, and the last token
    of each prompt that is there again."""
    nodes = {tuple(p.ids[:end]) for p in prompts for end in range(1, len(p.ids) + 1)}
    return len(nodes) + len(prompts) - len({tuple(p.ids) for p in prompts})


def twin(engine: T) -> T:
    """An engine of its own settings and counters that shares model, lock and graphs with
    ``engine``."""
    other = _copy(engine)
    other.core = _copy(engine.core)
    other.core.encoder = _copy(engine.core.encoder)
    other.core.failures = _copy(engine.core.failures)
    return other


def _copy(thing: T) -> T:
    other = object.__new__(type(thing))
    vars(other).update(vars(thing))
    return other
