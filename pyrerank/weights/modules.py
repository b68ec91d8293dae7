"""Modules: what a checkpoint's folder says of prompts, pooling, layers after it, and limits.

sentence-transformers writes it to ``modules.json`` and to files that belong to that.  A setting
that changes a result is followed, or refused by its name.  A folder without ``modules.json`` is run
as the scripts published with the models run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyrerank.errors import CheckpointError
from pyrerank.weights.chat import Chat
from pyrerank.weights.config import check_setting
from pyrerank.weights.find import optional_json, parse_json

# pooling_mode of sentence-transformers -> mode of fused_pool
POOLING = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
# older files have one key a mode; sentence-transformers joins the modes in this order
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
# a cross encoder may have either: a score has both the logit and its sigmoid
SCORE_ACTIVATIONS = ("Identity", "Sigmoid")
# the first module's settings are in the first of these files that is there
TRANSFORMER = [f"sentence_{kind}_config.json" for kind in (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")]  # fmt: skip
# with these, transformers' apply_chat_template may do more to a prompt than rendering it; it does
# not with the values here
CALLS: dict[str, tuple[object, ...]] = {
    "restore_suffix": (None, True),
    "truncation": (None, True),
    "max_length": (None,),
    "continue_final_message": (None, False),
    "padding": (None, True, False),
}
CUTS = "; pyrerank cuts texts at their end"
# values that ask for nothing
OFF: tuple[object, ...] = (None, False, "", [], {})
# these say how to load weights, which pyrerank does in its own way
LOADING = {"torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
LOADING |= {"use_safetensors", "trust_remote_code", "use_cache", "padding_side"}
# these limit the sizes of pictures, for which the limits of the published scripts hold
SIZES = {"size", "min_pixels", "max_pixels", "total_pixels", "fps", "min_frames", "max_frames"}
SIZES |= {"num_frames", "do_sample_frames", "do_resize", "return_metadata"}


@dataclass(frozen=True)
class Dense:
    """A layer after pooling: activation(x W^T + b), and x or its projection added to that.

    The file is of safetensors, with ``linear.weight`` [outputs, inputs] and, if any,
    ``linear.bias`` [outputs] and ``residual.weight`` [outputs, inputs].
    """

    file: Path
    activation: str  # one of ACTIVATIONS
    inputs: int
    outputs: int
    bias: bool
    residual: bool  # whether x is added


@dataclass(frozen=True)
class Modules:
    """What a folder asks for.  The defaults are the scripts published with the models."""

    listed: bool = False  # whether there is a modules.json
    task: str | None = None  # "embed" or "score", if the folder says that it is for this alone
    pooling: str = "last"  # mode of fused_pool
    steps: tuple[Dense | None, ...] = (None,)  # after pooling; None scales to length 1
    dim: int | None = None  # how many numbers of a vector are kept after all steps; None keeps all
    # ids of the two tokens whose logits a reranker compares, or of one alone; None: "yes" and "no"
    answers: tuple[int, int | None] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)  # texts before an input, by name
    default_prompt: str | None = None  # of calls that name none and give no instruction
    max_tokens: int | None = None  # most tokens of a prompt, in place of the published limit
    most_tokens: int | None = None  # the published limit is lowered to this
    lower_case: bool = False  # whether all text is lowercased
    chat: Chat | None = None  # words prompts; None takes the published wording

    def limit(self, published: int) -> int:
        """Most tokens of a prompt, if the published script has ``published``."""
        if self.max_tokens is not None:
            return self.max_tokens
        return min(published, self.most_tokens or published)

    @property
    def normalizes(self) -> bool:
        return self.steps[-1:] == (None,)

    @classmethod
    def read(cls, path: Path) -> Modules:
        """Reads a folder; raises `CheckpointError` if a file is damaged, or asks for what pyrerank
        does not do."""
        file = path / "modules.json"
        if not file.is_file():
            if (path / "1_Pooling").exists() or (path / "1_LogitScore").exists():
                raise CheckpointError(
                    f"{path} has folders of modules but no modules.json, which says what they are "
                    "for; download the whole model again"
                )
            return cls()
        entries = parse_json(file)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise CheckpointError(f"{file} must hold a JSON list of objects")
        return _read(path, entries)


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` if ``config.json`` asks for quantised weights, for code of the
    checkpoint's own, or for other scores than logits and their sigmoids."""
    for part in (config, config.get("text_config") or {}):
        if part.get("quantization_config"):
            method = part["quantization_config"].get("quant_method", "an unknown tool")
            raise CheckpointError(
                f"{path}: config.json has a quantization_config, of {method}, which changes what "
                "the weights give; pyrerank runs float32, float16 and bfloat16: give the "
                "checkpoint that it was made of"
            )
    if config.get("auto_map"):
        raise CheckpointError(
            f"{path}: config.json names code of the checkpoint's own (auto_map: "
            f"{', '.join(config['auto_map'])}), and pyrerank runs none; if the weights are an "
            "unchanged Qwen3's, remove auto_map"
        )
    own = config.get("sentence_transformers") or {}
    old = config.get("sbert_ce_default_activation_function")
    activation = own.get("activation_fn", old) or "torch.nn.Sigmoid"
    if activation.rpartition(".")[2] not in SCORE_ACTIVATIONS:
        raise CheckpointError(
            f"{path}: config.json sets activation_fn to {activation!r}; pyrerank gives the logit "
            "and its sigmoid"
        )


