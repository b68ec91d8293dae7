"""Finding a checkpoint: from a folder or a hub name to the folder, and to its files of weights.

A message about a file that is absent, or of a kind that cannot be read, says what to do about it.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrerank.checks import warn
from pyrerank.errors import CheckpointError

DEMO = Path(__file__).parents[1] / "demo/model"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
POINTER = b"version https://git-lfs"  # a file that git left in place of a large one begins so
NEEDED = ("config.json", "tokenizer.json")  # beside weights

# Weights that pyrerank does not read: pattern of a file's name -> what it is, and what to do.
OTHERS = {
    "*.gguf": "{} is of llama.cpp; give the checkpoint that it was made of",
    "quant_model_*": "{} is quantised by ModelSlim; give the checkpoint that it was made of",
    "model.*.safetensors": "{} is a variant, which transformers does not load unless asked for it; "
    "if it is the one that you want, rename it to model.safetensors",
    "consolidated*": "{} is in the layout of the training code; download the files named model*",
    "*.onnx": "{} is of ONNX; download the files named model*.safetensors, too",
    "openvino_model.*": "{} is of OpenVINO; download the files named model*.safetensors, too",
    "*.bin": "{} can hold code and is not read; load it with transformers and save it again with "
    "save_pretrained, which writes safetensors",
}
OTHERS |= {f"*.{kind}": OTHERS["*.bin"] for kind in ("pt", "pth", "ckpt")}


def find_folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a model: itself, or where a cache has the hub name.

    Of several copies the first is taken that has all files: the snapshot that ``main`` names in the
    cache of huggingface_hub, then the copy in ModelScope's, and then, with a warning, other
    snapshots in the former, the newest first.

    Raises:
        CheckpointError: there is none.
        TypeError: ``model`` is neither a text nor a path.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model must be a folder or a hub name, got {type(model).__name__}")
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name == "demo":
        return DEMO
    if path.exists():
        hint = other_weights(path) or f"give the folder that holds it, {path.parent}"
        raise CheckpointError(f"model {name!r} is a file; {hint}")
    # this import takes a fifth of a second, and a folder needs none of it
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    repo = name.rstrip("/")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise CheckpointError(
            f"model {name!r} is not a folder, nor can it be a hub name such as "
            f"'Qwen/Qwen3-Reranker-0.6B'{_nearest_folder(path)}"
        ) from None
    main, others = _snapshots(repo)
    copies = [*main, *_of_modelscope(repo), *others]
    for folder in copies:
        if not lacks(folder):
            if folder in others:
                warn(
                    f"model {name!r}: the snapshot that refs/main names is not complete in this "
                    f"machine's cache, so another one is taken: {folder}",
                    UserWarning,
                )
            return folder
    lacking = [f"{folder} lacks {', '.join(lacks(folder))}" for folder in copies]
    where = f"is not complete in any cache: {'; '.join(lacking)}"
    if not copies:
        where = "is neither a folder nor in the caches of huggingface_hub and ModelScope"
        where += _close_names(repo)
    raise CheckpointError(
        f"model {name!r} {where}. pyrerank downloads nothing by itself: run `hf download {repo}` "
        f"or `modelscope download --model {repo}`, or give a folder that holds the model's files"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, chosen as transformers does: ``model.safetensors`` alone; without it,
    the files that an index names; without an index, numbered files.  Raises `CheckpointError` if
    one of several files is absent, or there is none."""
    names, by = _names_of_weights(folder)
    if not names:
        raise CheckpointError(
            f"{folder} holds no weights: no model*.safetensors file; {what_else(folder)}"
        )
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise CheckpointError(f"{folder}: {by} names absent files: {', '.join(absent)}")
    return [folder / name for name in sorted(names)]


def _names_of_weights(folder: Path) -> tuple[set[str], str]:
    """The names of `weight_files`, which may be absent; and what says that they belong together."""
    if (folder / WHOLE).is_file():
        return {WHOLE}, WHOLE
    if (folder / INDEX).is_file():
        return {str(file) for file in weight_map(folder).values()}, INDEX
    found = [match for file in folder.glob("model-*") if (match := SHARD.fullmatch(file.name))]
    return {
        f"model-{n + 1:0{len(each[1])}d}-of-{each[2]}.safetensors"
        for each in found
        for n in range(int(each[2]))
    }, "the number of files that is in their names"


def weight_map(folder: Path) -> dict[str, str]:
    """The index: a tensor's name -> the name of the file that holds it."""
    index = folder / INDEX
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    return found


