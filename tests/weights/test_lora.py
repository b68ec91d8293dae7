"""Adapters in PEFT's format: what is merged scores as transformers with the adapter unmerged."""

import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import NO, YES, write_random
from conversions import KINDS, QUERY, TEXTS, TOLERANCE, documents, tensors
from published import Published
from safetensors.torch import load_file, save_file

from pyrerank import CheckpointError, Reranker, convert

pytestmark = pytest.mark.slow

# Modules of the decoder and of the vision tower, by KINDS; each published matrix is trained once.
TRAINED = {
    "qwen3-reranker": [
        f"model.layers.{n}.{m}" for n, m in enumerate(["self_attn.q_proj", "self_attn.v_proj"])
    ] + [f"model.layers.2.mlp.{m}_proj" for m in ("gate", "up", "down")],
    "qwen3-vl-reranker": [
        "model.language_model.layers.0.self_attn.k_proj",
        "model.language_model.layers.1.self_attn.o_proj",
        "model.visual.blocks.0.attn.qkv",
        "model.visual.merger.linear_fc1",
    ],
}  # fmt: skip
# As PEFT 0.21 writes it for an adapter without anything special.
SETTINGS: dict[str, object] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": None, "base_model_name_or_path": "Qwen/Qwen3-Reranker-0.6B", "bias": "none",
    "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 12,
    "lora_bias": False, "lora_dropout": 0.05, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["v_proj", "q_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes each kind of checkpoint once."""

    @cache
    def get(kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        family, *ties = kind.split()
        write_random(folder, family, tied=ties == ["tied"], dtype=dtype, seed=len(kind))
        return folder

    return get


def write_adapter(
    folder: Path,
    base: Path,
    ranks: dict[str, int],
    beside: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: object,
) -> Factors:
    """Writes an adapter with random factors of these ranks, and returns them.

    ``beside`` are tensors with other names, after PEFT's prefix.
    """
    stored = tensors(base)
    shapes = {module: stored[f"{module}.weight"].shape for module in ranks if module != "lm_head"}
    factors: Factors = {}
    for module, rank in ranks.items():
        rows, columns = shapes.get(module, (151936, 96))
        a = (torch.randn(rank, columns) / math.sqrt(columns)).to(dtype)
        factors[module] = a, (torch.randn(rows, rank) / 4).to(dtype)
    named = dict(beside or {})
    for module, pair in factors.items():
        named |= {f"{module}.lora_{x}.weight": t for x, t in zip("AB", pair, strict=True)}
    folder.mkdir()
    named = {f"base_model.model.{name}": tensor for name, tensor in named.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return factors


def attach(model: torch.nn.Module, factors: Factors, scale: float) -> None:
    """Adds scale * B (A x) to the output of each layer: the adapter as it was trained, unmerged."""
    for module, (a, b) in factors.items():

        def add(_, args, out, a=a, b=b):
            return out + scale * F.linear(F.linear(args[0], a.float()), b.float())

        model.get_submodule(module).register_forward_hook(add)


class TestAdapters:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [(KINDS[0], torch.float32), (KINDS[1], torch.bfloat16), (KINDS[2], torch.float32)],
    )
    def test_scores_of_transformers_unmerged(self, checkpoint, tmp_path, kind, dtype):
        source = checkpoint(kind, torch.float32)
        modules = [*TRAINED[kind.split()[0]], "lm_head"]
        factors = write_adapter(
            tmp_path / "adapter", source, dict.fromkeys(modules, 4), dtype=dtype
        )
        done = convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        assert done.difference == 0
        given, published = zip(*documents(kind), strict=True)
        scores = Reranker(tmp_path / "target", dtype="float32").score(QUERY, given)
        reference = Published(source)
        without = [reference.score(QUERY, document) for document in published]
        attach(reference.model, factors, 12 / 4)
        want = [reference.score(QUERY, document) for document in published]
        assert scores == pytest.approx(want, abs=TOLERANCE)
        assert scores != pytest.approx(without, abs=0.01)

    def test_ranks_and_scales(self, checkpoint, tmp_path):
        source = checkpoint(KINDS[0], torch.float32)
        q, v, gate, up, down = TRAINED["qwen3-reranker"]
        factors = write_adapter(
            tmp_path / "adapter", source, {q: 4, v: 2, gate: 9, up: 4, down: 9},
            rank_pattern={"v_proj": 2, r"model.layers.\d.mlp.(gate|down)_proj": 9},
            alpha_pattern={"^model.layers.2.mlp.gate_proj": 5, "proj": 7, "up_proj": 100},
            use_rslora=True, fan_in_fan_out=True,
        )  # fmt: skip
        scales = {q: 12 / 2, v: 12 / 2**0.5, gate: 5 / 3, up: 100 / 2, down: 12 / 3}
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        before, after = tensors(source), tensors(tmp_path / "target")
        after.pop("score.weight")
        for name, got in after.items():
            want = before[name].double()
            if (module := name.removesuffix(".weight")) in factors:
                a, b = factors[module]
                want = want + scales[module] * (b.double() @ a.double())
                assert (want - before[name]).abs().max() > 0.1
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6, msg=name)

    def test_rounded_once_to_the_stored_dtype(self, checkpoint, tmp_path):
        source = checkpoint(KINDS[0])
        modules = TRAINED["qwen3-reranker"]
        factors = write_adapter(
            tmp_path / "adapter", source, dict.fromkeys(modules, 4), dtype=torch.bfloat16
        )
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        before, after = tensors(source), tensors(tmp_path / "target")
        for module, (a, b) in factors.items():
            want = before[f"{module}.weight"].double() + 3 * (b.double() @ a.double())
            got = after[f"{module}.weight"]
            assert got.dtype == torch.bfloat16
            # half of the last of 8 bits, and what float32 adds to it
            bound = want.abs() * 2**-8 + 1e-6
            assert ((got.double() - want).abs() <= bound * (1 + 1e-6)).all()

    def test_modules_that_were_trained_whole(self, checkpoint, tmp_path):
        source = checkpoint(KINDS[1], torch.float32)
        head, norm = torch.randn(151936, 96), torch.randn(96)
        beside = {"lm_head.weight": head, "model.norm.weight": norm}
        module = TRAINED["qwen3-reranker"][0]
        write_adapter(
            tmp_path / "adapter", source, {module: 4}, beside, modules_to_save=["lm_head", "norm"]
        )
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        after = tensors(tmp_path / "target")
        assert torch.equal(after["score.weight"][0], head[YES] - head[NO])
        assert torch.equal(after["model.norm.weight"], norm)

    @pytest.mark.parametrize("kind", KINDS[:2])
    def test_the_output_matrix_that_peft_saves_beside_its_factors(self, checkpoint, tmp_path, kind):
        source = checkpoint(kind)
        stored = tensors(source)
        head = stored.get("lm_head.weight", stored["model.embed_tokens.weight"]).float()
        beside = {"lm_head.base_layer.weight": head}
        factors = write_adapter(tmp_path / "adapter", source, {"lm_head": 4}, beside)
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        after = tensors(tmp_path / "target")
        assert torch.equal(after["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
        a, b = (factor.double() for factor in factors["lm_head"])
        want = (head[[YES, NO]].double() + 3 * (b[[YES, NO]] @ a)).unbind()
        torch.testing.assert_close(
            after["score.weight"][0].double(), want[0] - want[1], rtol=1e-6, atol=1e-6
        )
        file = tmp_path / "adapter/adapter_model.safetensors"
        name = "base_model.model.lm_head.base_layer.weight"
        save_file(load_file(file) | {name: head + (torch.arange(len(head)) == 7)[:, None]}, file)
        shutil.rmtree(tmp_path / "target")
        self.refused(source, tmp_path, f"{name} is not the weight that it is to be merged into")

    @pytest.mark.parametrize("kind", ["qwen3-reranker tied", "qwen3-sequence-classification"])
    def test_a_head_that_was_trained_anew(self, checkpoint, tmp_path, kind):
        """As PEFT saves it for sequence classification, over a reranker or a classifier."""
        source = checkpoint(kind, torch.float32)
        score = torch.randn(1, 96) / 8
        factors = write_adapter(
            tmp_path / "adapter", source, dict.fromkeys(TRAINED["qwen3-reranker"], 4),
            {"score.weight": score}, modules_to_save=["classifier", "score"],
        )  # fmt: skip
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        assert torch.equal(tensors(tmp_path / "target")["score.weight"], score)
        reference = Published(source)
        attach(reference.model, factors, 12 / 4)
        scores = Reranker(tmp_path / "target", dtype="float32").score(QUERY, TEXTS)
        for text, got in zip(TEXTS, scores, strict=True):
            inputs = reference.prompt(QUERY, text).inputs()
            with torch.no_grad():
                hidden = reference.model.model(**inputs).last_hidden_state[0, -1]
            assert got == pytest.approx((score[0] @ hidden).sigmoid().item(), abs=TOLERANCE)

    def test_a_classifier_s_own_head_is_kept(self, checkpoint, tmp_path):
        source = checkpoint("qwen3-sequence-classification")
        write_adapter(tmp_path / "adapter", source, {TRAINED["qwen3-reranker"][0]: 4})
        convert(source, tmp_path / "target", merge_lora=tmp_path / "adapter")
        before, after = tensors(source), tensors(tmp_path / "target")
        assert torch.equal(before["score.weight"], after["score.weight"])

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"use_dora": True}, "use_dora to True"),
            ({"bias": "lora_only"}, "bias to 'lora_only'"),
            ({"lora_bias": True}, "lora_bias to True"),
            ({"trainable_token_indices": [3]}, r"trainable_token_indices to \[3\]"),
            ({"not_yet_invented": 1}, "not_yet_invented to 1"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights to 'pissa_niter_4'"),
            ({"peft_type": "LOHA"}, "peft_type to 'LOHA'"),
            ({"r": None}, "r to None"),
            ({"r": 8}, "q_proj.lora_A.weight has rank 4, not 8, which adapter_config.json says"),
        ],
    )
    def test_settings_that_a_sum_cannot_stand_for(self, checkpoint, tmp_path, setting, message):
        source = checkpoint(KINDS[0])
        write_adapter(tmp_path / "adapter", source, {TRAINED["qwen3-reranker"][0]: 4}, **setting)
        self.refused(source, tmp_path, f"cannot be merged exactly: .*{message}")

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            (".lora_magnitude_vector", torch.ones(128), "is nothing that can be merged"),
            (".lora_B.bias", torch.ones(128), "is nothing that can be merged"),
            (".bias", torch.ones(128), "belongs to no module of modules_to_save"),
            (".lora_A.weight", torch.ones(4, 97), r"is \(4, 97\), with B \(128, 4\), for a weight"),
            (".lora_A.weight", torch.full((4, 96), torch.nan), "holds a NaN or an infinity"),
            ("model.embed_tokens.lora_embedding_A", torch.ones(4, 9), "is nothing that can be"),
            ("model.layers.7.mlp.up_proj.lora_A.weight", torch.ones(4, 96), "has no base_model"),
            ("model.norm.weight", torch.ones(97), r"is \(97,\), not \(96,\)"),
            ("model.extra.norm.weight", torch.ones(96), "is for a layer that it does not have"),
            ("model.embed_tokens.weight", torch.ones(9, 96), "changes the embedding, which is the"),
            ("score.weight", torch.ones(2, 96), r"is \(2, 96\), not \(1, 96\)"),
        ],
    )
    def test_tensors_that_do_not_fit(self, checkpoint, tmp_path, name, tensor, message):
        source = checkpoint(KINDS[0])
        module = TRAINED["qwen3-reranker"][0]
        name = module + name if name.startswith(".") else name
        saved = ["norm", "embed_tokens", "score"]
        write_adapter(tmp_path / "adapter", source, {module: 4}, modules_to_save=saved)
        file = tmp_path / "adapter/adapter_model.safetensors"
        save_file(load_file(file) | {f"base_model.model.{name}": tensor}, file)
        self.refused(source, tmp_path, f"does not fit .*{name}.* {message}")

    def test_layers_that_it_does_not_have(self, checkpoint, tmp_path):
        source = checkpoint(KINDS[2])
        write_adapter(tmp_path / "adapter", source, {TRAINED["qwen3-vl-reranker"][0]: 4})
        self.refused(checkpoint(KINDS[0]), tmp_path, "k_proj.* is for a layer that it does not")

    @pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
    def test_files(self, checkpoint, tmp_path, file):
        source = checkpoint(KINDS[0])
        write_adapter(tmp_path / "adapter", source, {TRAINED["qwen3-reranker"][0]: 4})
        (tmp_path / "adapter" / file).write_bytes(b"{")
        self.refused(source, tmp_path, f"{file} is (not valid JSON|damaged)")
        (tmp_path / "adapter" / file).unlink()
        self.refused(source, tmp_path, f"has no {file}; give the folder that PEFT's")

    def test_nothing_to_merge(self, checkpoint, tmp_path):
        beside = {"model.norm.weight": torch.ones(96)}
        write_adapter(
            tmp_path / "adapter", checkpoint(KINDS[0]), {}, beside, modules_to_save=["norm"]
        )
        self.refused(checkpoint(KINDS[0]), tmp_path, "holds no LoRA weights")

    def refused(self, source: Path, folder: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            convert(source, folder / "target", merge_lora=folder / "adapter")
        assert not (folder / "target").exists()
