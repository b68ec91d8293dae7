"""Weights are used where they lie in their file: what happens when that changes."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import write_random
from safetensors.torch import load_file, save_file

from pyrerank import CheckpointChanged, CheckpointError, Embedder, EngineClosed, Reranker, convert
from pyrerank.cli.main import main
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.serve.schedule import Job, Scheduler
from pyrerank.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

DOCUMENTS = ["the moon is bright", "bread"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_random(folder, "qwen3-reranker", tied=True, seed=1, dtype=torch.float32)
    return folder


@pytest.fixture
def file(original, tmp_path) -> Path:
    """Of the weights of a copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "model")) / "model.safetensors"


def zero(file: Path) -> None:
    """As `cp` and `rsync --inplace` do: the same file, other bytes."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(bytes(size - size // 2))


def truncate(file: Path) -> None:
    os.truncate(file, 4096)


def rewrite(file: Path) -> None:
    """With the same contents, of which nobody can know."""
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(content)


def rename(file: Path) -> None:
    new = file.with_name("new")
    save_file({name: t * 0 for name, t in load_file(file).items()}, new, {"format": "pt"})
    new.rename(file)


class TestOverwritten:
    @pytest.mark.parametrize("change", [zero, truncate, rewrite])
    def test_no_pass_uses_it(self, file, change):
        reranker, embedder = (kind(file.parent, dtype="float32") for kind in (Reranker, Embedder))
        reranker.score("moon", DOCUMENTS)
        change(file)
        said = f"{file} was overwritten while it was in use.*load the engine again.*rename"
        for _ in range(2):
            with pytest.raises(CheckpointChanged, match=said):
                reranker.score("moon", DOCUMENTS)
            with pytest.raises(CheckpointChanged, match=said):
                embedder.embed(DOCUMENTS)

    def test_between_the_passes_of_a_call(self, file):
        engine = Reranker(file.parent, dtype="float32", token_budget=1)
        prompts = engine.core.encoder.encode(
            [engine.core.encoder.pair("x", "moon", document) for document in DOCUMENTS]
        )
        passes = engine.core.stream([prompts[:1], prompts[1:]])
        next(passes)
        truncate(file)
        with pytest.raises(CheckpointChanged, match="was overwritten"):
            next(passes)

    def test_while_it_is_loaded(self, file, monkeypatch):
        """The rest of the weights would be another checkpoint's."""
        read, calls = torch.cat, []

        def cat(*args):
            calls.append(args)
            if len(calls) == 3:
                zero(file)
            return read(*args)

        monkeypatch.setattr(torch, "cat", cat)
        with pytest.raises(CheckpointChanged, match="was overwritten"):
            Reranker(file.parent, dtype="float32")

    def test_between_opening_and_loading(self, file):
        checkpoint = open_checkpoint(file.parent)
        rewrite(file)
        with pytest.raises(CheckpointError, match="was overwritten"):
            Reranker(checkpoint, dtype="float32")
        with pytest.raises(CheckpointError, match="was overwritten"):
            checkpoint.not_finite()

    def test_is_an_error_of_the_checkpoint_that_ends_the_engine(self):
        assert issubclass(CheckpointChanged, CheckpointError)
        assert issubclass(CheckpointChanged, EngineClosed)

    def test_what_was_copied_stays(self, file):
        engine = Reranker(file.parent, dtype="bfloat16")  # of float32: all weights are copies
        scores = engine.score("moon", DOCUMENTS)
        zero(file)
        assert engine.score("moon", DOCUMENTS) == scores


class TestRenamed:
    def test_an_engine_keeps_the_file_that_it_has(self, file):
        engine = Reranker(file.parent, dtype="float32")
        scores = engine.score("moon", DOCUMENTS)
        rename(file)
        assert engine.score("moon", DOCUMENTS) == scores
        file.unlink()
        assert engine.score("moon", DOCUMENTS) == scores
        assert engine.core.checkpoint.not_finite() == []

    def test_what_is_read_later_is_of_the_file_that_was_opened(self, file, original):
        checkpoint = open_checkpoint(file.parent)
        rename(file)
        scores = Reranker(checkpoint, dtype="float32").score("moon", DOCUMENTS)
        assert scores == Reranker(original, dtype="float32").score("moon", DOCUMENTS)

    def test_descriptors_are_given_back(self, file):
        def descriptors() -> int:
            return sum(
                os.path.samefile(f"/proc/self/fd/{n}", file)
                for n in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{n}")
            )

        checkpoint = open_checkpoint(file.parent)
        assert descriptors() == 1
        del checkpoint
        assert descriptors() == 0


def test_a_conversion_of_a_checkpoint_that_is_overwritten_meanwhile(file, tmp_path, monkeypatch):
    from pyrerank.weights import convert as conversion

    def overwritten(*args: object) -> None:
        save_file(*args)
        rewrite(file)

    monkeypatch.setattr(conversion, "save_file", overwritten)
    with pytest.raises(CheckpointError, match="was overwritten"):
        convert(file.parent, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_conversion_of_a_folder_that_is_replaced_meanwhile(file, tmp_path, monkeypatch, name):
    from pyrerank.weights import convert as conversion

    def replaced(*args: object) -> None:
        save_file(*args)
        (file.parent / "new").write_bytes((file.parent / name).read_bytes())
        (file.parent / "new").rename(file.parent / name)

    monkeypatch.setattr(conversion, "save_file", replaced)
    with pytest.raises(CheckpointError, match=f"{name} was replaced while it was converted"):
        convert(file.parent, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_server_takes_no_more_requests(file):
    """And is restarted by who watches its health."""
    engine = Reranker(file.parent, dtype="float32")
    prompts = engine.core.encoder.encode([engine.core.encoder.pair("x", "moon", "bread")])
    scheduler = Scheduler(lambda: engine)
    rewrite(file)
    job = Job(prompts=prompts)
    scheduler.submit(job)
    with pytest.raises(CheckpointChanged, match="was overwritten"):
        job.done.result(60)
    scheduler.close()
    assert "was overwritten" in str(scheduler.lost)


def test_a_job_over_lines_stops(file, tmp_path, capsys, monkeypatch):
    """The lines to come are not at fault, and would all get the same error."""
    lines = tmp_path / "lines"
    lines.write_text('{"query": "q", "document": "a"}\n' * 9)
    pair = PairEncoder.pair

    def overwritten(*args):
        rewrite(file)
        return pair(*args)

    monkeypatch.setattr(PairEncoder, "pair", overwritten)
    command = ["score", "--model", str(file.parent), "--input", str(lines), "--dtype", "float32"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"{file} was overwritten" in err