def _read(path: Path, entries: list[Any]) -> Modules:
    kinds = []
    for entry in entries:
        type_, place = (str(entry.get(key, "")) for key in ("type", "path"))
        kind = type_.rpartition(".")[2] if type_.startswith("sentence_transformers.") else ""
        if not kind or ".." in place or place.startswith("/"):
            raise CheckpointError(
                f"{path}: modules.json lists {type_!r} in {place!r}, which is no module of "
                "sentence-transformers; pyrerank runs no code of a checkpoint's own"
            )
        kinds.append((kind, path / place))
    if not kinds or kinds[0] != ("Transformer", path):
        raise CheckpointError(
            f"{path}: modules.json does not begin with a Transformer in the folder itself; give "
            "the folder that holds config.json and the weights"
        )
    modules = _transformer(path, Modules(listed=True, steps=()))
    for kind, folder in kinds[1:]:
        modules = _module(modules, kind, folder)
    if modules.task is None:  # a transformer alone: its classifier gives the score
        modules = replace(modules, task="score")
    overall = optional_json(path / "config_sentence_transformers.json")
    model = overall.get("model_type") or "SentenceTransformer"
    if model != ("SentenceTransformer" if modules.task == "embed" else "CrossEncoder"):
        raise CheckpointError(
            f"{path}: config_sentence_transformers.json says that this is a {model}, and "
            f"modules.json lists {', '.join(kind for kind, _ in kinds)}; pyrerank runs a "
            "SentenceTransformer with Pooling, and a CrossEncoder with LogitScore or a classifier"
        )
    return _overall(path, modules, overall)


def _overall(path: Path, modules: Modules, overall: Mapping[str, Any]) -> Modules:
    """Adds what ``config_sentence_transformers.json`` says of prompts and results."""
    file = path / "config_sentence_transformers.json"
    activation = str(overall.get("activation_fn") or "torch.nn.Sigmoid")
    if modules.task == "score":
        _torch_class(file, "activation_fn", activation, SCORE_ACTIVATIONS)
    # sentence-transformers always has the first two
    stored: dict[str, str | None] = {"query": "", "document": "", **(overall.get("prompts") or {})}
    prompts = {name: prompt or "" for name, prompt in stored.items()}
    name = overall.get("default_prompt_name")
    if name is not None and name not in stored:
        raise CheckpointError(f"{file}: default_prompt_name {name!r} is none of its prompts")
    default = prompts.get(str(name))
    if default and modules.task == "score" and modules.chat is None:
        raise CheckpointError(
            f"{file} sets default_prompt_name to {name!r}, and the folder has no chat template "
            "that says where this prompt goes; set it to null, and give instruction="
        )
    return replace(
        modules, prompts=prompts, default_prompt=default or None, dim=overall.get("truncate_dim")
    )


def _transformer(path: Path, modules: Modules) -> Modules:
    """Adds what the module's and the tokenizer's files say of limits and of texts."""
    files = [path / name for name in TRANSFORMER]
    file = next((file for file in files if file.is_file()), files[0])
    config = optional_json(file)
    read = {"max_seq_length", "do_lower_case", "modality_config", "processing_kwargs"}
    read |= {"transformer_task", "module_output_name", "unpad_inputs", "backend"}
    arguments = {f"{kind}_{end}" for kind in ("model", "processor", "tokenizer", "config")
                 for end in ("args", "kwargs")}  # fmt: skip
    _only(file, config, read | arguments)
    for key in arguments & config.keys():
        _only(file, config[key] or {}, LOADING | SIZES | {"model_max_length"}, f"{key}.")
    task = config.get("transformer_task", "feature-extraction")
    outputs = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits",
               "text-generation": "logits", "any-to-any": "logits"}  # fmt: skip
    modalities = config.get("modality_config") or {}
    for modality, how in modalities.items():
        if (how.get("method"), how.get("method_output_name")) != ("forward", outputs.get(task)):
            raise CheckpointError(
                f"{file} takes {how.get('method_output_name')!r} of {how.get('method')!r} for "
                f"{modality} in task {task!r}; pyrerank gives last hidden states and logits"
            )
    calls = config.get("processing_kwargs") or {}
    text = {**(calls.get("common") or {}), **(calls.get("text") or {})}
    _check_calls(file, calls, text)
    chosen = [(config.get(f"{kind}_{end}") or {}).get("model_max_length")
              for kind in ("processor", "tokenizer") for end in ("kwargs", "args")]  # fmt: skip
    chosen = [text.get("max_length"), *chosen, config.get("max_seq_length")]
    file = path / "tokenizer_config.json"
    tokenizer = optional_json(file)
    side = tokenizer.get("truncation_side")
    check_setting(file, "truncation_side", side, ("right", None), CUTS)
    most = tokenizer.get("model_max_length")
    chat = None
    if "message" in modalities:
        rendering = calls.get("chat_template") or {}
        chat = Chat.of_folder(path, tokenizer, rendering, modalities["message"].get("format"))
    return replace(
        modules,
        max_tokens=next((int(limit) for limit in chosen if limit is not None), None),
        most_tokens=int(most) if isinstance(most, (int, float)) else None,
        lower_case=bool(config.get("do_lower_case")),
        chat=chat,
    )


