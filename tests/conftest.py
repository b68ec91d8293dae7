"""Fixtures that tests share: the real Qwen vocabulary, and checkpoints in the real architecture."""

import os
import signal
import sys
from pathlib import Path

# torch must not import a torch_npu that is installed; the tests that need it do.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes would disturb each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / folder) for folder in ("examples", "tests/support", "docs", "docs/figures")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts background jobs with signals ignored, which children inherit.  Handlers are set
# here, so that processes which tests start have the defaults.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# The load of the machine must not decide a test, and chance must not decide in CI.  Elsewhere
# chance may find something.
settings.register_profile("pyrerank", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pyrerank")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer files of Qwen3."""
    import qwen_vocab

    folder = tmp_path_factory.mktemp("qwen")
    qwen_vocab.write(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer.from_file(str(vocabulary / "tokenizer.json"))


@pytest.fixture(scope="session")
def random_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small reranker of texts, whose name says so."""
    from checkpoints import write_random

    folder = tmp_path_factory.mktemp("reranker")
    write_random(folder, "qwen3-reranker", tied=True)
    return folder
