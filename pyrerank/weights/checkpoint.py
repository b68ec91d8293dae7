"""Checkpoints: from a folder, as models are published, to a configuration, a tokenizer and tensors.

This module knows nothing of prompts, or of how tensors are used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers

from pyrerank.errors import CheckpointError
from pyrerank.weights.config import DecoderConfig, VisionConfig
from pyrerank.weights.find import (
    find_folder,
    optional_json,
    read_json,
    refuse_pointer,
    weight_files,
)
from pyrerank.weights.modules import Modules, check_config
from pyrerank.weights.tensors import TensorFile, open_weights, refuse

# architecture in config.json -> family, and whether the head is the vector of a classifier
ARCHITECTURES = {
    "Qwen3ForCausalLM": ("qwen3", False),
    "Qwen3ForSequenceClassification": ("qwen3", True),
    "Qwen3VLForConditionalGeneration": ("qwen3-vl", False),
    "Qwen3VLForSequenceClassification": ("qwen3-vl", True),
    # sentence-transformers and AutoModel save models without a head
    "Qwen3Model": ("qwen3", False),
    "Qwen3VLModel": ("qwen3-vl", False),
}
DECODER = {"qwen3": "", "qwen3-vl": "language_model."}  # begins the decoder's names in a model
VISION = "visual."  # begins the vision tower's


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.  Its settings and the names of its tensors are read, and no weight."""

    path: Path
    architecture: str  # the one of ARCHITECTURES that config.json names
    family: str
    classifier: bool  # whether its head is the vector of a classifier, score.weight
    tied: bool  # whether the embedding is its output matrix
    config: DecoderConfig
    settings: Mapping[str, Any]  # what config.json says
    modules: Modules
    tensors: Mapping[str, TensorFile]  # a tensor's stored name -> the file that holds it
    # the files of the tensors that were given away as views
    mapped: set[TensorFile] = field(default_factory=set, kw_only=True, repr=False)

    @property
    def root(self) -> str:
        """The beginning of all names but the heads'; none if the model was saved without a head."""
        bare = f"{DECODER[self.family]}embed_tokens.weight" in self.tensors
        return "" if bare else "model."

    @property
    def decoder(self) -> str:
        """The beginning of the decoder's names."""
        return self.root + DECODER[self.family]

    @property
    def task(self) -> str | None:
        """What the model is for: "score" or "embed"; None if it does both."""
        if self.classifier or self.settings.get("pyrerank_task") == "score":
            return "score"
        if self.modules.task is not None:
            return self.modules.task
        headless = self.architecture.endswith("Model") or not self.root
        headless |= not self.tied and "lm_head.weight" not in self.tensors
        return "embed" if headless else None

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt that the model was made for."""
        text = self.settings.get("text_config", self.settings)
        # the defaults of transformers
        default = {"qwen3": 32768, "qwen3-vl": 128000}[self.family]
        return int(text.get("max_position_embeddings", default))

    def tokenizer(self) -> Tokenizer:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{self.path} has no tokenizer.json; copy it from the published model's files"
            )
        refuse_pointer(file)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error
        self._check_tokens(tokenizer)
        if self.modules.lower_case:
            before = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        return tokenizer

    def _check_tokens(self, tokenizer: Tokenizer) -> None:
        """Refuses other files that contradict tokenizer.json, or ask for other tokens."""
        config = optional_json(self.path / "tokenizer_config.json")
        known = config.get("added_tokens_decoder") or {}
        added = {token["content"]: int(id) for id, token in known.items()}
        added |= optional_json(self.path / "added_tokens.json")
        names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
        added |= {names[key]: self.settings[key] for key in names if key in self.settings}
        for token, id in added.items():
            if tokenizer.token_to_id(token) != id:
                raise CheckpointError(
                    f"{self.path}: tokenizer.json gives {token!r} the id "
                    f"{tokenizer.token_to_id(token)}, and the files beside it {id}; save the "
                    "tokenizer again, so that all of its files agree"
                )
        for key in ("split_special_tokens", "add_prefix_space"):
            if config.get(key):
                raise CheckpointError(
                    f"{self.path}: tokenizer_config.json sets {key}, which pyrerank does not follow"
                )

    def vision_config(self) -> VisionConfig:
        return VisionConfig.read(self.path, self.settings, self.config)

    def weights(
        self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype, vision: bool = False
    ) -> Callable[..., torch.Tensor]:
        """A function that reads tensors of the decoder, or with ``vision`` those of the tower.

        It takes names without the beginning that all of them share, and joins the tensors of
        several names along the first dimension.  A single tensor that is stored in ``dtype`` is a
        view of the mapped file, see `check_unchanged`; all else is a copy on the host.

        `CheckpointError` is raised if the checkpoint's tensors are not those of ``shapes``.
        """
        tower = self.root + VISION
        prefix = tower if vision else self.decoder
        heads = {"lm_head.weight"} | ({"score.weight", "score.bias"} if self.classifier else set())
        stored = {name for name in self.tensors if name.startswith(tower) == vision} - heads
        wanted = {prefix + name: tuple(shape) for name, shape in shapes.items()}
        problems = [f"missing {name}" for name in sorted(wanted.keys() - stored)]
        problems += [f"unexpected {name}" for name in sorted(stored - wanted.keys())]
        for name in sorted(wanted.keys() & stored):
            shape = self.tensors[name].shapes[name]
            if shape != wanted[name]:
                problems.append(f"{name} is {shape}, not {wanted[name]}")
        refuse(f"{self.path}: the tensors do not fit config.json:", problems)
        opened = functools.cache(TensorFile.open)  # a file is mapped once for all views

        def read(*names: str) -> torch.Tensor:
            full = [prefix + name for name in names]
            files = [self.tensors[name] for name in full]
            if len(names) == 1 and self._as_stored(full[0]):
                view: torch.Tensor = opened(files[0]).get_tensor(full[0])
                if view.dtype == dtype:
                    self.mapped.add(files[0])
                    return view
            parts = [self.tensor(name).to(dtype) for name in full]
            joined = torch.cat(parts) if len(parts) > 1 else parts[0]
            for file in files:
                file.check()
            return joined

        return read

    def classifier_vector(self, yes: int, no: int | None) -> tuple[torch.Tensor, float]:
        """The vector w, float32 [hidden_size], and the bias of logit = norm(hidden) . w + bias.

        A classifier stores them.  For any other checkpoint w = float32(head[yes]) -
        float32(head[no]), or the row of yes alone; head is ``lm_head.weight``, or, as transformers
        has it, too, the embedding table if a tied checkpoint stores no head.  `CheckpointError` is
        raised if the checkpoint has no head, or no such rows.
        """
        size = self.config.hidden_size
        if self.architecture.endswith("Model") or not self.root:
            raise CheckpointError(
                f"{self.path} is published for embedding: use Embedder, or pyrerank embed. It was "
                f"saved as {self.architecture}, without the output matrix that a score is made of"
            )
        if self.classifier:
            weight = self._rows("score.weight", (1, size), [0])[0]
            if "score.bias" not in self.tensors:
                return weight, 0.0
            return weight, self.tensor("score.bias").float().item()
        table = "lm_head.weight"
        if self.tied and table not in self.tensors:
            table = self.decoder + "embed_tokens.weight"
        ids = [yes] if no is None else [yes, no]
        if max(ids) >= self.config.vocab_size or min(ids) < 0:
            raise CheckpointError(
                f"{self.path}: the score is that of tokens {ids}, and the vocabulary ends at "
                f"{self.config.vocab_size - 1}"
            )
        rows = self._rows(table, (self.config.vocab_size, size), ids)
        return rows[0] - rows[1:].sum(0), 0.0

    def not_finite(self) -> list[str]:
        """The names of the tensors that hold a NaN or an infinity; raises as `check_unchanged`."""
        names = [name for name in sorted(self.tensors) if not self.tensor(name).isfinite().all()]
        for file in set(self.tensors.values()):
            file.check()
        return names

    def check_unchanged(self) -> None:
        """Raises `CheckpointChanged` if a file was written to whose tensors are used as views:
        reading a view of a file that was cut short ends the process."""
        for file in self.mapped:
            file.check()

    def _as_stored(self, name: str) -> bool:
        """Whether `tensor` gives what the file holds, so that a view of the file will do."""
        return True

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor; see `TensorFile.tensor`."""
        return self.tensors[name].tensor(name)

    def _rows(self, name: str, shape: tuple[int, int], rows: list[int]) -> torch.Tensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: missing {name}, which config.json asks for")
        file = self.tensors[name]
        if file.shapes[name] != shape:
            raise CheckpointError(f"{self.path}: {name} is {file.shapes[name]}, not {shape}")
        with file.open() as handle:
            view = handle.get_slice(name)
            found = torch.cat([view[row : row + 1] for row in rows]).float()
        file.check()
        return found


