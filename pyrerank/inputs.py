"""Inputs: from what the caller passed to token ids, truncated to the family's limit.

User text is encoded by the bare byte-level BPE model, which has no control tokens: the characters
``<|im_end|>`` in a document are text, never a turn boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Encoding, Tokenizer

from pyrerank.prompt import (
    HEAD,
    MAX_EMBEDDING_TOKENS,
    Template,
    UserTurn,
    Wording,
    embedding_prompt,
    unformat,
    unformat_embedding,
)

# An instruction that leaves less is a mistake; and as words at the seams of the template may share
# a token with it, a few more tokens than the template's own can be beyond truncation.
LEAST_CONTENT = 16


@dataclass(frozen=True)
class Pair:
    """One query and document, validated, with any template of the caller's undone."""

    instruction: str
    query: str
    document: str


@dataclass(frozen=True)
class Prompt:
    """Token ids of a whole prompt, and how many text tokens were cut to fit the limit."""

    ids: list[int]
    truncated: int


@dataclass(frozen=True)
class Explanation:
    """The exact prompt of a pair: its text, its token ids, and how many tokens were cut."""

    text: str
    ids: list[int]
    truncated: int


def pair_up(query: str | Sequence[str], documents: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs one query with every document, or queries and documents one to one.

    Raises:
        TypeError: an argument of another type.
        ValueError: no documents, or lists of different lengths.
    """
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise TypeError(
            f"documents must be a list of str, got {type(documents).__name__}; "
            "wrap a single document in a list"
        )
    if not documents:
        raise ValueError("documents is empty; give at least one document")
    if isinstance(query, str):
        return [(query, document) for document in documents]
    if isinstance(query, bytes) or not isinstance(query, Sequence):
        raise TypeError(f"query must be str or a list of str, got {type(query).__name__}")
    if len(query) != len(documents):
        raise ValueError(
            f"query has {len(query)} entries and documents has {len(documents)}; give one query "
            "for all documents (a str), or lists of equal length"
        )
    return list(zip(query, documents, strict=True))


def check_text(name: str, value: object) -> str:
    """Returns ``value`` if it is text that can be encoded; ``name`` is for the message.

    Raises:
        TypeError: not a str.
        ValueError: a lone surrogate, which no tokenizer can encode.
    """
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes) else ""
        raise TypeError(f"{name} must be str, got {type(value).__name__}{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate, U+{ord(value[error.start]):04X}, at character "
            f"{error.start}: not valid Unicode text; decode it with errors='replace' at its source"
        ) from None
    return value


def plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without its added tokens: text stays text."""
    text = Tokenizer(tokenizer.model)
    text.normalizer = tokenizer.normalizer
    text.pre_tokenizer = tokenizer.pre_tokenizer
    return text


def single_token(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.  Raises ValueError if there is none."""
    id = tokenizer.token_to_id(token)
    if id is None:
        raise ValueError(f"the tokenizer has no token {token!r}; it is not a Qwen3 tokenizer")
    return int(id)


class PromptEncoder:
    """Encodes pairs with one checkpoint's tokenizer and one family's template."""

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._text = plain_text(tokenizer)
        self._head = tokenizer.encode(HEAD, add_special_tokens=False).ids
        self._tail = tokenizer.encode(template.tail, add_special_tokens=False).ids
        limit = template.max_tokens + template.uncounted
        self._room = limit - len(self._head) - len(self._tail)  # for the user turn
        self._check_room = lru_cache(maxsize=64)(self._check_instruction)
        self.yes, self.no = single_token(tokenizer, "yes"), single_token(tokenizer, "no")
        for control in ("<|im_start|>", "<|im_end|>"):
            single_token(tokenizer, control)

    def pair(
        self, name: str, query: object, document: object, instruction: str | None = None
    ) -> Pair:
        """Validates one pair; ``name`` (``documents[3]``, ``line 7``) is for the messages.

        Raises:
            TypeError: a text that is not str.
            ValueError: a lone surrogate; half a template, or one with an instruction other than
                the one given; an instruction that leaves no room for the pair.
        """
        if instruction is not None:
            check_text("instruction", instruction)
        texts = check_text(f"the query of {name}", query), check_text(name, document)
        try:
            own, bare_query, bare_document = unformat(*texts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if own is not None and instruction not in (None, own):
            raise ValueError(
                f"{name}: the formatted query carries the instruction {own!r}, and instruction= "
                f"says {instruction!r}; give one of them"
            )
        if own is None:
            own = self.template.default_instruction if instruction is None else instruction
        self._check_room(own)
        return Pair(own, bare_query, bare_document)

    def stream(self, pairs: Sequence[Pair]) -> Iterator[Prompt]:
        """Encodes any number of pairs, holding the token ids of a few hundred at a time."""
        for start in range(0, len(pairs), 256):
            yield from self.encode(pairs[start : start + 256])

    def encode(self, pairs: Sequence[Pair]) -> list[Prompt]:
        """Encodes in parallel; truncates the document, then the query, where the limit demands."""
        turns = [self.template.user_turn(p.instruction, p.query, p.document) for p in pairs]
        encodings = self._text.encode_batch([t.text for t in turns], add_special_tokens=False)
        prompts = []
        for turn, encoding in zip(turns, encodings, strict=True):
            excess = max(0, len(encoding.ids) - self._room)
            ids = _truncate(encoding, turn, excess) if excess else encoding.ids
            prompts.append(Prompt(self._head + ids + self._tail, excess))
        return prompts

    def explain(self, pair: Pair) -> Explanation:
        """The prompt of one pair, as `encode` makes it, with control tokens written out."""
        [prompt] = self.encode([pair])
        text = self._tokenizer.decode(prompt.ids, skip_special_tokens=False)
        return Explanation(text, prompt.ids, prompt.truncated)

    def _check_instruction(self, instruction: str) -> None:
        turn = self.template.user_turn(instruction, "", "").text
        left = self._room - len(self._text.encode(turn, add_special_tokens=False).ids)
        if left < LEAST_CONTENT:
            raise ValueError(
                f"instruction is {LEAST_CONTENT - left} tokens too long: a prompt of "
                f"{self.template.max_tokens} tokens must leave {LEAST_CONTENT} for query and "
                "document"
            )


def _truncate(encoding: Encoding, turn: UserTurn, excess: int) -> list[int]:
    """Removes ``excess`` tokens from the document's end, then from the query's.

    A token that also covers characters of the template is the template's and stays.
    """
    document, query = [], []
    for i, (start, end) in enumerate(encoding.offsets):
        if start >= turn.document_start:
            document.append(i)
        elif turn.query_start <= start and end <= turn.query_end:
            query.append(i)
    removable = document[::-1] + query[::-1]
    assert len(removable) >= excess, "PromptEncoder.pair let too long an instruction through"
    cut = set(removable[:excess])
    return [id for i, id in enumerate(encoding.ids) if i not in cut]


class EmbeddingEncoder:
    """Encodes texts with one checkpoint's tokenizer and one family's embedding prompt."""

    def __init__(self, tokenizer: Tokenizer, family: str) -> None:
        self._family = family
        self._text = plain_text(tokenizer)
        controls = ("<|endoftext|>",) if family == "qwen3" else ("<|im_start|>", "<|im_end|>")
        self._check_room = lru_cache(maxsize=64)(self._check_instruction)
        self._controls = {name: [single_token(tokenizer, name)] for name in controls} | {"": []}

    def wording(self, name: str, value: object, instruction: str | None) -> Wording:
        """Validates one input; ``name`` (``inputs[3]``) is for the messages.

        Raises:
            TypeError: a text that is not str.
            ValueError: a lone surrogate; an instruction other than that of a formatted input; an
                instruction that leaves no room.
        """
        if instruction is not None:
            check_text("instruction", instruction)
        own, text = unformat_embedding(self._family, check_text(name, value))
        if own is not None and instruction not in (None, own):
            raise ValueError(
                f"{name}: it is formatted with the instruction {own!r}, and instruction= says "
                f"{instruction!r}; give one of them"
            )
        chosen = instruction if own is None else own
        self._check_room(chosen)
        return embedding_prompt(self._family, chosen, text)

    def _check_instruction(self, instruction: str | None) -> None:
        [empty] = self.encode([embedding_prompt(self._family, instruction, "")])
        left = MAX_EMBEDDING_TOKENS - len(empty.ids) - empty.truncated
        if left < LEAST_CONTENT:
            raise ValueError(
                f"instruction is {LEAST_CONTENT - left} tokens too long: a prompt of "
                f"{MAX_EMBEDDING_TOKENS} tokens must leave {LEAST_CONTENT} for the content"
            )

    def stream(self, wordings: Sequence[Wording]) -> Iterator[Prompt]:
        """Encodes any number of inputs, holding the token ids of a few hundred at a time."""
        for start in range(0, len(wordings), 256):
            yield from self.encode(wordings[start : start + 256])

    def encode(self, wordings: Sequence[Wording]) -> list[Prompt]:
        """Encodes in parallel; truncates contents from the end, where the limit demands."""
        texts = [text for wording in wordings for text in wording.texts]
        encodings = iter(self._text.encode_batch(texts, add_special_tokens=False))
        prompts = []
        for wording in wordings:
            parts = [next(encodings) for _ in wording.texts]
            total = sum(len(part.ids) for part in parts) + sum(map(bool, wording.controls))
            excess = max(0, total - MAX_EMBEDDING_TOKENS)
            ids: list[int] = []
            for i, (part, control) in enumerate(zip(parts, wording.controls, strict=True)):
                kept = len(part.ids) - (excess if i == wording.content else 0)
                ids += part.ids[:kept] + self._controls[control]
            prompts.append(Prompt(ids, excess))
        return prompts
