"""Tokens of texts: text of callers holds words only, text of a template may hold control tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

# The added tokens of the published vocabulary.  Some of them are not flagged as special.
CONTROLS = frozenset(
    (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"),
        *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"),
        *("<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
        *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>"),
        *("</tool_response>", "<think>", "</think>"),
    )
)


class PlainText:
    """A tokenizer that knows no control tokens, so that text stays text.

    Control tokens are those of `CONTROLS`, and all that the tokenizer flags as special.  Any other
    added token is a word that was added for fine-tuning, which text may hold.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = Tokenizer(tokenizer.model)
        self._text.normalizer = tokenizer.normalizer
        self._text.pre_tokenizer = tokenizer.pre_tokenizer
        added = tokenizer.get_added_tokens_decoder()
        words = {id: t for id, t in added.items() if not t.special and t.content not in CONTROLS}
        self._text.add_tokens(list(words.values()))
        # without the control tokens, words get other ids than the checkpoint's tokenizer gives them
        self._own = {self._text.token_to_id(token.content): id for id, token in words.items()}

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        # `Tokenizer.encode` would hold Python's lock meanwhile
        encodings: list[Encoding] = self._text.encode_batch(texts, add_special_tokens=False)
        return encodings

    def ids(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        return [self._own.get(id, id) for id in ids] if self._own else ids


def control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    """A pattern that finds the control tokens in a text of the checkpoint's own."""
    added = tokenizer.get_added_tokens_decoder().values()
    controls = [token.content for token in added if token.special or token.content in CONTROLS]
    found = "|".join(map(re.escape, sorted(controls, key=len, reverse=True)))
    return re.compile(f"({found})" if found else "((?!))")


def single_token(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.  Raises ValueError if there is none."""
    id = tokenizer.token_to_id(token)
    if id is None:
        raise ValueError(f"the tokenizer has no token {token!r}; it is not a Qwen3 tokenizer")
    return int(id)


def special_tokens(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens that a tokenizer puts before and after every text."""
    encoding = tokenizer.encode("text")
    own = [place for place, mask in enumerate(encoding.special_tokens_mask) if not mask]
    return encoding.tokens[: own[0]], encoding.tokens[own[-1] + 1 :]
