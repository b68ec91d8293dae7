"""Checkpoints: from a folder to a configuration, a tokenizer and tensors.

Reads what is published, as published: ``config.json``, ``tokenizer.json`` and safetensors, single
or sharded.  Knows nothing of prompts or of how the tensors are used.
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
from pyrerank.weights.find import find_folder, read_json, refuse_pointer, weight_files
from pyrerank.weights.modules import Modules, check_config
from pyrerank.weights.tensors import TensorFile, listed, open_weights

# architecture in config.json -> (prompt family, is the head one classifier vector?)
ARCHITECTURES = {
    "Qwen3ForCausalLM": ("qwen3", False),
    "Qwen3ForSequenceClassification": ("qwen3", True),
    "Qwen3VLForConditionalGeneration": ("qwen3-vl", False),
    "Qwen3VLForSequenceClassification": ("qwen3-vl", True),
    # without a head, as sentence-transformers and AutoModel save them
    "Qwen3Model": ("qwen3", False),
    "Qwen3VLModel": ("qwen3-vl", False),
}
DECODER = {"qwen3": "", "qwen3-vl": "language_model."}  # before the decoder's names, in the model
VISION = "visual."


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: configuration read, tensor names and shapes known, no weight read.

    Attributes:
        architecture: the one of `ARCHITECTURES` that config.json names.
        settings: what config.json says.
        modules: what the files beside it say of prompts, pooling and limits.
        tensors: every stored name -> the file that holds it.
        mapped: files of which tensors have been given away as views.
    """

    path: Path
    architecture: str
    family: str
    classifier: bool
    tied: bool
    config: DecoderConfig
    settings: Mapping[str, Any]
    modules: Modules
    tensors: Mapping[str, TensorFile]
    mapped: set[TensorFile] = field(default_factory=set, kw_only=True, repr=False)

    @property
    def root(self) -> str:
        """What stands before all names but the heads'; nothing where the model was saved without
        one, as Qwen3-Embedding is published."""
        bare = f"{DECODER[self.family]}embed_tokens.weight" in self.tensors
        return "" if bare else "model."

    @property
    def decoder(self) -> str:
        """What stands before the decoder's names."""
        return self.root + DECODER[self.family]

    @property
    def task(self) -> str | None:
        """The only thing the folder is for: "score" or "embed"; None where it can do both.

        ``pyrerank_task`` in config.json says so of a checkpoint whose files do not tell.
        """
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
        # where config.json does not say, transformers takes these
        default = {"qwen3": 32768, "qwen3-vl": 128000}[self.family]
        return int(text.get("max_position_embeddings", default))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored beside the weights."""
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
        """Refuses what other files say of tokens and tokenizer.json does not."""
        config = read_json(file) if (file := self.path / "tokenizer_config.json").is_file() else {}
        added = {token["content"]: int(id) for id, token in
                 (config.get("added_tokens_decoder") or {}).items()}  # fmt: skip
        if (file := self.path / "added_tokens.json").is_file():
            added |= read_json(file)
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
        """The shape of the vision tower; raises as `VisionConfig.read`."""
        return VisionConfig.read(self.path, self.settings, self.config)

    def decoder_weights(
        self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype
    ) -> Callable[..., torch.Tensor]:
        """What reads a tensor of the decoder by its name, without the checkpoint's prefix; or
        several by their names, joined along the first dimension.

        ``shapes`` says what is wanted: missing, extra and misshapen tensors raise
        `CheckpointError` before any weight is read.  One tensor that is stored in ``dtype`` is a
        view of the mapped file, see `check_unchanged`; any other, and what is joined, a copy on
        the host.
        """
        head = {"lm_head.weight"} | ({"score.weight", "score.bias"} if self.classifier else set())
        vision = self.root + VISION
        stored = {name for name in self.tensors if not name.startswith(vision)} - head
        return self._weights(self.decoder, stored, shapes, dtype)

    def vision_weights(
        self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype
    ) -> Callable[..., torch.Tensor]:
        """As `decoder_weights`, of the vision tower."""
        vision = self.root + VISION
        stored = {name for name in self.tensors if name.startswith(vision)}
        return self._weights(vision, stored, shapes, dtype)

    def _weights(
        self,
        prefix: str,
        stored: set[str],
        shapes: Mapping[str, torch.Size],
        dtype: torch.dtype,
    ) -> Callable[..., torch.Tensor]:
        wanted = {prefix + name: shape for name, shape in shapes.items()}
        problems = [f"missing {name}" for name in sorted(wanted.keys() - stored)]
        problems += [f"unexpected {name}" for name in sorted(stored - wanted.keys())]
        for name in sorted(wanted.keys() & stored):
            shape = self.tensors[name].shapes[name]
            if shape != tuple(wanted[name]):
                problems.append(f"{name} is {shape}, not {tuple(wanted[name])}")
        if problems:
            raise CheckpointError(
                f"{self.path}: the tensors do not fit config.json: {listed(problems)}"
            )
        opened = functools.cache(TensorFile.open)  # once for all views

        def read(*names: str) -> torch.Tensor:
            stored = [prefix + name for name in names]
            files = [self.tensors[name] for name in stored]
            if len(names) == 1 and self._as_stored(stored[0]):
                view: torch.Tensor = opened(files[0]).get_tensor(stored[0])
                if view.dtype == dtype:
                    self.mapped.add(files[0])
                    return view
            parts = [self.tensor(name).to(dtype) for name in stored]
            joined = torch.cat(parts) if len(parts) > 1 else parts[0]
            for file in files:
                file.check()
            return joined

        return read

    def classifier_vector(self, yes: int, no: int | None) -> tuple[torch.Tensor, float]:
        """The vector w (float32 [hidden_size]) and bias with logit = norm(hidden) . w + bias.

        For a causal or VL checkpoint w = float32(head[yes]) - float32(head[no]), where head is
        ``lm_head.weight`` or, where a tied checkpoint stores none, the embedding table; only these
        two rows are read.  (transformers, too, prefers a stored ``lm_head.weight`` that differs
        from the embedding.)  Without ``no``, w is the row of yes.  For a sequence-classification
        checkpoint w is ``score.weight``.
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
        """Names of the stored tensors that hold a NaN or an infinity.  Reads every weight.

        Raises: `CheckpointChanged`, as `check_unchanged`.
        """
        names = [name for name in sorted(self.tensors) if not self.tensor(name).isfinite().all()]
        for file in set(self.tensors.values()):
            file.check()
        return names

    def check_unchanged(self) -> None:
        """Raises `CheckpointChanged` if a file was written to of which tensors are used as views.

        What a pass reads of a file that was cut short ends the process; call this before.
        """
        for file in self.mapped:
            file.check()

    def _as_stored(self, name: str) -> bool:
        """Whether `tensor` gives what the file holds, so that a view of that will do."""
        return True

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor, as a view of the mapped file; see `TensorFile.tensor`."""
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
    """Opens a folder, or a hub name whose files are already on this machine.

    Args:
        model: a folder with ``config.json``, ``tokenizer.json`` and ``*.safetensors``; or a name
            such as ``Qwen/Qwen3-Reranker-0.6B``, looked up in the caches of huggingface_hub and
            ModelScope.  Nothing is ever downloaded.  An opened checkpoint is returned as it is.
            ``demo``, where there is no such folder, is the small model that ships with pyrerank.

    Raises:
        CheckpointError: nothing found (the message says how to get the files), or the folder holds
            no weights, a damaged or quantised file, an adapter, or a model of another family.
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
    # ms-swift puts the head of a classifier on a class that has another one, and keeps its name
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
