"""Checkpoints: where they are found, what is read, and what is said of a damaged one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import write_random
from safetensors.torch import load_file, save_file

from pyrerank import CheckpointError, Reranker
from pyrerank.devices.select import resolve
from pyrerank.model.decoder import Decoder
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint
from pyrerank.weights.modules import Modules
from pyrerank.weights.tensors import TensorFile


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_random(folder, "qwen3-reranker", tied=False, seed=1, dtype=torch.bfloat16)
    return folder


@pytest.fixture
def model(original, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(model: Path, **changes: torch.Tensor | None) -> None:
    """Replaces tensors, or drops those given as None; ``__`` stands for a dot."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, file, {"format": "pt"})


class TestLoading:
    def test_shards_equal_one_file(self, original, tmp_path):
        write_random(tmp_path, "qwen3-reranker", tied=False, seed=1, dtype=torch.bfloat16, shards=3)
        assert len(list(tmp_path.glob("model-*.safetensors"))) == 3
        one, many = (Reranker(m, dtype="float32") for m in (original, tmp_path))
        assert one.score("q", ["a", "b"]) == many.score("q", ["a", "b"])

    @pytest.mark.parametrize("stored", [torch.float32, torch.float16])
    def test_any_stored_dtype(self, model, stored):
        tensors = {n: t.to(stored) for n, t in load_file(model / "model.safetensors").items()}
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        got = Reranker(model, dtype="float32").score("q", ["a"])
        widened = {n: t.float() for n, t in tensors.items()}
        save_file(widened, model / "model.safetensors", {"format": "pt"})
        assert got == Reranker(model, dtype="float32").score("q", ["a"])

    def test_classifier_vector_is_a_float32_difference(self, model):
        head = load_file(model / "model.safetensors")["lm_head.weight"]
        w, bias = open_checkpoint(model).classifier_vector(9693, 2152)
        assert w.dtype is torch.float32 and bias == 0.0
        assert torch.equal(w, head[9693].float() - head[2152].float())

    def test_both_spellings_of_the_rotary_base(self, model):
        base = open_checkpoint(model).config.rope_theta
        text = json.loads((model / "config.json").read_text())
        text.pop("rope_parameters", None)
        (model / "config.json").write_text(json.dumps(text | {"rope_theta": base}))
        assert open_checkpoint(model).config.rope_theta == base

    def test_weights_that_are_not_merged_are_mapped(self, tmp_path):
        write_random(tmp_path, "qwen3-reranker", tied=True, seed=1, dtype=torch.bfloat16)
        decoder = Decoder.load(open_checkpoint(tmp_path), resolve("cpu"), torch.bfloat16)
        ranges = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(tmp_path / "model.safetensors"))
        ]
        for name, weight in decoder.named_parameters():
            mapped = any(start <= weight.data_ptr() < end for start, end in ranges)
            assert mapped != ("qkv_proj" in name or "gate_up_proj" in name), name

    def test_tensors_that_are_copied_give_their_memory_back(self, tmp_path):
        file = tmp_path / "model.safetensors"
        names = [f"{letter}.weight" for letter in "abcdefgh"]
        stored = {
            f"model.{name}": torch.full((2048, 2048), 1 + n, dtype=torch.int32)
            for n, name in enumerate(names)
        }
        save_file(stored, file)  # int32, 16 MiB each
        size = stored["model.a.weight"].nbytes
        shapes = {name.removeprefix("model."): tensor.shape for name, tensor in stored.items()}
        checkpoint = Checkpoint(
            *(tmp_path, "Qwen3ForCausalLM", "qwen3", False, True, None, {}, Modules()),
            tensors=dict.fromkeys(stored, TensorFile(file)),
        )
        read = checkpoint.weights(shapes, dtype=torch.int32)
        views = [read(name) for name in names]
        assert resident(file, "Size") < 9 * size  # mapped once, in all
        joined = [read(*names[n : n + 2]) for n in range(7)]
        assert resident(file) < size / 8
        for n, copy in enumerate(joined):
            assert torch.equal(copy, torch.cat(list(stored.values())[n : n + 2]))
        assert torch.equal(views[3], stored["model.d.weight"])  # all of it is there
        assert size <= resident(file) < size * 9 / 8
        del views
        read = checkpoint.weights(shapes, dtype=torch.float32)
        converted = [read(name) for name in names]
        assert converted[7][0, 0] == 8 and resident(file) < size / 8

    def test_a_folder_and_a_text_need_no_hub_no_compiler_and_no_video(self, original):
        program = (
            "import sys; from pyrerank import Reranker; "
            f"Reranker({str(original)!r}, device='cpu').score('q', ['d']); "
            "print([m for m in ('huggingface_hub', 'torch._dynamo', 'av', 'transformers') "
            "if m in sys.modules])"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        assert out.stdout == b"[]\n"


def resident(file: Path, what: str = "Rss") -> int:
    """Bytes of a mapped file that count as this process's memory; with "Size", as addresses."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith(f"{what}:"):
            total += int(line.split()[1]) * 1024
    return total


class TestNames:
    def test_huggingface_cache(self, original, tmp_path, monkeypatch):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        repo = tmp_path / "models--Some--Reranker"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text("0" * 40)
        (repo / "snapshots").mkdir()
        shutil.copytree(original, repo / "snapshots" / ("0" * 40))
        assert open_checkpoint("Some/Reranker").path == repo / "snapshots" / ("0" * 40)

    def test_modelscope_cache(self, original, tmp_path, monkeypatch):
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
        folder = tmp_path / "hub/models/Some/Reranker-0___6B"
        shutil.copytree(original, folder)
        assert open_checkpoint("Some/Reranker-0.6B").path == folder

    @pytest.mark.parametrize("name", ["Qwen/Not-There", "not-there"])
    def test_not_in_a_cache_says_how_to_get_it(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError, match=f"run `hf download {name}` or `modelscope"):
            open_checkpoint(name)

    @pytest.mark.parametrize("name", ["/not/there", "./not-there", "a/b/c", "a b", "''"])
    def test_neither_a_folder_nor_a_name(self, name):
        with pytest.raises(CheckpointError, match="is not a folder, nor can it be a hub name"):
            open_checkpoint(name)

    def test_a_file(self, original):
        with pytest.raises(CheckpointError, match="is a file; give the folder"):
            open_checkpoint(original / "config.json")

    def test_not_a_name(self):
        with pytest.raises(TypeError, match="model must be a folder or a hub name, got NoneType"):
            open_checkpoint(None)


class TestDamage:
    """Each is refused before any weight is read, with what to do."""

    def refused(self, model: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Reranker(model, dtype="float32")

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("config.json", "has no config.json"),
            ("tokenizer.json", "has no tokenizer.json"),
            ("model.safetensors", "holds no weights"),
        ],
    )
    def test_a_file_is_absent(self, model, file, message):
        (model / file).unlink()
        self.refused(model, message)

    def test_config_is_not_json(self, model):
        (model / "config.json").write_text("{")
        self.refused(model, "config.json is not valid JSON")
        (model / "config.json").write_text("[]")
        self.refused(model, "must hold a JSON object")

    def test_tokenizer_is_broken(self, model):
        (model / "tokenizer.json").write_text("{}")
        self.refused(model, "tokenizer.json is not a readable tokenizer")

    def test_tokenizer_of_another_family(self, model):
        from tokenizers import Tokenizer, models

        (model / "tokenizer_config.json").unlink()
        Tokenizer(models.BPE(vocab={"yes": 0}, merges=[])).save(str(model / "tokenizer.json"))
        self.refused(model, "the tokenizer has no token")

    @pytest.mark.parametrize("keep", [0, 5, 1000, -1])
    def test_truncated_weights(self, model, keep):
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        self.refused(model, "model.safetensors is damaged or not a safetensors file")

    def test_another_family(self, model):
        edit_config(model, architectures=["LlamaForCausalLM"], model_type="llama")
        self.refused(model, "is of LlamaForCausalLM .*pyrerank runs Qwen3ForCausalLM, ")
        edit_config(model, architectures=None)
        self.refused(model, "is of no architecture")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hidden_size": None}, "lacks hidden_size"),
            ({"hidden_act": "gelu"}, "sets hidden_act to 'gelu'; pyrerank supports only 'silu'"),
            ({"attention_bias": True}, "sets attention_bias to True"),
            ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope type to 'yarn'"),
            ({"use_sliding_window": True}, "sets use_sliding_window to True"),
        ],
    )
    def test_a_configuration_it_does_not_run(self, model, change, message):
        edit_config(model, **change)
        self.refused(model, message)

    def test_missing_extra_and_misshapen_tensors_are_named(self, model):
        edit_tensors(
            model,
            model__norm__weight=None,
            model__layers__9__extra=torch.zeros(1),
            model__layers__0__self_attn__q_norm__weight=torch.zeros(3),
        )
        with pytest.raises(CheckpointError) as caught:
            Reranker(model)
        assert "missing model.norm.weight" in str(caught.value)
        assert "unexpected model.layers.9.extra" in str(caught.value)
        assert "model.layers.0.self_attn.q_norm.weight is (3,), not (" in str(caught.value)

    def test_head(self, model):
        edit_tensors(model, lm_head__weight=None)
        self.refused(model, "missing lm_head.weight")
        edit_tensors(model, lm_head__weight=torch.zeros(7, 8))
        self.refused(model, r"lm_head.weight is \(7, 8\), not \(")

    def test_a_missing_shard(self, tmp_path):
        write_random(tmp_path, "qwen3-reranker", tied=False, seed=1, dtype=torch.bfloat16, shards=3)
        shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
        shard.unlink()
        self.refused(tmp_path, f"names absent files: {shard.name}")
