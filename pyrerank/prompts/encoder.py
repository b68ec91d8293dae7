"""Inputs: from what the caller passed to token ids, truncated to the family's limit.

User text is encoded without control tokens: the characters ``<|im_end|>`` in a document are text,
never a turn boundary.  See `pyrerank.prompts.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, ClassVar, Generic, Self

from tokenizers import Encoding, Tokenizer

from pyrerank.checks import check_int, check_text
from pyrerank.errors import CheckpointError
from pyrerank.media.images import SIDE
from pyrerank.media.reader import Content, Reader
from pyrerank.prompts.items import Explanation, Input, Item, Pair, Prompt, Span, Visual
from pyrerank.prompts.templates import (
    IMAGE,
    MAX_EMBEDDING_TOKENS,
    TEMPLATES,
    VIDEO,
    Wording,
    chat_prompt,
    embedding_prompt,
    text_embedding_prompt,
    unformat,
    unformat_embedding,
)
from pyrerank.prompts.tokens import PlainText, control_pattern, single_token, special_tokens
from pyrerank.weights.modules import Modules

if TYPE_CHECKING:
    from pyrerank.weights.checkpoint import Checkpoint

START, END = "<|vision_start|>", "<|vision_end|>"
# An instruction that leaves less is a mistake; and as words at the seams of the template may share
# a token with it, a few more tokens than the template's own can be beyond truncation.
LEAST_CONTENT = 16


class Encoder(Generic[Item]):
    """Encodes with one checkpoint's tokenizer.

    Args:
        tokenizer: the checkpoint's.
        family: ``"qwen3"``, which reads text only, or ``"qwen3-vl"``.
        modules: what the checkpoint's folder says of prompts and limits.

    Attributes:
        max_tokens: most tokens of a whole prompt.
    """

    _limits: ClassVar[
        Mapping[str, int]
    ]  # of the published scripts: most tokens of a prompt, by family
    _least: int  # tokens of the shortest prompt that says something

    def __init__(self, tokenizer: Tokenizer, family: str, modules: Modules | None = None) -> None:
        self.modules = modules or Modules()
        self.family = family
        self.max_tokens = self._published = self.modules.limit(self._limits[family])
        self._tokenizer = tokenizer
        self._text = text = PlainText(tokenizer)
        self._controls = control_pattern(tokenizer)
        self._token = cache(lambda token: single_token(tokenizer, token))
        # The ids of what is no content: texts of templates, instructions.  The function knows
        # nothing of the encoder, which would refer to itself, and be freed late.
        self._fixed = lru_cache(maxsize=256)(lambda fixed: text.ids(*text.encode([fixed])))

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_tokens: int | None = None) -> Self:
        """The encoder of a checkpoint, of which it reads the tokenizer and no weight.

        Raises:
            CheckpointError: the tokenizer cannot be read, or is not of a model that pyrerank runs.
            ValueError: ``max_tokens``, see `limit`.
        """
        tokenizer = checkpoint.tokenizer()
        try:
            encoder = cls(tokenizer, checkpoint.family, checkpoint.modules)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        encoder.limit(max_tokens, checkpoint.max_positions)
        return encoder

    def limit(self, max_tokens: int | None, most: int) -> None:
        """Sets `max_tokens`; None takes what the model was published with.

        Raises:
            ValueError: it leaves no room for text, or is over ``most``, which the model allows.
        """
        if max_tokens is None:
            self.max_tokens = self._published
            return
        wanted = f"an int from {self._least} to {most}, the checkpoint's max_position_embeddings"
        self.max_tokens = check_int(
            "max_tokens", max_tokens, f"{wanted}, or None", self._least, most
        )

    def wording(self, item: Item) -> Wording:
        """The prompt in words."""
        raise NotImplementedError

    def _shortest(self, item: Item) -> int:
        """How many tokens a prompt must be allowed, where that of an empty item needs all its
        own.  Raises ValueError for a tokenizer of another family."""
        [prompt] = self.encode([item])
        return len(prompt.ids) + LEAST_CONTENT

    def stream(self, items: Sequence[Item]) -> Iterator[Prompt]:
        """Encodes any number of items, holding the token ids of a few hundred at a time."""
        for start in range(0, len(items), 256):
            yield from self.encode(items[start : start + 256])

    def encode(self, items: Sequence[Item], max_tokens: int | None = None) -> list[Prompt]:
        """Encodes in parallel; where the limit demands, the model's or a lower ``max_tokens``, cuts
        the text of contents, the last content first, each from its end.

        Raises:
            ValueError: ``max_tokens`` is less than what is not text.
        """
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        wordings = [self.wording(item) for item in items]
        own = [{text: wording.texts[text] for text, *_ in wording.own} for wording in wordings]
        texts = [text for each in own for text in each.values()]
        encodings = iter(self._text.encode(texts))
        prompts = []
        for item, wording, each in zip(items, wordings, own, strict=True):
            encoded = {i: next(encodings) for i in each}
            prompts.append(self._assemble(wording, encoded, _visuals(item), limit))
        return prompts

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text that has ``count`` tokens; all of a shorter one."""
        [encoding] = self._text.encode([text])
        offsets = encoding.offsets
        return text[: offsets[count - 1][1]] if len(offsets) > count else text

    def explain(self, item: Item) -> Explanation:
        """The prompt of one item, as `encode` makes it, with control tokens written out."""
        [prompt] = self.encode([item])
        text = self._tokenizer.decode(prompt.ids, skip_special_tokens=False)
        return Explanation(text, prompt.ids, prompt.truncated)

    def _assemble(
        self,
        wording: Wording,
        own: dict[int, Encoding],
        visuals: Sequence[Visual],
        limit: int,
    ) -> Prompt:
        parts = [
            self._text.ids(own[i]) if i in own else self._fixed(text)
            for i, text in enumerate(wording.texts)
        ]
        runs = _runs(visuals)
        excess = max(0, sum(map(len, parts)) + _others(wording, runs) - limit)
        if excess:
            parts = _truncate(parts, wording, own, excess)
        ids = list(parts[0])
        spans: list[Span] = []
        for control, part in zip(wording.controls, parts[1:], strict=True):
            if control in (IMAGE, VIDEO):
                height, width = runs[len(spans)]
                ids.append(self._token(START))
                spans.append(Span(len(ids), height, width))
                ids += [self._token(control)] * (height * width)
                ids.append(self._token(END))
            else:
                ids.append(self._token(control))
            ids += part
        return Prompt(ids, excess, tuple(visuals), tuple(spans))

    def _read(self, name: str, value: object, reader: Reader | None) -> Content:
        content = (reader or Reader()).read(value, name, vision=self.family == "qwen3-vl")
        if content.text is not None:
            check_text(name, content.text)
        if self.family == "qwen3" and content.visuals:
            raise ValueError(
                f"{name} has a picture, and this model reads text only; use a Qwen3-VL checkpoint"
            )
        return content

    def _checked(self, name: str, item: Item) -> Item:
        """The item, if what may not be cut from its prompt leaves room."""
        wording, runs = self.wording(item), _runs(_visuals(item))
        bare = list(wording.texts)
        for i, start, end in reversed(wording.own):
            bare[i] = bare[i][:start] + bare[i][end:]
        needed = sum(len(self._fixed(text)) for text in bare) + _others(wording, runs)
        if any(end > start for _, start, end in wording.own):
            needed += LEAST_CONTENT
        over = needed - self.max_tokens
        if over > 0 and runs:
            raise ValueError(
                f"{name}: its pictures are {over} tokens too many for a prompt of "
                f"{self.max_tokens} tokens; give fewer, or smaller ones, see pyrerank.Media"
            )
        if over > 0:
            raise ValueError(
                f"instruction is {over} tokens too long: a prompt of {self.max_tokens} tokens "
                f"must leave {LEAST_CONTENT} for the text; shorten it, or raise max_tokens"
            )
        return item


