"""Makes the tokenizer of the demonstration model: byte-level BPE as Qwen3's, with fewer tokens.

It splits text by Qwen3's pattern and has Qwen3's control tokens, so every program that reads a
Qwen3 tokenizer reads this one.  A Chinese character is never joined with the next: the pieces
of a query are then pieces of the passage too, however either is worded.
"""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from qwen_vocab import NOT_SPECIAL, PATTERN, SPECIAL
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Makes a tokenizer of ``size`` tokens and the control tokens, which come last."""
    # The first word of a text has no space before it, and must be a token as well.
    bare = ("\n".join(re.findall("[A-Za-z]+", text)) for text in texts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    one_by_one = pre_tokenizers.Split(Regex(r"[\u4e00-\u9fff]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([one_by_one, split, byte_level])
    tokenizer.train_from_iterator(
        itertools.chain(texts, bare),
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    # There are no merges across characters now, so Qwen3's own pattern does the rest.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in NOT_SPECIAL])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "add_prefix_space": False,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 10240,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
