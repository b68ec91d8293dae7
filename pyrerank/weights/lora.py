"""LoRA adapters in PEFT's format, which are merged into a checkpoint's tensors as these are read.

An adapter may hold factors of what is added to the weight of a linear layer, W + scale * B A, and
whole tensors that were trained beside them (``modules_to_save``).  Anything else that it asks for
is refused by its name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from pyrerank.errors import CheckpointError
from pyrerank.weights.checkpoint import VISION, Checkpoint
from pyrerank.weights.find import read_json
from pyrerank.weights.modules import Modules
from pyrerank.weights.tensors import TensorFile, refuse

PREFIX = "base_model.model."  # begins every name, because PEFT wraps the model
# A layer's name begins so in the model with a head, in that without, and in sentence-transformers.
OUTER = r"(?:0\.)?(?:auto_model\.|model\.)?(?:model\.)?"
LAYER = {
    "qwen3": re.compile(OUTER + r"((?:layers|embed_tokens|norm)\b.*)"),
    # in other releases the decoder had a "model" of its own, or the model had none
    "qwen3-vl": re.compile(
        OUTER + r"(?:language_model\.(?:model\.)?((?:layers|embed_tokens|norm)\b.*)|visual\.(.*))"
    ),
}

# Merging follows these settings of adapter_config.json.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
READ |= {"modules_to_save", "init_lora_weights"}
# These were for training, or the tensors' names repeat them.  PEFT takes fan_in_fan_out as false,
# whatever it says, for the kind of linear layer that these models have.
UNUSED = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"}
UNUSED |= {"peft_version", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out"}
UNUSED |= {"layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"}
UNUSED |= {"eva_config"}
# All others must be off, including those of later releases of PEFT.
OFF: tuple[object, ...] = (None, False, "none", [], {})
# Other initialisations than these change the weights that the adapter is added to.
KEEPS_WEIGHTS: tuple[object, ...] = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Update:
    """scale * b a, to be added to a weight [out, in]: a [r, in], b [out, r]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are read as if an adapter had been merged into its files."""

    updates: Mapping[str, Update]  # what is added to a tensor, by the tensor's name
    replaced: Mapping[str, torch.Tensor]  # what is in place of a tensor, by the tensor's name

    def tensor(self, name: str) -> torch.Tensor:
        """The merged tensor, which is summed in float32 and rounded once, to the stored dtype."""
        stored = super().tensor(name)
        if name in self.replaced:
            return self.replaced[name].to(stored.dtype)
        if name not in self.updates:
            return stored
        update = self.updates[name]
        a, b = update.a.float(), update.b.float()
        return torch.addmm(stored.float(), b, a, alpha=update.scale).to(stored.dtype)

    def _as_stored(self, name: str) -> bool:
        return name not in self.updates and name not in self.replaced

    def classifier_vector(self, yes: int, no: int | None) -> tuple[torch.Tensor, float]:
        """As `Checkpoint.classifier_vector`, merged, and never rounded to less than float32."""
        whole = self.classifier or "score.weight" in self.replaced

        def vector(rows: torch.Tensor) -> torch.Tensor:
            if whole:
                return rows[0].float()
            return rows[yes].float() - (0 if no is None else rows[no].float())

        head = "score.weight" if whole else "lm_head.weight"
        w, bias = super().classifier_vector(yes, no)
        if head in self.replaced:
            w = vector(self.replaced[head])
        if head in self.updates:
            update = self.updates[head]
            w = w + update.scale * (vector(update.b) @ update.a.float())
        return w, bias


def merge(base: Checkpoint, adapter: str | os.PathLike[str]) -> MergedCheckpoint:
    """``base`` with an adapter merged into it, whose folder PEFT's ``save_pretrained`` wrote.

    `CheckpointError` is raised if a file is absent or damaged, or the adapter asks for more than a
    sum, or does not fit ``base``.
    """
    folder = Path(adapter).expanduser()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote, with "
                "safetensors"
            )
    config = read_json(folder / "adapter_config.json")
    cannot = f"{folder} cannot be merged exactly:"
    refuse(f"{cannot} adapter_config.json sets", _unmergeable(config))
    others = _modules(base, folder)
    refuse(f"{cannot} its modules.json asks for other than {base.path}:", others)
    file = TensorFile(folder / "adapter_model.safetensors")
    tensors = {name: file.tensor(name).clone() for name in file.shapes}
    file.check()
    updates: dict[str, Update] = {}
    replaced: dict[str, torch.Tensor] = {}
    problems = []
    for key, tensor in tensors.items():
        module, _, kind = key.removeprefix(PREFIX).partition(".lora_")
        other = f"{PREFIX}{module}.lora_{'B' if kind == 'A.weight' else 'A'}.weight"
        name = _of_base(base, module)
        try:
            if not key.startswith(PREFIX) or kind not in ("", "A.weight", "B.weight"):
                raise ValueError("is nothing that can be merged")
            if kind and other not in tensors:
                raise ValueError(f"has no {other} beside it")
            if ".base_layer." in module:
                _check_base_layer(base, name, tensor)
            elif not kind:
                _check_saved(base, name, module, tensor, config)
                replaced[name] = tensor
            elif kind == "A.weight":
                scale = _scale(module, len(tensor), config)
                updates[f"{name}.weight"] = _update(base, name, tensor, tensors[other], scale)
            if not tensor.isfinite().all():
                raise ValueError("holds a NaN or an infinity")
        except ValueError as error:
            problems.append(f"{key} {error}")
    refuse(f"{cannot} adapter_model.safetensors does not fit {base.path}:", problems)
    if not updates:
        raise CheckpointError(f"{folder}: adapter_model.safetensors holds no LoRA weights")
    return MergedCheckpoint(**vars(base), updates=updates, replaced=replaced)


def _unmergeable(config: Mapping[str, Any]) -> list[str]:
    """Settings of ``adapter_config.json`` that a sum of matrices cannot stand for."""
    bad = [key for key in sorted(config.keys() - READ - UNUSED) if config[key] not in OFF]
    if config.get("peft_type") != "LORA":
        bad.append("peft_type")
    if config.get("init_lora_weights") not in KEEPS_WEIGHTS:
        bad.append("init_lora_weights")
    bad += [key for key in ("r", "lora_alpha") if not isinstance(config.get(key), (int, float))]
    return [f"{key} to {config.get(key)!r}" for key in bad]


def _modules(base: Checkpoint, folder: Path) -> list[str]:
    """The differences between ``base`` and the files that sentence-transformers writes beside an
    adapter."""
    if not (folder / "modules.json").is_file():
        return []

    def said(modules: Modules) -> dict[str, Any]:
        steps = [
            step and replace(step, file=Path(blake2b(step.file.read_bytes()).hexdigest()))
            for step in modules.steps
        ]
        return {**vars(modules), "steps": steps}

    theirs, ours = said(Modules.read(folder)), said(base.modules)
    problems = [
        f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in ours if theirs[key] != ours[key]
    ]
    if problems:
        problems.append(
            f"copy modules.json, and the files and folders that go with it, from {folder} into a "
            "copy of that folder, and merge into that"
        )
    return problems


def _of_base(base: Checkpoint, module: str) -> str:
    """The name in ``base`` of a module, or a parameter, that the adapter was trained on."""
    match = LAYER[base.family].fullmatch(module)
    if match is None:
        return re.sub(r"^0\.(?=lm_head|score)", "", module)
    of_decoder, *of_vision = match.groups()
    return base.decoder + of_decoder if of_decoder else base.root + VISION + of_vision[0]


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The scale of a module's update, which PEFT looks up by the module's name in the adapter."""
    said = _of_module(config.get("rank_pattern"), module, config["r"])
    alpha: float = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    if rank != said:
        raise ValueError(f"has rank {rank}, not {said}, which adapter_config.json says")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _update(base: Checkpoint, name: str, a: torch.Tensor, b: torch.Tensor, scale: float) -> Update:
    shape = _shape(base, f"{name}.weight", trained_whole=False)
    if a.dim() != 2 or b.dim() != 2 or (len(b), a.shape[1]) != shape or b.shape[1] != len(a):
        raise ValueError(f"is {tuple(a.shape)}, with B {tuple(b.shape)}, for a weight {shape}")
    return Update(a, b, scale)


