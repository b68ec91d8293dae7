"""Where a model is found, which of its files are its weights, and what is said if there are none.

Folders hold files of a few bytes; nothing in them is loaded.
"""

import json
import re
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from pyrerank import CheckpointError
from pyrerank.weights.checkpoint import open_checkpoint
from pyrerank.weights.find import find_folder, weight_files
from pyrerank.weights.tensors import open_weights

NAME = "Some/Reranker-0.6B"
WHOLE = ("config.json", "tokenizer.json", "model.safetensors")
NEW, OLD = "1" * 40, "0" * 40


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))


def write(folder: Path, *names: str, **tensors: torch.Tensor) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = "{}" if name.endswith(".json") else "x"
        (folder / name).write_text(text)
    return folder


def snapshot(cache: Path, commit: str, *names: str, main: bool = True) -> Path:
    """As huggingface_hub lays it out, by its own functions: blobs, links, ``refs/main``."""
    from huggingface_hub import file_download

    repo = cache / "hub" / file_download.repo_folder_name(repo_id=NAME, repo_type="model")
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    for name in names:
        blob, link = repo / "blobs" / f"{commit[0]}-{name}", repo / "snapshots" / commit / name
        blob.write_text("{}")
        link.parent.mkdir(parents=True, exist_ok=True)
        file_download._create_symlink(str(blob), str(link))
    if main:
        file_download._cache_commit_hash_for_specific_revision(str(repo), "main", commit)
    return repo / "snapshots" / commit


def listing(repo: Path, commit: str, *names: str) -> None:
    """What newer releases of huggingface_hub keep of a repository whose files they fetched."""
    files = {name: {"size": 2, "blob_id": "0" * 40} for name in names}
    file = repo / f"trees/{commit}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"format_version": 1, "files": files}))


class TestHubCache:
    def test_a_filtered_download(self, tmp_path):
        folder = snapshot(tmp_path, NEW, *WHOLE)
        listing(folder.parents[1], NEW, *WHOLE, "README.md", "onnx/model.onnx")
        if hasattr(huggingface_hub.errors, "IncompleteSnapshotError"):
            with pytest.raises(LocalEntryNotFoundError, match=r"README\.md|[Ii]ncomplete"):
                huggingface_hub.snapshot_download(NAME, local_files_only=True)
        assert find_folder(NAME) == find_folder(NAME + "/") == folder

    def test_no_listing(self, tmp_path):
        assert find_folder_of(tmp_path) == Path(
            huggingface_hub.snapshot_download(NAME, local_files_only=True)
        )

    def test_of_several_snapshots_main(self, tmp_path):
        snapshot(tmp_path, OLD, *WHOLE)
        folder = snapshot(tmp_path, NEW, *WHOLE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert find_folder(NAME) == folder

    def test_main_is_not_complete(self, tmp_path):
        """`AutoConfig.from_pretrained` moves it to a commit of which it fetches one file."""
        folder = snapshot(tmp_path, OLD, *WHOLE)
        snapshot(tmp_path, NEW, "config.json")
        with pytest.warns(UserWarning, match=f"another one is taken: {folder}"):
            assert find_folder(NAME) == folder

    def test_links_to_files_that_were_not_fetched(self, tmp_path):
        folder = snapshot(tmp_path, NEW, *WHOLE)
        (folder / "model.safetensors").resolve().unlink()
        with pytest.raises(CheckpointError, match=f"{folder} lacks model"):
            find_folder(NAME)

    def test_a_shard_that_was_not_fetched(self, tmp_path):
        folder = snapshot(tmp_path, NEW, *WHOLE[:2], "model.safetensors.index.json", "a", "b")
        index = {"weight_map": {"x": "a", "y": "b", "z": "c"}}
        (folder / "model.safetensors.index.json").resolve().write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=f"is not complete in any.*: {folder} lacks c. "):
            find_folder(NAME)


def find_folder_of(cache: Path) -> Path:
    snapshot(cache, NEW, *WHOLE)
    return find_folder(NAME)