class PairEncoder(Encoder[Pair]):
    """Encodes pairs, with one family's template, or with the chat template that ``modules`` has.

    Attributes:
        yes, no: ids of the tokens whose logits are compared; without ``no``, yes's is the score.
        default: instruction of pairs for which nobody gave one.
        is_published: whether prompts are worded as the published script words them.
    """

    _limits: ClassVar = {
        family: each.max_tokens + each.uncounted for family, each in TEMPLATES.items()
    }
    yes: int
    no: int | None

    def __init__(self, tokenizer: Tokenizer, family: str, modules: Modules | None = None) -> None:
        super().__init__(tokenizer, family, modules)
        self.template, modules = TEMPLATES[family], self.modules
        self.yes, self.no = modules.answers or (self._token("yes"), self._token("no"))
        self.default: str | None = modules.default_prompt or self.template.default_instruction
        self._chat, prompt = modules.chat, modules.default_prompt
        if self._chat is not None and self._chat.scoring(prompt is not None) is None:
            self._chat = None  # it knows no pairs
        elif self._chat is not None and self._as_published(prompt):
            self._chat = None
        elif self._chat is not None:
            self.default = prompt
        self.is_published = self._chat is None
        self._least = self._shortest(Pair(self.default, Content(), Content()))

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_tokens: int | None = None) -> Self:
        """As `Encoder.of`; refuses a checkpoint that embeds, as well."""
        if checkpoint.modules.task == "embed":
            raise CheckpointError(
                f"{checkpoint.path} is published for embedding: use Embedder, or pyrerank embed"
            )
        return super().of(checkpoint, max_tokens)

    def _as_published(self, prompt: str | None) -> bool:
        """Whether the chat template words pairs as the published script does."""
        query, document = Content(text="query"), Content(text="document")
        own = self.template.default_instruction
        # without a prompt, the template has its own default
        given = [("instruction", "instruction"), (prompt, own if prompt is None else prompt)]
        return all(
            self.wording(Pair(ours, query, document))
            == self.template.prompt(published, query, document)
            for ours, published in given
        )

    def wording(self, item: Pair) -> Wording:
        if self._chat is not None:
            parts = self._chat.scoring(item.instruction is not None)
            if parts is None:
                raise ValueError(
                    f"the checkpoint's chat template ({self._chat.file}) has no place for an "
                    "instruction; give none"
                )
            contents = {"query": item.query, "document": item.document}
            return chat_prompt(parts, item.instruction, contents, self._controls)
        return self.template.prompt(item.instruction or "", item.query, item.document)

    def pair(
        self,
        name: str,
        query: object,
        document: object,
        instruction: str | None = None,
        reader: Reader | None = None,
        default: str | None = None,
    ) -> Pair:
        """Reads and validates one pair; ``name`` (``documents[3]``, ``line 7``) is for messages.

        ``default`` is the instruction where neither ``instruction`` nor the pair has one; None
        takes the template's.

        Raises:
            TypeError, ValueError: a content that `Reader` does not read; a lone surrogate; half a
                template, or one with an instruction other than the one given; an instruction or
                pictures that leave no room for text; pictures where the model reads text only.
        """
        for given in (instruction, default):
            if given is not None:
                check_text("instruction", given)
        contents = [
            self._read(f"the query of {name}", query, reader),
            self._read(name, document, reader),
        ]
        texts = [content.text or "" for content in contents]
        own = None
        if self._chat is None:
            try:
                own, *texts = unformat(*texts)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if own is None:
            own = default if instruction is None else instruction
            own = self.default if own is None else own
        else:
            _check_only(name, own, instruction)
            contents = [replace(c, text=t) for c, t in zip(contents, texts, strict=True)]
        return self._checked(name, Pair(own, *contents))


