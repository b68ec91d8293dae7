"""Prompts as one pass that shares nothing."""

from collections.abc import Sequence

from pyrerank.batch import Batch, Run, pack
from pyrerank.inputs import Prompt


def one_run(prompts: Sequence[Prompt]) -> Run:
    return Run(list(range(len(prompts))), list(prompts), [0] * len(prompts), 0)


def packed(prompts: Sequence[Prompt]) -> Batch:
    return pack(one_run(prompts))
