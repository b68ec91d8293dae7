"""Checkpoints: from a name to a folder, from a folder to a configuration, tokenizer and tensors.

Reads what is published, as published: ``config.json``, ``tokenizer.json`` and safetensors, single
or sharded.  Knows nothing of prompts or of how the tensors are used.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from pyrerank.errors import CheckpointError

# architecture in config.json -> (prompt family, is the head one classifier vector?)
ARCHITECTURES = {
    "Qwen3ForCausalLM": ("qwen3", False),
    "Qwen3ForSequenceClassification": ("qwen3", True),
    "Qwen3VLForConditionalGeneration": ("qwen3-vl", False),
    "Qwen3VLForSequenceClassification": ("qwen3-vl", True),
}
DECODER_PREFIX = {"qwen3": "model.", "qwen3-vl": "model.language_model."}
DEMO = Path(__file__).parent / "demo/model"
VISION_PREFIX = "model.visual."


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the Qwen3 decoder, in the words of its ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: configuration read, tensor names and shapes known, no weight read.

    ``tensors`` maps every stored name to the file that holds it; ``settings`` is what config.json
    says.
    """

    path: Path
    family: str
    classifier: bool
    tied: bool
    config: DecoderConfig
    settings: Mapping[str, Any]
    tensors: Mapping[str, Path]

    @property
    def _prefix(self) -> str:
        """What stands before the decoder's names; in Qwen3-Embedding's files, nothing."""
        return "" if "embed_tokens.weight" in self.tensors else DECODER_PREFIX[self.family]

    @property
    def task(self) -> str | None:
        """The only thing the weights are for: "score" or "embed"; None where they can do both."""
        if self.classifier:
            return "score"
        headless = not self.tied and "lm_head.weight" not in self.tensors
        return "embed" if headless or not self._prefix else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored beside the weights."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{self.path} has no tokenizer.json; copy it from the published model's files"
            )
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error

    def preprocessor(self) -> dict[str, Any]:
        """What ``preprocessor_config.json`` says; nothing where there is none."""
        file = self.path / "preprocessor_config.json"
        return read_json(file) if file.is_file() else {}

    def decoder_weights(
        self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype
    ) -> Callable[..., torch.Tensor]:
        """What reads a tensor of the decoder by its name, without the checkpoint's prefix; or
        several by their names, joined along the first dimension.

        ``shapes`` says what is wanted: missing, extra and misshapen tensors raise
        `CheckpointError` before any weight is read.  One tensor that is stored in ``dtype`` is a
        view of the mapped file; any other, and what is joined, a copy on the host.
        """
        head = {"lm_head.weight"} | ({"score.weight", "score.bias"} if self.classifier else set())
        stored = {name for name in self.tensors if not name.startswith(VISION_PREFIX)} - head
        return self._weights(self._prefix, stored, shapes, dtype)

    def vision_weights(
        self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype
    ) -> Callable[..., torch.Tensor]:
        """As `decoder_weights`, of the vision tower."""
        stored = {name for name in self.tensors if name.startswith(VISION_PREFIX)}
        return self._weights(VISION_PREFIX, stored, shapes, dtype)

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
        for file, names in self._by_file(wanted.keys() & stored):
            with open_tensors(file) as handle:
                for name in names:
                    shape = tuple(handle.get_slice(name).get_shape())
                    if shape != tuple(wanted[name]):
                        problems.append(f"{name} is {shape}, not {tuple(wanted[name])}")
        if problems:
            raise CheckpointError(
                f"{self.path}: the tensors do not fit config.json: {listed(problems)}"
            )
        mapped = functools.cache(open_tensors)  # once for all views

        def read(*names: str) -> torch.Tensor:
            name = prefix + names[0]
            if len(names) == 1 and self._as_stored(name):
                view: torch.Tensor = mapped(self.tensors[name]).get_tensor(name)
                if view.dtype == dtype:
                    return view
            parts = [self.tensor(prefix + name).to(dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return read

    def classifier_vector(self, yes: int, no: int) -> tuple[torch.Tensor, float]:
        """The vector w (float32 [hidden_size]) and bias with logit = norm(hidden) . w + bias.

        For a causal or VL checkpoint w = float32(head[yes]) - float32(head[no]), where head is
        ``lm_head.weight`` or, with tied embeddings, the embedding table; only these two rows are
        read.  For a sequence-classification checkpoint w is ``score.weight``.
        """
        size = self.config.hidden_size
        if not self._prefix:
            raise CheckpointError(
                f"{self.path} is published for embedding: use Embedder, or pyrerank embed"
            )
        if self.classifier:
            weight = self._rows("score.weight", (1, size), [0])[0]
            if "score.bias" not in self.tensors:
                return weight, 0.0
            return weight, self.tensor("score.bias").float().item()
        table = "lm_head.weight"
        if self.tied:
            table = self._prefix + "embed_tokens.weight"
        rows = self._rows(table, (self.config.vocab_size, size), [yes, no])
        return rows[0] - rows[1], 0.0

    def not_finite(self) -> list[str]:
        """Names of the stored tensors that hold a NaN or an infinity.  Reads every weight."""
        return [name for name in sorted(self.tensors) if not self.tensor(name).isfinite().all()]

    def _as_stored(self, name: str) -> bool:
        """Whether `tensor` gives what the file holds, so that a view of that will do."""
        return True

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor, as a view of the mapped file.  The mapping is its own: one that other
        views share would keep what was read of this one in memory."""
        with open_tensors(self.tensors[name]) as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor

    def _rows(self, name: str, shape: tuple[int, int], rows: list[int]) -> torch.Tensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: missing {name}, which config.json asks for")
        with open_tensors(self.tensors[name]) as handle:
            view = handle.get_slice(name)
            if tuple(view.get_shape()) != shape:
                raise CheckpointError(
                    f"{self.path}: {name} is {tuple(view.get_shape())}, not {shape}"
                )
            return torch.cat([view[row : row + 1] for row in rows]).float()

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        files: dict[Path, list[str]] = {}
        for name in sorted(names):
            files.setdefault(self.tensors[name], []).append(name)
        yield from files.items()


def open_checkpoint(model: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Opens a folder, or a hub name whose files are already on this machine.

    Args:
        model: a folder with ``config.json``, ``tokenizer.json`` and ``*.safetensors``; or a name
            such as ``Qwen/Qwen3-Reranker-0.6B``, looked up in the caches of huggingface_hub and
            ModelScope.  Nothing is ever downloaded.  An opened checkpoint is returned as it is.
            ``demo``, where there is no such folder, is the small model that ships with pyrerank.

    Raises:
        CheckpointError: nothing found (the message says how to get the files), or the folder holds
            no weights, a damaged file, or a model of another family.
    """
    if isinstance(model, Checkpoint):
        return model
    path = _find(model)
    config = read_json(path / "config.json")
    names = config.get("architectures") or []
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise CheckpointError(
            f"{path}: config.json is of {', '.join(map(str, names)) or 'no architecture'} "
            f"(model_type {config.get('model_type')!r}); pyrerank runs {', '.join(ARCHITECTURES)}"
        )
    family, classifier = ARCHITECTURES[known[0]]
    text = config.get("text_config", config)
    return Checkpoint(
        path=path,
        family=family,
        classifier=classifier,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        config=_decoder_config(path, family, text),
        settings=config,
        tensors=_tensor_files(path),
    )


def model_key(model: str | os.PathLike[str]) -> str:
    """A folder by its absolute path, which still means the same when the process has moved."""
    return os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)


def _find(model: str | os.PathLike[str]) -> Path:
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model must be a folder or a hub name, got {type(model).__name__}")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name = os.fspath(model)
    if name == "demo":
        return DEMO
    if path.exists():
        raise CheckpointError(f"model {name!r} is a file; give the folder that holds it")
    # takes a fifth of a second, and a folder needs none of it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise CheckpointError(
            f"model {name!r} is not a folder, nor can it be a hub name such as "
            "'Qwen/Qwen3-Reranker-0.6B'"
        ) from None
    except LocalEntryNotFoundError:
        pass
    owner, _, title = name.rpartition("/")
    cache = Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope")).expanduser()
    for root in (cache / "hub/models", cache / "models", cache / "hub", cache):
        # ModelScope writes a dot in a model's name as three underscores
        folder = root / owner / title.replace(".", "___")
        if title and (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"model {name!r} is neither a folder nor in the caches of huggingface_hub and ModelScope. "
        f"pyrerank downloads nothing by itself: run `hf download {name}` or "
        f"`modelscope download --model {name}`, or give a folder that holds the model's files"
    )