def _check_saved(
    base: Checkpoint, name: str, module: str, tensor: torch.Tensor, config: Mapping[str, Any]
) -> None:
    saved = tuple(config.get("modules_to_save") or ())
    if not module.rpartition(".")[0].endswith(saved):  # as PEFT chooses them
        raise ValueError("belongs to no module of modules_to_save")
    shape = _shape(base, name, trained_whole=True)
    if tensor.shape != shape:
        raise ValueError(f"is {tuple(tensor.shape)}, not {shape}")


def _check_base_layer(base: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """Checks a layer's own weight, which PEFT may save beside its factors."""
    stored = name.replace(".base_layer.", ".")
    if stored == "lm_head.weight" and base.tied and stored not in base.tensors:
        stored = next(key for key in base.tensors if key.endswith("embed_tokens.weight"))
    if stored not in base.tensors or not torch.equal(base.tensor(stored).to(tensor.dtype), tensor):
        raise ValueError("is not the weight that it is to be merged into")


def _shape(base: Checkpoint, name: str, *, trained_whole: bool) -> tuple[int, ...]:
    """The shape of the tensor that ``name`` stands for in ``base``."""
    size = base.config.hidden_size
    whole = not base.classifier and base.task != "embed"  # it has an output matrix
    if base.tied and whole and name.endswith("embed_tokens.weight"):
        raise ValueError("changes the embedding, which is the output matrix, too, in this model")
    if name == "lm_head.weight" and whole:
        return base.config.vocab_size, size  # of a tied model, no tensor has this name
    if name == "score.weight" and trained_whole and base.task != "embed":
        return 1, size
    if name not in base.tensors:
        raise ValueError("is for a layer that it does not have")
    return base.tensors[name].shapes[name]


def _of_module(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern, a regular expression, that the end of ``module`` fits."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
