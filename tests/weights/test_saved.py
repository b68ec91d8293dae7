"""Checkpoints as other tools save them: the vectors and scores are those tools' own."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import write_random
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, models
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Qwen3VLForConditionalGeneration,
)

from pyrerank import CheckpointError, Embedder, Reranker, convert
from pyrerank.weights.checkpoint import open_checkpoint
from pyrerank.weights.lora import merge

pytestmark = pytest.mark.slow

TEXTS = ["Beijing is the capital of China.", "Gravity attracts bodies with mass."]
TOLERANCE = 1e-5  # float32 rounding of a few layers
TEXT, VL = "qwen3-reranker", "qwen3-vl-reranker"
HEADED = {TEXT: AutoModelForCausalLM, VL: Qwen3VLForConditionalGeneration}
FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    @cache
    def get(family: str, tied: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        write_random(folder, family, tied=tied, seed=3, num_hidden_layers=2)
        return folder

    return get


@pytest.fixture(scope="module")
def bare(checkpoint, tmp_path_factory):
    """As AutoModel loads it, and as it saves it."""

    @cache
    def get(family: str) -> tuple[torch.nn.Module, Path]:
        model = AutoModel.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
        folder = tmp_path_factory.mktemp("bare")
        save(model, checkpoint(family), folder)
        return model, folder

    return get


def save(model: torch.nn.Module, source: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


@torch.no_grad()
def vectors(model: torch.nn.Module, engine: Embedder) -> torch.Tensor:
    """Of `TEXTS`, by a model of transformers without head."""
    prompts = engine.core.encoder.encode([engine.core.encoder.input("x", text) for text in TEXTS])
    rows = [model(torch.tensor([p.ids])).last_hidden_state[0, -1] for p in prompts]
    return F.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
def logits(model: torch.nn.Module, engine: Reranker) -> torch.Tensor:
    """Of "q" with `TEXTS`, by a classifier of transformers."""
    prompts = engine.core.encoder.encode(
        [engine.core.encoder.pair("x", "q", text) for text in TEXTS]
    )
    inputs = [{"input_ids": torch.tensor([p.ids])} for p in prompts]
    return torch.stack([model(**each).logits.flatten()[-1] for each in inputs])


def same(got: object, want: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(got), want, rtol=0, atol=TOLERANCE)


def scored(engine: Reranker) -> torch.Tensor:
    return torch.tensor([result.logit for result in engine.details("q", TEXTS)])


def sentence_transformer(source: Path, mode: str) -> SentenceTransformer:
    transformer = models.Transformer(str(source))
    pooling = models.Pooling(96, pooling_mode=mode)
    modules = [transformer, pooling, models.Normalize()]
    return SentenceTransformer(modules=modules, device="cpu").float()


class TestWithoutHead:
    @pytest.mark.parametrize("family", [TEXT, VL])
    def test_by_auto_model(self, bare, family):
        model, folder = bare(family)
        [name] = json.loads((folder / "config.json").read_text())["architectures"]
        assert name == ("Qwen3VLModel" if family == VL else "Qwen3Model")
        assert not any(key.startswith("model.") for key in load_file(folder / "model.safetensors"))
        engine = Embedder(folder, dtype="float32")
        assert engine.core.checkpoint.task == "embed"
        same(engine.embed(TEXTS), vectors(model, engine))

    @pytest.mark.parametrize("family", [TEXT, VL])
    def test_a_reranker_needs_the_head(self, bare, family):
        _, folder = bare(family)
        said = "is published for embedding: use Embedder.*saved as Qwen3(VL)?Model, without the out"
        with pytest.raises(CheckpointError, match=said):
            Reranker(folder)

    def test_by_sentence_transformers(self, checkpoint, tmp_path):
        model = sentence_transformer(checkpoint(TEXT), "lasttoken")
        model.save_pretrained(str(tmp_path / "model"))
        config = json.loads((tmp_path / "model/config.json").read_text())
        assert config["architectures"] == ["Qwen3Model"]
        want = model.encode(TEXTS, convert_to_tensor=True)
        same(Embedder(tmp_path / "model", dtype="float32").embed(TEXTS), want)


class TestClassifierOfSwift:
    """ms-swift puts a ``score`` on the class with the vocabulary's head, and takes that away."""

    @pytest.mark.parametrize("family", [TEXT, VL])
    def test_scores(self, checkpoint, tmp_path, family):
        source = checkpoint(family)
        model = HEADED[family].from_pretrained(source, dtype=torch.float32, num_labels=1).eval()
        model.score = torch.nn.Linear(96, 1, bias=False)
        torch.nn.init.normal_(model.score.weight, std=0.1)
        model.lm_head = torch.nn.Identity()
        save(model, source, tmp_path)
        names = load_file(tmp_path / "model.safetensors").keys()
        config = json.loads((tmp_path / "config.json").read_text())
        assert "score.weight" in names and "lm_head.weight" not in names
        assert config["architectures"][0].endswith(("ForCausalLM", "ForConditionalGeneration"))
        engine = Reranker(tmp_path, dtype="float32")
        assert engine.core.checkpoint.task == "score"

        def classify(**inputs: torch.Tensor) -> object:
            hidden = model.base_model(**inputs).last_hidden_state
            return type("Out", (), {"logits": model.score(hidden)[0]})

        same(scored(engine), logits(classify, engine))
        with pytest.raises(CheckpointError, match="is a sequence classifier, which scores pairs"):
            Embedder(tmp_path)

    def test_several_labels(self, checkpoint, tmp_path):
        shutil.copytree(checkpoint(VL), tmp_path / "model")
        file = tmp_path / "model/model.safetensors"
        save_file(load_file(file) | {"score.weight": torch.ones(2, 96)}, file)
        with pytest.raises(CheckpointError, match=r"score.weight is \(2, 96\), not \(1, 96\)"):
            Reranker(tmp_path / "model")