class TestBothCaches:
    def test_a_snapshot_of_the_configuration_hides_nothing(self, tmp_path):
        snapshot(tmp_path, NEW, "config.json")
        folder = write(tmp_path / "modelscope/hub/models/Some/Reranker-0___6B", *WHOLE)
        assert find_folder(NAME) == folder

    @pytest.mark.parametrize(
        "place",
        [
            "hub/models/Some/Reranker-0.6B",
            "models/Some--Reranker-0.6B/snapshots/master",
            "hub/Some/Reranker-0___6B",
        ],
    )
    def test_each_layout_of_modelscope(self, tmp_path, place):
        folder = write(tmp_path / "modelscope" / place, *WHOLE)
        assert find_folder("Some/Reranker-0.6B") == folder

    def test_nor_does_a_folder_of_modelscope_hide_another(self, tmp_path):
        write(tmp_path / "modelscope/hub/models/Some/Reranker-0___6B", "config.json")
        folder = write(tmp_path / "modelscope/models/Some/Reranker-0___6B", *WHOLE)
        assert find_folder(NAME) == folder

    def test_the_current_version_before_an_older_one(self, tmp_path):
        snapshot(tmp_path, OLD, *WHOLE)
        snapshot(tmp_path, NEW, "config.json")
        folder = write(tmp_path / "modelscope/models/Some/Reranker-0___6B", *WHOLE)
        assert find_folder(NAME) == folder

    def test_none_is_complete(self, tmp_path):
        one = snapshot(tmp_path, NEW, "config.json", "tokenizer.json")
        two = write(tmp_path / "modelscope/models/Some/Reranker-0___6B", "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            find_folder(NAME)
        assert f"{one} lacks model*.safetensors; {two} lacks config.json, tok" in str(caught.value)
        assert f"`hf download {NAME}`" in str(caught.value)

    def test_close_names(self, tmp_path):
        snapshot(tmp_path, NEW, *WHOLE)
        write(tmp_path / "modelscope/models/Qwen/Qwen3-Reranker-4B", *WHOLE)
        for name in ("some/reranker-0.6B", "Some/Reranker-0.6", "Reranker-0.6B"):
            with pytest.raises(CheckpointError, match=f"ModelScope, which have '{NAME}'"):
                find_folder(name)
        with pytest.raises(CheckpointError, match="which have 'Qwen/Qwen3-Reranker-4B'"):
            find_folder("Qwen/Qwen3-Rerank-4B")
        with pytest.raises(CheckpointError, match=r"ModelScope. pyrerank downloads nothing"):
            find_folder("other/thing")


class TestPaths:
    def test_home_and_slash(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "model", *WHOLE)
        for name in ("~/model", "~/model/", str(tmp_path / "model/"), tmp_path / "model"):
            assert find_folder(name) == tmp_path / "model"

    def test_what_of_a_path_exists(self, tmp_path):
        write(tmp_path / "models/other", *WHOLE)
        with pytest.raises(CheckpointError, match=f"{tmp_path}/models exists, which has other"):
            find_folder(tmp_path / "models/mine/checkpoint-100")

    @pytest.mark.parametrize("name", [r"C:\models\reranker", r".\model", "models\\reranker"])
    def test_of_windows(self, name):
        with pytest.raises(CheckpointError, match=r"told apart by /, not \\"):
            find_folder(name)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("model.gguf", "is of llama.cpp; give the checkpoint that it was made of"),
            ("model.safetensors", "is a file; give the folder that holds it, "),
            ("pytorch_model.bin", "can hold code and is not read"),
        ],
    )
    def test_a_file(self, tmp_path, file, message):
        write(tmp_path, file)
        with pytest.raises(CheckpointError, match=message):
            find_folder(tmp_path / file)