class InputEncoder(Encoder[Input]):
    """Encodes inputs, with one family's embedding prompt, or with what ``modules`` has of it."""

    _limits: ClassVar = dict.fromkeys(TEMPLATES, MAX_EMBEDDING_TOKENS)

    def __init__(self, tokenizer: Tokenizer, family: str, modules: Modules | None = None) -> None:
        super().__init__(tokenizer, family, modules)
        self._ends = special_tokens(tokenizer)
        if not self.modules.listed and self._ends == ([], []):
            self._ends = [], ["<|endoftext|>"]  # as the published tokenizer ends a text
        self._edits = False  # whether the published script's edits of instructions are made
        if family == "qwen3-vl" and self.modules.listed:
            if self.modules.chat is None:
                raise ValueError(
                    "modules.json is there, and sentence_bert_config.json has no 'message' among "
                    "its modalities: sentence-transformers would embed bare texts; download the "
                    "whole model again, or leave modules.json out"
                )
            example = Input("Say.", Content(text="text"))
            self._edits = self.wording(example) == embedding_prompt("Say.", example.content)
        self._least = self._shortest(Input(None, Content(), self.modules.default_prompt))

    def wording(self, item: Input) -> Wording:
        edits = self._edits and item.instruction is not None  # the folder's prompts are as they are
        if self.modules.chat is not None and not edits:
            said = item.prompt if item.instruction is None else item.instruction
            parts = self.modules.chat.embedding(said is not None)
            return chat_prompt(parts, said, {"user": item.content}, self._controls)
        if self.family == "qwen3-vl":
            return embedding_prompt(item.instruction, item.content)
        return text_embedding_prompt(
            item.instruction, item.prompt, item.content, self._ends, self._controls
        )

    def input(
        self,
        name: str,
        value: object,
        instruction: str | None,
        reader: Reader | None = None,
        prompt_name: str | None = None,
    ) -> Input:
        """Reads and validates one input; ``name`` (``inputs[3]``) is for messages.

        ``prompt_name`` chooses one of the folder's prompts in place of an instruction.

        Raises: as `PairEncoder.pair`; ValueError: no such prompt, or an instruction as well.
        """
        if instruction is not None:
            check_text("instruction", instruction)
        prompt = self._prompt(prompt_name, instruction)
        content = self._read(name, value, reader)
        if content.text is not None:
            own, text = unformat_embedding(self.family, content.text)
            content = replace(content, text=text)
            if own is not None:
                _check_only(name, own, instruction)
                instruction = own
        item = Input(instruction, content, prompt)
        wording = self.wording(item)
        if not wording.controls and not any(wording.texts):
            raise ValueError(
                f"{name} is empty, and this checkpoint's prompt adds no token to a text; leave it "
                "out"
            )
        return self._checked(name, item)

    def _prompt(self, name: str | None, instruction: str | None) -> str | None:
        prompts = self.modules.prompts
        if name is None:
            return self.modules.default_prompt if instruction is None else None
        if name not in prompts:
            raise ValueError(
                f"prompt_name {name!r} is none of the checkpoint's prompts, which are "
                f"{', '.join(map(repr, prompts)) or 'none'}"
            )
        if instruction is not None:
            raise ValueError(f"give prompt_name {name!r} or an instruction, not both")
        return prompts[name] or None


