"""bfloat16 moves pyrerank's scores no further than it moves those of transformers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "bench/rounding.py"
spec = importlib.util.spec_from_file_location("rounding", SCRIPT)
assert spec is not None and spec.loader is not None
rounding = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rounding)


@pytest.mark.parametrize("family", rounding.FAMILIES)
def test_errors_are_no_larger_than_those_of_transformers(family: str) -> None:
    each = [rounding.errors(family, 2, seed) for seed in range(2)]
    ours, theirs = (torch.cat([one[name] for one in each]) for name in each[0])
    assert len(ours) == 96 and theirs.max() > 5e-3, "the pairs show no rounding"
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= theirs.max()


def test_the_command_says_what_it_measures() -> None:
    command = [sys.executable, str(SCRIPT), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "how far bfloat16 moves scores" in " ".join(done.stdout.split())
