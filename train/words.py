"""What the demonstration model knows of words: which mean the same, and how much each tells."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import make_checkpoint
import torch
from tokenizers import Tokenizer

# Each line has words of nearly one meaning. Chinese characters of many meanings are not among them,
# because they would be found where they do not belong.
SAME = (Path(__file__).parent / "same.txt").read_text("utf-8").splitlines()
FIRST = {word: line.split()[0] for line in SAME for word in line.split()}


def name(text: str) -> str:
    """What the spellings of a word have in common, as "cat" for " Cats"."""
    text = text.strip().casefold()
    if text.isascii() and len(text) > 3 and text.endswith("s") and not text.endswith("ss"):
        text = text[:-1]
    return FIRST.get(text, text)


def embeddings(tokenizer: Tokenizer, running: Iterable[str]) -> torch.Tensor:
    """Makes the decoder's table [vocabulary, hidden], as examples/make_checkpoint.py explains it.

    A word weighs the more, the rarer it is in running text.
    """
    size = tokenizer.get_vocab_size()
    seen = Counter(id for encoding in tokenizer.encode_batch(running) for id in encoding.ids)
    texts = [tokenizer.decode([id]) for id in range(size)]  # control tokens have no text
    keys = [name(text) if text and "\ufffd" not in text else id for id, text in enumerate(texts)]
    total: Counter[str | int] = Counter()
    for id, key in enumerate(keys):
        total[key] += seen[id]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    most = math.log(seen.total())
    weights = []
    for key, text in zip(keys, texts, strict=True):
        rarity = (1 - math.log(1 + total[key]) / most) ** 3
        is_word = "\ufffd" in text or text.strip()[:1].isalnum()
        weights.append(max(make_checkpoint.LIGHTEST, rarity) if is_word else 0.0)
    codes = [numbers[key] for key in keys]
    return make_checkpoint.embeddings(codes, weights, size, tokenizer.get_vocab())