def _check_only(name: str, own: str, instruction: str | None) -> None:
    if instruction not in (None, own):
        raise ValueError(
            f"{name}: it is formatted with the instruction {own!r}, and instruction= says "
            f"{instruction!r}; give one of them"
        )


def _visuals(item: Pair | Input) -> tuple[Visual, ...]:
    return tuple(visual for content in item.contents for visual in content.visuals)


def _runs(visuals: Sequence[Visual]) -> list[tuple[int, int]]:
    """Rows and columns of each run of vision tokens."""
    shapes = [visual.frames.shape for visual in visuals]
    return [(h // SIDE, w // SIDE) for f, h, w, _ in shapes for _ in range(max(1, f // 2))]


def _others(wording: Wording, runs: Sequence[tuple[int, int]]) -> int:
    """How many tokens a prompt has besides those of its texts."""
    return len(wording.controls) + sum(height * width + 1 for height, width in runs)


def _truncate(
    parts: Sequence[list[int]], wording: Wording, own: Mapping[int, Encoding], excess: int
) -> list[list[int]]:
    """Cuts ``excess`` tokens from the ends of contents' texts, the last content first.

    A token that also covers characters of the template is the template's and stays.
    """
    cut: dict[int, set[int]] = {i: set() for i in own}
    for i, start, end in reversed(wording.own):
        mine = [n for n, (a, b) in enumerate(own[i].offsets) if start <= a and b <= end]
        gone = mine[max(0, len(mine) - excess) :]
        cut[i].update(gone)
        excess -= len(gone)
    if excess:
        raise ValueError(f"a prompt may not be as short: {excess} tokens more are not of its text")
    return [
        [id for n, id in enumerate(part) if n not in cut[i]] if cut.get(i) else part
        for i, part in enumerate(parts)
    ]
