"""`--resume` goes on where the settings are the same, and names those that differ."""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_random
from lines import CAT, COFFEE, jsonl
from safetensors.torch import load_file, save_file

from pyrerank.cli.journal import identity
from pyrerank.cli.main import main
from pyrerank.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume-model")
    write_random(folder, "qwen3-vl-reranker", tied=True, seed=4, dtype=torch.bfloat16)
    return folder


SCORES = {
    "--dtype": "float32",
    "--query": "q",
    "--query-image": str(CAT),
    "--instruction": "Find it.",
    "--max-image-tokens": "20",
    "--max-video-frames": "4",
}
VECTORS = {"--dtype": "float32", "--dim": "32"}


def options(given: dict[str, str | None]) -> list[str]:
    return [word for name, value in given.items() for word in (name, value) if word is not None]


class Run:
    def __init__(self, folder: Path, model: Path, command: str, given: dict, name: str) -> None:
        source = folder / "in"
        source.write_bytes(jsonl({"documents": ["a", "b"]} if command == "rank" else {"text": "a"}))
        if command == "score":
            source.write_bytes(jsonl({"document": "a"}))
        self.target = folder / name
        self.command, self.given = command, given
        self.files = ["--input", str(source), "--output", str(self.target)]
        self.model = model
        assert self.again() == 0
        self.held = self.target.read_bytes()

    def again(self, *more: str, **changed: str | None) -> int:
        command = changed.pop("command", self.command)
        model = changed.pop("model", self.model)
        given = self.given | {f"--{k.replace('_', '-')}": v for k, v in changed.items()}
        given = {name: value for name, value in given.items() if value != "without"}
        return main([str(command), "--model", str(model), *options(given), *self.files, *more])


def test_scores(model, tmp_path, capsys):
    run = Run(tmp_path, model, "score", SCORES, "out.jsonl")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model, elsewhere)
    assert run.again("--resume") == run.again("--resume", model=elsewhere) == 0
    changes = {
        "--dtype was 'float32' and is 'bfloat16'": {"dtype": "bfloat16"},
        "--query was 'q' and is 'other'": {"query": "other"},
        "pictures of the query was [": {"query_image": str(COFFEE)},
        "--instruction was 'Find it.' and is None": {"instruction": "without"},
        "--max-image-tokens was 20 and is 21": {"max_image_tokens": "21"},
        "--max-video-frames was 4 and is 64": {"max_video_frames": "without"},
        "the command was 'score' and is 'rank'": {"command": "rank"},
    }
    for message, change in changes.items():
        capsys.readouterr()
        assert run.again("--resume", **change) == 2, message
        err = capsys.readouterr().err
        assert "out.jsonl holds results of another run: " in err and message in err
        assert err.count(" and is ") == 1
        assert run.target.read_bytes() == run.held


def test_rankings_and_vectors(model, tmp_path, capsys):
    run = Run(tmp_path, model, "rank", {"--query": "q"}, "ranked.jsonl")
    assert run.again("--resume", top_n="1") == 2
    assert "--top-n was None and is 1" in capsys.readouterr().err
    run = Run(tmp_path, model, "embed", VECTORS, "out.npy")
    assert run.again("--resume", no_normalize=None) == 2
    assert "--no-normalize was False and is True" in capsys.readouterr().err
    assert run.again("--resume", dim="33") == 2
    assert "--dim was 32 and is 33" in capsys.readouterr().err
    assert run.again("--resume") == 0
    assert run.target.read_bytes() == run.held
    assert run.again() == 2  # a new one is asked for
    assert "exists; add --resume to go on with it" in capsys.readouterr().err
    run.target.unlink()
    assert run.again(dim="33") == 0  # what lies beside it is of the old one


def test_a_checkpoint_is_known_by_what_is_in_it(model, tmp_path):
    first = identity(open_checkpoint(model))
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert identity(open_checkpoint(copy)) == first
    file = copy / "model.safetensors"
    tensors = load_file(file)
    seen = {first}
    for name in list(tensors)[::7]:
        save_file(tensors | {name: tensors[name] * 1.01}, file, metadata={"format": "pt"})
        seen.add(identity(open_checkpoint(copy)))
    assert len(seen) == 1 + len(list(tensors)[::7])
    save_file(tensors, file, metadata={"format": "pt"})
    (copy / "generation_config.json").write_text('{"told": 1}')
    assert identity(open_checkpoint(copy)) not in seen