class TestNoCheckpoint:
    """What the folder is instead."""

    @pytest.mark.parametrize("config", [(), ("config.json", "tokenizer.json")])
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["model-q4_k_m.gguf"], "model-q4_k_m.gguf is of llama.cpp; give the checkpoint"),
            (["model.fp16.safetensors"], "model.fp16.safetensors is a variant, .* rename it to"),
            (["pytorch_model.bin", "README.md"], "pytorch_model.bin can hold code .* save_pret"),
            (["pytorch_model-00001-of-00002.bin"], "can hold code"),
            (["consolidated.safetensors"], "is in the layout of the training code"),
            (["model.onnx", "model.onnx_data"], "model.onnx is of ONNX"),
            (["openvino_model.bin", "openvino_model.xml"], "openvino_model.bin is of OpenVINO"),
            (["quant_model_weight_w8a8.safetensors"], "is quantised by ModelSlim; give the"),
            (["trainer_state.json", "training_args.bin", "optimizer.pt"], "git lfs pull"),
        ],
    )
    def test_other_weights(self, tmp_path, config, names, message):
        write(tmp_path / "model", *config, *names)
        if config:
            (tmp_path / "model/config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
        what = "holds no weights: no model" if config else "has no config.json; give the folder"
        with pytest.raises(CheckpointError, match=f"{what}.*{message}"):
            open_checkpoint(tmp_path / "model")

    def test_empty(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"has no config\.json.*: the folder is empty"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("config", [(), ("config.json",)])
    def test_an_adapter(self, tmp_path, config):
        write(tmp_path, "adapter_model.safetensors", *config)
        text = '{"base_model_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}'
        (tmp_path / "adapter_config.json").write_text(text)
        if config:
            (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path)
        command = f"pyrerank convert Qwen/Qwen3-Reranker-0.6B TARGET --merge-lora {tmp_path}"
        assert command in str(caught.value)

    def test_an_adapter_beside_whole_weights(self, tmp_path):
        write(tmp_path, *WHOLE, "adapter_model.safetensors", "adapter_config.json")
        (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
        with pytest.raises(CheckpointError, match="has an adapter beside its weights, which tra"):
            open_checkpoint(tmp_path)

    def test_around_a_checkpoint(self, tmp_path):
        write(tmp_path / "run/checkpoint-20", *WHOLE)
        write(tmp_path / "run/checkpoint-100", *WHOLE)
        write(tmp_path / "run/runs", "events")
        with pytest.raises(CheckpointError, match=r"give \S*checkpoint-100 or \S*checkpoint-20, w"):
            open_checkpoint(tmp_path / "run")
        write(tmp_path / "run/checkpoint-20/1_Pooling", "readme")
        with pytest.raises(CheckpointError, match=f"give {tmp_path}/run/checkpoint-20, where"):
            open_checkpoint(tmp_path / "run/checkpoint-20/1_Pooling")
        folder = snapshot(tmp_path, NEW, *WHOLE)
        with pytest.raises(CheckpointError, match=f"give {folder}, where there is one"):
            open_checkpoint(folder.parents[1])

    @pytest.mark.parametrize("name", WHOLE)
    def test_a_pointer_of_git_lfs(self, tmp_path, name):
        write(tmp_path, "config.json", "tokenizer.json")
        save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1191586416\n"
        (tmp_path / name).write_text(pointer)
        said = f"{re.escape(name)} is a git-lfs pointer, not the file itself: run `git lfs pull` in"
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(tmp_path).tokenizer()


CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "vocab_size": 8, "hidden_size": 4,
    "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


def index(folder: Path, **files: str) -> None:
    text = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(text)


def weights(folder: Path, **files: list[str]) -> None:
    """Writes files of weights, which hold tensors of these names; ``_`` stands for a dash."""
    for number, (name, tensors) in enumerate(files.items()):
        file = folder / (name.replace("_", "-") + ".safetensors")
        save_file({tensor: torch.full((1,), 1.0 + number) for tensor in tensors}, file)


class TestWeightFiles:
    def test_the_whole_file_before_a_stale_index(self, tmp_path):
        weights(tmp_path, model=["a", "b"], model_00001_of_00002=["a"])
        index(tmp_path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
        assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
        assert open_weights(tmp_path, {})["a"].tensor("a") == 1.0

    def test_what_the_index_names_and_nothing_else(self, tmp_path):
        weights(tmp_path, model_00001_of_00001=["a"], model_00001_of_00002=["b"], old=["c"])
        index(tmp_path, a="model-00001-of-00001.safetensors")
        assert list(open_weights(tmp_path, {})) == ["a"]

    def test_a_set_without_index(self, tmp_path):
        weights(tmp_path, model_00001_of_00002=["a"], model_00002_of_00002=["b"], x=["c"])
        assert sorted(open_weights(tmp_path, {})) == ["a", "b"]
        (tmp_path / "model-00001-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match="names absent files: model-00001-of-00002"):
            weight_files(tmp_path)

    def test_two_files_with_one_name(self, tmp_path):
        weights(tmp_path, model_00001_of_00002=["a", "b"], model_00002_of_00002=["b"])
        with pytest.raises(CheckpointError, match=r"model-00001.* and model-00002.* both hold b;"):
            open_weights(tmp_path, {})

    def test_an_index_that_is_not_true(self, tmp_path):
        weights(tmp_path, one=["a"], two=["b"])
        index(tmp_path, a="one.safetensors", b="one.safetensors", c="two.safetensors")
        with pytest.raises(CheckpointError, match=r"one.* lacks b, which .*two.* lacks c"):
            open_weights(tmp_path, {})
        (tmp_path / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(CheckpointError, match="has no weight_map"):
            weight_files(tmp_path)

    def test_no_tensors(self, tmp_path):
        save_file({}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="have no tensors"):
            open_weights(tmp_path, {})

    def test_a_file_that_config_json_names(self, tmp_path):
        write(tmp_path, *WHOLE)
        config = {**CONFIG, "transformers_weights": "other.safetensors"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"sets transformers_weights to 'other.safetens"):
            open_checkpoint(tmp_path)


class TestQuantised:
    @pytest.mark.parametrize(
        ("name", "dtype", "config", "message"),
        [
            ("weight", torch.int8, {}, "int8 by an unknown tool"),
            ("weight_scale", torch.float32, {}, "scaled by compressed-tensors"),
            ("weight_packed", torch.int32, {}, "int32 by compressed-tensors"),
            ("weight_offset", torch.bfloat16, {}, "scaled by ModelSlim"),
            ("qweight", torch.int32, {}, "int32 by GPTQ or AWQ"),
            ("weight.absmax", torch.uint8, {}, "uint8 by bitsandbytes"),
            ("weight", torch.float8_e4m3fn, {}, "float8_E4M3 by an unknown tool"),
            ("weight", torch.int8, {"quantization_config": {"quant_method": "tool"}}, "int8 by to"),
        ],
    )
    def test_is_told_from_the_tensors(self, tmp_path, name, dtype, config, message):
        tensors = {f"a.{name}": torch.zeros(1, dtype=dtype), "b": torch.zeros(1)}
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"holds quantised weights \({message}"):
            open_weights(tmp_path, config)