def stale_index(folder: Path) -> None:
    weight_map = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_stale_index_beside_the_whole_file(checkpoint, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint(TEXT), source)
    tensors = load_file(source / "model.safetensors")
    shard = {name: tensor * 0 for name, tensor in tensors.items()}
    save_file(shard, source / "model-00001-of-00002.safetensors", {"format": "pt"})
    stale_index(source)
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    engine = Embedder(source, dtype="float32")
    same(engine.embed(TEXTS), vectors(model, engine))


# Layers of each family, in the names of the model without head.
TARGETS = {
    TEXT: ["q_proj", "v_proj", "down_proj"],
    VL: ["q_proj", "up_proj", "linear_fc1", "qkv"],
}


def adapted(model: torch.nn.Module, family: str, **settings: object) -> PeftModel:
    """With an adapter that has learned something."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS[family], **settings)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


class TestAdaptersOfEmbedders:
    @pytest.mark.parametrize("base", ["bare", "headed"])
    @pytest.mark.parametrize("trained", ["bare", "headed"])
    @pytest.mark.parametrize("family", [TEXT, VL])
    def test_names_with_and_without_the_head(
        self, checkpoint, bare, tmp_path, family, trained, base
    ):
        kind = AutoModel if trained == "bare" else HEADED[family]
        model = adapted(kind.from_pretrained(checkpoint(family), dtype=torch.float32), family)
        model.save_pretrained(tmp_path / "adapter")
        names = load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
        assert any(name.startswith("base_model.model.model.") for name in names) == (
            trained == "headed"
        )
        folder = bare(family)[1] if base == "bare" else checkpoint(family)
        engine = Embedder(merge(open_checkpoint(folder), tmp_path / "adapter"), dtype="float32")
        merged = model.merge_and_unload()
        want = vectors(merged if trained == "bare" else merged.model, engine)
        same(engine.embed(TEXTS), want)
        without = vectors(bare(family)[0], engine)
        assert (want - without).abs().max() > 0.01

    @pytest.mark.parametrize("family", [TEXT, VL])
    def test_converted(self, checkpoint, bare, tmp_path, family):
        model = AutoModel.from_pretrained(checkpoint(family), dtype=torch.float32)
        model = adapted(model, family, task_type=TaskType.FEATURE_EXTRACTION, use_rslora=True)
        model.save_pretrained(tmp_path / "adapter")
        source = Path(shutil.copytree(bare(family)[1], tmp_path / "source"))
        (source / "config_sentence_transformers.json").write_text("{}")
        done = convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        vl = family == VL
        assert done.compared == f"vectors of {4 if vl else 3} inputs" and done.difference == 0
        assert done.architecture == ("Qwen3VLModel" if vl else "Qwen3Model")
        for name in ("config.json", "config_sentence_transformers.json", "tokenizer.json"):
            assert (tmp_path / "target" / name).read_bytes() == (source / name).read_bytes()
        engine = Embedder(tmp_path / "target", dtype="float32")
        same(engine.embed(TEXTS), vectors(model.merge_and_unload(), engine))
        again = AutoModel.from_pretrained(tmp_path / "target", dtype=torch.float32).eval()
        same(engine.embed(TEXTS), vectors(again, engine))

    def test_names_in_sentence_transformers(self, checkpoint, bare, tmp_path):
        """Where it was not the model that was wrapped, but the module, or all of it."""
        model = adapted(AutoModel.from_pretrained(checkpoint(TEXT), dtype=torch.float32), TEXT)
        model.save_pretrained(tmp_path / "adapter")
        base = open_checkpoint(bare(TEXT)[1])
        want = vectors(model.merge_and_unload(), Embedder(base, dtype="float32"))
        file = tmp_path / "adapter/adapter_model.safetensors"
        tensors = load_file(file)
        for outer in ("0.auto_model.", "0.model.", "auto_model.model."):
            renamed = {
                name.replace("base_model.model.", f"base_model.model.{outer}"): tensor
                for name, tensor in tensors.items()
            }
            save_file(renamed, file)
            engine = Embedder(merge(base, tmp_path / "adapter"), dtype="float32")
            same(engine.embed(TEXTS), want)

    def test_a_base_with_a_head_keeps_it(self, checkpoint, tmp_path):
        """What the adapter is for decides, where the base could be either."""
        source = checkpoint(TEXT)
        model = adapted(
            AutoModel.from_pretrained(source, dtype=torch.float32), TEXT,
            task_type=TaskType.FEATURE_EXTRACTION,
        )  # fmt: skip
        model.save_pretrained(tmp_path / "adapter")
        done = convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        assert done.architecture == "Qwen3ForCausalLM" and "inputs" in done.compared
        engine = Embedder(tmp_path / "target", dtype="float32")
        same(engine.embed(TEXTS), vectors(model.merge_and_unload(), engine))

    @pytest.mark.parametrize("mode", ["lasttoken", "mean"])
    def test_saved_by_sentence_transformers(self, checkpoint, tmp_path, mode):
        """Beside the adapter lie files that say what is done with the model's output."""
        model = sentence_transformer(checkpoint(TEXT), "lasttoken")
        model.save_pretrained(str(tmp_path / "base"))
        model = sentence_transformer(tmp_path / "base", mode)
        model[0].model = adapted(model[0].model, TEXT)
        model.save_pretrained(str(tmp_path / "adapter"))
        assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
        if mode == "mean":
            with pytest.raises(CheckpointError, match=r"asks for other than .*: pooling 'mean'"):
                convert(tmp_path / "base", tmp_path / "target", merge_lora=tmp_path / "adapter")
            return
        convert(tmp_path / "base", tmp_path / "target", merge_lora=tmp_path / "adapter")
        want = model.encode(TEXTS, convert_to_tensor=True)
        same(Embedder(tmp_path / "target", dtype="float32").embed(TEXTS), want)
        again = SentenceTransformer(str(tmp_path / "target"), device="cpu").float()
        got = again.encode(TEXTS, convert_to_tensor=True)
        same(got, want)

    def test_the_folder_itself(self, checkpoint, tmp_path):
        model = AutoModel.from_pretrained(checkpoint(TEXT), dtype=torch.float32)
        adapted(model, TEXT).save_pretrained(tmp_path / "adapter")
        said = f"is an adapter for {checkpoint(TEXT)}: merge the two with `pyrerank convert"
        with pytest.raises(CheckpointError, match=said):
            Embedder(tmp_path / "adapter")


class TestAdaptersOfClassifiers:
    def test_with_a_score_of_its_own(self, checkpoint, tmp_path):
        source = checkpoint(TEXT)
        torch.manual_seed(7)
        model = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, num_labels=1, pad_token_id=151643
        )
        model = adapted(model, TEXT, task_type=TaskType.SEQ_CLS)
        model.save_pretrained(tmp_path / "adapter")
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        engine = Reranker(tmp_path / "target", dtype="float32")
        same(scored(engine), logits(model.merge_and_unload(), engine))