def open_checkpoint(model: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Opens a checkpoint whose files are on this machine; nothing is downloaded.

    Args:
        model: a folder with ``config.json``, ``tokenizer.json`` and ``*.safetensors``; or a name
            such as ``Qwen/Qwen3-Reranker-0.6B``, which is looked up in the caches of
            huggingface_hub and ModelScope; or ``demo``, the small model that ships with pyrerank.
            An opened checkpoint is returned as it is.

    Raises:
        CheckpointError: nothing was found; or the folder holds no weights, a damaged or quantised
            file, an adapter, or a model of another family.
    """
    if isinstance(model, Checkpoint):
        return model
    path = find_folder(model)
    config = read_json(path / "config.json")
    names = config.get("architectures") or []
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise CheckpointError(
            f"{path}: config.json is of {', '.join(map(str, names)) or 'no architecture'} "
            f"(model_type {config.get('model_type')!r}); pyrerank runs {', '.join(ARCHITECTURES)}"
        )
    if (path / "adapter_config.json").is_file() and weight_files(path):
        raise CheckpointError(
            f"{path} has an adapter beside its weights, which transformers adds to them: move "
            "adapter_config.json and adapter_model.safetensors to a folder of their own, and merge "
            "them with `pyrerank convert`, or leave them out"
        )
    if "transformers_weights" in config:
        raise CheckpointError(
            f"{path}: config.json sets transformers_weights to {config['transformers_weights']!r}; "
            "rename that file to model.safetensors, and leave the setting out"
        )
    family, classifier = ARCHITECTURES[known[0]]
    text = config.get("text_config", config)
    tensors = open_weights(path, config)
    check_config(path, config)
    # ms-swift gives a class with another head that of a classifier, and keeps the class's name
    classifier |= "score.weight" in tensors and "lm_head.weight" not in tensors
    return Checkpoint(
        path=path,
        architecture=known[0],
        family=family,
        classifier=classifier,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        config=DecoderConfig.read(path, family, text),
        settings=config,
        modules=Modules.read(path),
        tensors=tensors,
    )
