"""Conversion: transformers scores what comes out as it scored what went in."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import NO, YES, strip_prefix, write_random
from conversions import KINDS, QUERY, TEXTS, TOLERANCE, documents, tensors
from published import Published
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from pyrerank import CheckpointError, Reranker, convert
from pyrerank.cli.main import main
from pyrerank.weights import convert as conversion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes each kind of checkpoint once."""

    @cache
    def get(kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        family, ties = kind.split()
        write_random(folder, family, tied=ties == "tied", dtype=dtype, seed=len(kind))
        return folder

    return get


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    @cache
    def get(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("converted") / "classifier"
        convert(checkpoint(kind), folder)
        return folder

    return get


class TestConverted:
    @pytest.mark.parametrize("kind", KINDS[:2])
    def test_transformers_gives_the_same_logits(self, checkpoint, converted, kind):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            converted(kind), dtype=torch.float32, output_loading_info=True
        )
        assert type(model).__name__ == "Qwen3ForSequenceClassification" and model.num_labels == 1
        assert not any(loading.values())
        before = Published(checkpoint(kind))
        rows, want = [], []
        with torch.no_grad():
            for text in TEXTS:
                inputs = before.prompt(QUERY, text).inputs()
                logits = before.model(**inputs).logits[0, -1]
                want.append(logits[YES] - logits[NO])
                rows.append(inputs["input_ids"][0].tolist())
                assert abs(model.eval()(**inputs).logits.item() - want[-1]) <= TOLERANCE
            # and in a batch, which needs to know what padding is
            tokenizer = AutoTokenizer.from_pretrained(converted(kind))
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            logits = model(**batch).logits[:, 0]
        torch.testing.assert_close(logits, torch.stack(want), rtol=0, atol=TOLERANCE)
        assert torch.stack(want).std() > 0.1  # not all the same

    @pytest.mark.parametrize("kind", KINDS)
    def test_scores_by_pyrerank_and_by_transformers(self, checkpoint, converted, kind):
        given, published = zip(*documents(kind), strict=True)
        scores = Reranker(converted(kind), dtype="float32").score(QUERY, given)
        assert scores == pytest.approx(
            Reranker(checkpoint(kind), dtype="float32").score(QUERY, given), abs=1e-6
        )
        for folder in (checkpoint(kind), converted(kind)):  # the full vocabulary, and the vector
            reference = Published(folder)
            want = [reference.score(QUERY, document) for document in published]
            assert scores == pytest.approx(want, abs=TOLERANCE)

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_the_head_is_another(self, checkpoint, converted, kind):
        before, after = tensors(checkpoint(kind)), tensors(converted(kind))
        table = next(name for name in before if name.endswith("embed_tokens.weight"))
        head = before.pop("lm_head.weight", before[table]).float()
        score = after.pop("score.weight")
        assert score.dtype == torch.float32 and torch.equal(score[0], head[YES] - head[NO])
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_label_and_a_padding_for_all_readers(self, checkpoint, converted, kind):
        raw = json.loads((converted(kind) / "config.json").read_text("utf-8"))
        [architecture] = raw["architectures"]
        vision = "VL" if "vl" in kind else ""
        assert architecture == f"Qwen3{vision}ForSequenceClassification"
        config = AutoConfig.from_pretrained(converted(kind))
        padding = AutoTokenizer.from_pretrained(converted(kind)).pad_token_id
        for part in (config, config.get_text_config()):
            assert part.num_labels == 1 and part.pad_token_id == padding
        original = json.loads((checkpoint(kind) / "config.json").read_text("utf-8"))
        changed = {key for key in raw.keys() | original if raw.get(key) != original.get(key)}
        assert changed <= {
            "architectures", "id2label", "label2id", "pad_token_id", "text_config"
        }  # fmt: skip

    def test_the_other_files(self, checkpoint, tmp_path):
        source = Path(shutil.copytree(checkpoint(KINDS[2]), tmp_path / "source"))
        for name in ("LICENSE", "additional_chat_templates/reranker.jinja", "README.md"):
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_text(name)
        (source / "tokenizer_config.json").rename(tmp_path / "blob")
        (source / "tokenizer_config.json").symlink_to(tmp_path / "blob")  # as in the hub's cache
        convert(source, tmp_path / "target")
        files = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
        written = {p.relative_to(tmp_path / "target") for p in (tmp_path / "target").rglob("*.*")}
        left_out = {"README.md", "generation_config.json"}
        assert {str(path) for path in files - written - {Path("LICENSE")}} <= left_out
        for path in files & written - {Path("config.json"), Path("model.safetensors")}:
            assert (source / path).read_bytes() == (tmp_path / "target" / path).read_bytes()
            assert not (tmp_path / "target" / path).is_symlink()

    def test_large_checkpoints_are_cut_into_files(self, checkpoint, tmp_path, monkeypatch):
        source = checkpoint(KINDS[3])
        monkeypatch.setattr(conversion, "SHARD_BYTES", limit := 100_000)
        done = convert(source, tmp_path / "target")
        files = sorted((tmp_path / "target").glob("*.safetensors"))
        assert done.files == len(files) > 3
        contents = [load_file(file) for file in files]
        for file, content in zip(files, contents, strict=True):
            assert file.name.endswith(f"-of-{len(files):05d}.safetensors")
            assert len(content) == 1 or sum(t.nbytes for t in content.values()) <= limit
        index = json.loads((tmp_path / "target/model.safetensors.index.json").read_text())
        assert index["weight_map"] == {
            name: file.name for file, c in zip(files, contents, strict=True) for name in c
        }
        assert index["metadata"]["total_size"] == sum(
            t.nbytes for content in contents for t in content.values()
        )
        one, many = (Reranker(m, dtype="float32") for m in (source, tmp_path / "target"))
        assert one.score(QUERY, TEXTS) == many.score(QUERY, TEXTS)

    def test_a_float16_checkpoint(self, checkpoint, tmp_path):
        source = checkpoint(KINDS[0], torch.float16)
        convert(source, tmp_path / "target")
        assert tensors(tmp_path / "target")["model.norm.weight"].dtype == torch.float16

    def test_all_of_it_is_on_the_disk_before_it_has_its_name(
        self, checkpoint, tmp_path, monkeypatch
    ):
        synced: list[tuple[int, bool]] = []
        target = tmp_path / "target"
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_ino, target.exists()))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        convert(checkpoint(KINDS[0]), target)
        for path in [target, *target.rglob("*")]:
            assert (path.stat().st_ino, False) in synced, path
        assert synced[-1] == (tmp_path.stat().st_ino, True)