def read_json(file: Path) -> dict[str, Any]:
    """The object that ``file`` holds; `CheckpointError` where it holds none."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.parent} has no {file.name}; give the folder of a published checkpoint"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def _decoder_config(path: Path, family: str, text: Mapping[str, Any]) -> DecoderConfig:
    # rope_parameters is where transformers 5 keeps what earlier files spread over two keys
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    expected = {
        "hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "attention_bias": (text.get("attention_bias", False), False),
        "use_sliding_window": (text.get("use_sliding_window", False), False),
        "rope type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "mrope_interleaved": (rope.get("mrope_interleaved", True), True),
    }
    for key, (got, want) in expected.items():
        if got != want:
            raise CheckpointError(
                f"{path}: config.json sets {key} to {got!r}; pyrerank supports only {want!r}"
            )
    values = dict(text, rope_theta=rope.get("rope_theta", text.get("rope_theta")))
    half = (text.get("head_dim") or 0) // 2
    # text models have one position a token; the other default is that of transformers
    default = (half, 0, 0) if family == "qwen3" else (24, 20, 20)
    values["mrope_section"] = section = tuple(rope.get("mrope_section", default))
    fields = DecoderConfig.__dataclass_fields__
    missing = [key for key in fields if values.get(key) is None]
    if missing:
        raise CheckpointError(f"{path}: config.json lacks {', '.join(missing)}")
    if len(section) != 3 or sum(section) != half:
        raise CheckpointError(
            f"{path}: mrope_section must be three numbers that add up to {half}, half of head_dim, "
            f"got {list(section)}"
        )
    return DecoderConfig(**{key: values[key] for key in fields})


def _tensor_files(path: Path) -> dict[str, Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        absent = sorted({file for file in weight_map.values() if not (path / file).is_file()})
        if absent:
            raise CheckpointError(f"{path}: {index.name} names absent files: {', '.join(absent)}")
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:
        whole = path / "model.safetensors"
        files = [whole] if whole.is_file() else sorted(path.glob("model*.safetensors"))
    tensors: dict[str, Path] = {}
    for file in files:
        with open_tensors(file) as handle:
            tensors.update(dict.fromkeys(handle.keys(), file))
    if not tensors:
        raise CheckpointError(
            f"{path} holds no weights: no model*.safetensors file; if it was cloned with git, "
            "fetch the large files (git lfs pull); convert *.bin weights to safetensors"
        )
    return tensors


def listed(problems: Sequence[str]) -> str:
    """The first eight, and how many there are beside them."""
    more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
    return "; ".join(problems[:8]) + more


def open_tensors(file: Path) -> Any:
    """The safetensors file ``file``, open for reading; a context manager."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or not a safetensors file ({error}); download it again"
        ) from error