def lacks(folder: Path) -> list[str]:
    """The names of a checkpoint's files that are not in ``folder``."""
    names = _names_of_weights(folder)[0] or {"model*.safetensors"}
    wanted = (*NEEDED, *sorted(names))
    return [name for name in wanted if not (folder / name).is_file()]


def what_else(folder: Path) -> str:
    """Says what a folder without a checkpoint is, or holds, and what to do about it."""
    if not (names := sorted(os.listdir(folder))):
        return "the folder is empty"
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        return (
            f"it is an adapter for {base}: merge the two with `pyrerank convert {base} TARGET "
            f"--merge-lora {folder}`, and give TARGET"
        )
    around = [folder.parent, *folder.glob("*/"), *folder.glob("snapshots/*/")]
    if near := [str(path) for path in sorted(around) if not lacks(path)]:
        return f"give {' or '.join(near[:3])}, where there is one"
    for file in (path for name in names if (path := folder / name).is_file()):
        if text := other_weights(file):
            return text
    return (
        "if it was cloned with git, fetch the large files (git lfs pull); if a download was broken "
        "off, start it again"
    )


def other_weights(file: Path) -> str | None:
    """Says what weights that pyrerank does not read are, and what to do; None for other files."""
    if file.name in ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"):
        return None
    return next((text.format(file.name) for p, text in OTHERS.items() if file.match(p)), None)


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds.  Raises `CheckpointError` if it is absent, or holds none."""
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no {file.name}; give the folder of a published checkpoint: "
            f"{what_else(file.parent)}"
        )
    return optional_json(file)


def optional_json(file: Path) -> dict[str, Any]:
    """As `read_json`, but an empty object if there is no such file."""
    value = parse_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def parse_json(file: Path) -> Any:
    """The value that a file holds.  Raises `CheckpointError` if it is no JSON."""
    refuse_pointer(file)
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error


def refuse_pointer(file: Path) -> None:
    """Raises `CheckpointError` if git has left only a note in the place of a file."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{file} is a git-lfs pointer, not the file itself: run `git lfs pull` in "
                f"{file.parent}, or download the file"
            )


def _snapshots(repo: str) -> tuple[list[Path], list[Path]]:
    """The snapshot of ``main`` in huggingface_hub's cache, if it is there; and all others."""
    # snapshot_download refuses a snapshot from which something was left out on purpose
    folder = _hub_cache() / f"models--{repo.replace('/', '--')}"
    ref = folder / "refs/main"
    main = folder / "snapshots" / ref.read_text().strip() if ref.is_file() else None
    found = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in found if path == main], [path for path in found if path != main]


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _of_modelscope(repo: str) -> Iterator[Path]:
    owner, _, title = repo.rpartition("/")
    for root in _modelscope_roots():
        # ModelScope wrote a dot in a model's name as three underscores; newer releases have a
        # folder for each revision, as the hub has
        names = (f"{owner}/{title.replace('.', '___')}", f"{owner}/{title}")
        folders = [root / name for name in names]
        folders += sorted((root / f"{owner}--{title}/snapshots").glob("*"))
        yield from (folder for folder in dict.fromkeys(folders) if owner and folder.is_dir())


def _modelscope_roots() -> list[Path]:
    cache = Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope")).expanduser()
    return [cache / "hub/models", cache / "models", cache / "hub", cache]


def _close_names(repo: str) -> str:
    """Names in the caches that are like ``repo``, as the end of a sentence."""
    names = {
        path.name.removeprefix("models--").replace("--", "/")
        for path in _hub_cache().glob("models--*")
    }
    for root in _modelscope_roots():
        folders = (path for path in root.glob("*/*/") if (path / "config.json").is_file())
        names |= {f"{path.parent.name}/{path.name.replace('___', '.')}" for path in folders}
    lower = {name.lower(): name for name in sorted(names)}
    lower |= {name.rpartition("/")[2].lower(): name for name in sorted(names)}
    close = difflib.get_close_matches(repo.lower(), lower, n=3)
    found = list(dict.fromkeys(repr(lower[name]) for name in close))
    return f", which have {' and '.join(found)}" if found else ""


def _nearest_folder(path: Path) -> str:
    """Says how much of a path that does not exist does exist, as the end of a sentence."""
    if "\\" in str(path):
        return ": folders are told apart by /, not \\"
    if len(path.parts) < 3 and not path.is_absolute():
        return ""
    parent = next(parent for parent in path.parents if parent.is_dir())
    inside = itertools.islice(sorted(entry.name for entry in parent.iterdir() if entry.is_dir()), 8)
    return f": of its path {parent} exists, which has {', '.join(inside) or 'no folders'}"