class TestRefused:
    def test_the_target_exists(self, checkpoint, tmp_path):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to("nowhere")
        for name in ("file", "empty", "link"):
            with pytest.raises(ValueError, match=f"{name} exists; name a new folder"):
                convert(checkpoint(KINDS[0]), tmp_path / name)
        assert (tmp_path / "file").read_text() == "mine" and not any((tmp_path / "empty").iterdir())
        with pytest.raises(ValueError, match="not-there is not a folder; make it first"):
            convert(checkpoint(KINDS[0]), tmp_path / "not-there" / "target")

    def test_not_a_reranker(self, checkpoint, converted, tmp_path):
        with pytest.raises(CheckpointError, match="is a one-label classifier already"):
            convert(converted(KINDS[0]), tmp_path / "target")
        embedder = Path(shutil.copytree(checkpoint(KINDS[0]), tmp_path / "embedder"))
        strip_prefix(embedder)
        with pytest.raises(CheckpointError, match="only a reranker has a score to convert"):
            convert(embedder, tmp_path / "target")
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            convert(tmp_path, tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["embedder"]

    @pytest.mark.parametrize("broken", ["score.weight", "model.layers.1.mlp.up_proj.weight"])
    def test_what_scores_otherwise_is_not_kept(self, checkpoint, tmp_path, monkeypatch, broken):
        def damage(tensors: dict[str, torch.Tensor], *rest: object) -> None:
            save_file(tensors | {broken: tensors[broken] * 1.01}, *rest)

        monkeypatch.setattr(conversion, "save_file", damage)
        with pytest.raises(CheckpointError, match="does not score as before: the logits"):
            convert(checkpoint(KINDS[1]), tmp_path / "target")
        assert not any(tmp_path.iterdir())

    def test_interrupted(self, checkpoint, tmp_path, monkeypatch, capsys):
        def interrupted(*args: object) -> None:
            save_file(*args)
            signal.raise_signal(signal.SIGINT)

        source = checkpoint(KINDS[0])
        capsys.readouterr()  # of what wrote it
        monkeypatch.setattr(conversion, "save_file", interrupted)
        assert main(["convert", str(source), str(tmp_path / "target")]) == 130
        assert capsys.readouterr().err == "pyrerank: interrupted\n"
        assert not any(tmp_path.iterdir())

    def test_a_full_disk(self, checkpoint, tmp_path):
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        command = [sys.executable, "-P", "-m", "pyrerank", "convert", str(checkpoint(KINDS[0]))]
        done = subprocess.run(
            [*command, str(tmp_path / "target")], capture_output=True, preexec_fn=limit
        )
        assert done.returncode == 2
        assert b"pyrerank: error: " in done.stderr and b"could not be written" in done.stderr
        assert not any(tmp_path.iterdir())


def test_command_line(checkpoint, tmp_path, capsys):
    target = tmp_path / "target"
    assert main(["convert", str(checkpoint(KINDS[0])), str(target)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{target}: Qwen3ForSequenceClassification, weights in 1 file"
    assert out[1].startswith("logits of 3 pairs, before and after: at most ")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert main(["convert", str(checkpoint(KINDS[0])), str(target)]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err