def _check_calls(file: Path, calls: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Refuses arguments of the processor, ``processing_kwargs``, that change a prompt."""
    _only(file, calls, {"chat_template", "text", "image", "video", "common"}, "processing_kwargs.")
    _only(file, text, {"padding", "padding_side", "truncation", "max_length", "return_tensors",
                       "logits_to_keep"}, "processing_kwargs.text.")  # fmt: skip
    known = (True, None, "longest_first", "only_first")
    check_setting(file, "processing_kwargs.text.truncation", text.get("truncation"), known, CUTS)
    rendering = calls.get("chat_template") or {}
    for key in sorted(CALLS.keys() & rendering.keys()):
        where = f"processing_kwargs.chat_template.{key}"
        check_setting(file, where, rendering[key], CALLS[key])
    for kind in ("image", "video"):
        _only(file, calls.get(kind) or {}, SIZES, f"processing_kwargs.{kind}.")


def _module(modules: Modules, kind: str, folder: Path) -> Modules:
    file = folder / "config.json"
    if kind in ("Pooling", "Dense", "LogitScore") and not file.is_file():
        raise CheckpointError(
            f"{folder.parent}: modules.json lists {kind} in {folder.name}, and there is no "
            f"{folder.name}/config.json; download the whole model again"
        )
    config = optional_json(file)
    pooled = modules.task == "embed"
    if kind == "Dropout":
        return modules
    if kind == "Pooling" and modules.task is None:
        return replace(modules, task="embed", pooling=_pooling(file, config))
    if kind == "LogitScore" and modules.task is None:
        _only(file, config, {"true_token_id", "false_token_id", "module_input_name"})
        answers = config.get("true_token_id"), config.get("false_token_id")
        if not isinstance(answers[0], int) or not isinstance(answers[1], int | None):
            raise CheckpointError(f"{file}: true_token_id and false_token_id must be token ids")
        return replace(modules, task="score", answers=(answers[0], answers[1]))
    if kind in ("Normalize", "Dense") and pooled:
        known, only = (None, "sentence_embedding"), "; pyrerank supports only 'sentence_embedding'"
        for key in ("module_input_name", "module_output_name"):
            check_setting(file, key, config.get(key), known, only)
        step = None if kind == "Normalize" else _dense(file, config)
        return replace(modules, steps=(*modules.steps, step))
    raise CheckpointError(
        f"{folder.parent}: modules.json lists {kind} in {folder.name}, which pyrerank does not run "
        "in this place; it runs Pooling and after it Dense and Normalize, or LogitScore alone"
    )


def _pooling(file: Path, config: Mapping[str, Any]) -> str:
    read = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
    _only(file, config, read | OLD_POOLING.keys())
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in OLD_POOLING.items() if config.get(key)] or ["mean"]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLING:
        raise CheckpointError(
            f"{file} pools by {' and '.join(map(str, modes))}; pyrerank pools by one of "
            f"{', '.join(POOLING)}"
        )
    if config.get("include_prompt", True) not in (True, None) and modes != ["lasttoken"]:
        raise CheckpointError(
            f"{file} sets include_prompt to false; pyrerank pools over all tokens of a prompt"
        )
    return POOLING[modes[0]]


def _dense(file: Path, config: Mapping[str, Any]) -> Dense:
    read = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
    _only(file, config, read | {"module_input_name", "module_output_name"})
    name = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh")
    weights = file.parent / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"{file.parent} has no model.safetensors; save the model again with safetensors"
        )
    return Dense(
        weights,
        _torch_class(file, "activation_function", name, ACTIVATIONS),
        int(config.get("in_features", 0)),
        int(config.get("out_features", 0)),
        bool(config.get("bias", True)),
        bool(config.get("use_residual")),
    )


def _torch_class(file: Path, key: str, name: str, known: tuple[str, ...]) -> str:
    title = name.rpartition(".")[2]
    if not name.startswith("torch.nn.") or title not in known:
        raise CheckpointError(
            f"{file} sets {key} to {name!r}; pyrerank knows torch.nn's {', '.join(known)}"
        )
    return title


def _only(file: Path, config: Mapping[str, Any], read: set[str], where: str = "") -> None:
    """Refuses keys that are set and not in ``read``.

    ``where`` stands before the names of arguments, of which False is refused, too: it may not be
    the default.
    """
    for key in sorted(config.keys() - read):
        off = () if where and config[key] is False else OFF
        check_setting(file, f"{where}{key}", config[key], off)
