"""Encoders: from an item to its prompt, which is truncated to the limit.

Text of callers is encoded without control tokens: the characters ``<|im_end|>`` in a document stay
text, and never end a turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, ClassVar, Generic, Self

from tokenizers import Encoding, Tokenizer

from pyrerank.checks import check_int, check_text
from pyrerank.errors import CheckpointError
from pyrerank.media.reader import Content, Reader
from pyrerank.prompts.items import Explanation, Input, Item, Pair, Prompt, Span
from pyrerank.prompts.templates import (
    EMBEDDING,
    MAX_EMBEDDING_TOKENS,
    TEMPLATES,
    TEXT_EMBEDDING,
    Wording,
    representation,
)
from pyrerank.prompts.tokens import PlainText, control_pattern, single_token, special_tokens
from pyrerank.prompts.truncation import LEAST_CONTENT, check_room, truncate
from pyrerank.prompts.unformat import check_agreed, unformat_input, unformat_pair
from pyrerank.weights.modules import Modules

if TYPE_CHECKING:
    from pyrerank.weights.checkpoint import Checkpoint

START, END = "<|vision_start|>", "<|vision_end|>"


class Encoder(Generic[Item]):
    """Makes prompts of items, with one checkpoint's tokenizer.

    Attributes:
        family: ``"qwen3"``, which reads text only, or ``"qwen3-vl"``.
        modules: what the checkpoint's folder says of prompts and limits.
        max_tokens: most tokens of a whole prompt; see `limit`.
    """

    _limits: ClassVar[Mapping[str, int]]  # the published scripts': most tokens, by family
    _least: int  # tokens of the shortest prompt that says something

    def __init__(self, tokenizer: Tokenizer, family: str, modules: Modules | None = None) -> None:
        self.modules = modules or Modules()
        self.family = family
        self.max_tokens = self._default_limit = self.modules.limit(self._limits[family])
        self._tokenizer = tokenizer
        self._text = text = PlainText(tokenizer)
        self._controls = control_pattern(tokenizer)
        self._token = cache(lambda token: single_token(tokenizer, token))
        # The ids of what is no content.  The function holds no self, which would be freed late.
        self._fixed = lru_cache(maxsize=256)(lambda fixed: text.ids(*text.encode([fixed])))

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_tokens: int | None = None) -> Self:
        """The encoder of a checkpoint, of which it reads no weight.

        Raises:
            CheckpointError: the tokenizer cannot be read, or is not of a model that pyrerank runs.
            ValueError: as `limit`.
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
        least = self._least
        wanted = f"an int from {least} to {most}, the checkpoint's max_position_embeddings, or None"
        if max_tokens is not None:
            max_tokens = check_int("max_tokens", max_tokens, wanted, least, most)
        self.max_tokens = self._default_limit if max_tokens is None else max_tokens

    def wording(self, item: Item) -> Wording:
        raise NotImplementedError

    def stream(self, items: Sequence[Item]) -> Iterator[Prompt]:
        """Encodes any number of items, holding the token ids of a few hundred at a time."""
        for start in range(0, len(items), 256):
            yield from self.encode(items[start : start + 256])

    def encode(self, items: Sequence[Item], max_tokens: int | None = None) -> list[Prompt]:
        """Encodes items in parallel, each truncated to the lower of both limits.

        Raises:
            ValueError: ``max_tokens`` is less than the tokens that are never cut.
        """
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        wordings = [self.wording(item) for item in items]
        encodings = iter(self._text.encode([w.texts[i] for w in wordings for i in w.places]))
        prompts = []
        for item, wording in zip(items, wordings, strict=True):
            encoded = {i: next(encodings) for i in wording.places}
            prompts.append(self._assemble(item, wording, encoded, limit))
        return prompts

    def first_tokens(self, text: str, count: int) -> str:
        """The first ``count`` tokens of a text, as text."""
        [encoding] = self._text.encode([text])
        offsets = encoding.offsets
        return text[: offsets[count - 1][1]] if len(offsets) > count else text

    def explain(self, item: Item) -> Explanation:
        """The prompt of one item, as `encode` makes it."""
        [prompt] = self.encode([item])
        text = self._tokenizer.decode(prompt.ids, skip_special_tokens=False)
        return Explanation(text, prompt.ids, prompt.truncated)

    def _assemble(
        self, item: Item, wording: Wording, encodings: Mapping[int, Encoding], limit: int
    ) -> Prompt:
        parts = [
            self._text.ids(encodings[i]) if i in encodings else self._fixed(text)
            for i, text in enumerate(wording.texts)
        ]
        excess = max(0, sum(map(len, parts)) + wording.other_tokens - limit)
        if excess:
            parts = truncate(parts, wording, encodings, excess)
        ids = list(parts[0])
        spans: list[Span] = []
        for token, part in zip(wording.between, parts[1:], strict=True):
            if isinstance(token, str):
                ids.append(self._token(token))
            else:
                ids.append(self._token(START))
                spans.append(Span(len(ids), token.rows, token.columns))
                ids += [self._token(token.pad)] * (token.rows * token.columns)
                ids.append(self._token(END))
            ids += part
        visuals = tuple(v for content in item.contents.values() for v in content.visuals)
        return Prompt(ids, excess, visuals, tuple(spans))

    def _shortest(self, item: Item) -> int:
        """How many tokens a prompt must be allowed, if that of ``item`` has nothing to cut."""
        [prompt] = self.encode([item])
        return len(prompt.ids) + LEAST_CONTENT

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
        """Returns the item, if what may not be cut from its prompt leaves room."""
        wording = self.wording(item)
        texts = sum(len(self._fixed(text)) for text in wording.without_contents())
        check_room(name, wording, texts + wording.other_tokens, self.max_tokens)
        return item


class PairEncoder(Encoder[Pair]):
    """Makes prompts of pairs, with one family's template, or with the folder's chat template.

    Attributes:
        yes, no: ids of the tokens whose logits are compared; without ``no``, yes's is the score.
        default: instruction of pairs for which nobody gave one.
        is_published: whether prompts are worded as the published script words them.
    """

    _limits: ClassVar = {family: template.max_tokens for family, template in TEMPLATES.items()}
    yes: int
    no: int | None

    def __init__(self, tokenizer: Tokenizer, family: str, modules: Modules | None = None) -> None:
        super().__init__(tokenizer, family, modules)
        self.template, modules = TEMPLATES[family], self.modules
        self.yes, self.no = modules.answers or (self._token("yes"), self._token("no"))
        self.default: str | None = modules.default_prompt or self.template.default_instruction
        self._chat, prompt = modules.chat, modules.default_prompt
        if self._chat is not None:
            knows_pairs = self._chat.scoring(prompt is not None) is not None
            if knows_pairs and not self._as_published(prompt):
                self.default = prompt
            else:
                self._chat = None
        self.is_published = self._chat is None
        self._least = self._shortest(Pair(self.default, Content(), Content()))

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        max_tokens: int | None = None,
        instruction: str | None = None,
    ) -> Self:
        """As `Encoder.of`; it refuses a checkpoint that embeds, and sets `default`."""
        if checkpoint.modules.task == "embed":
            raise CheckpointError(
                f"{checkpoint.path} is published for embedding: use Embedder, or pyrerank embed"
            )
        encoder = super().of(checkpoint, max_tokens)
        if instruction is not None:
            encoder.default = check_text("instruction", instruction)
        return encoder

    def _as_published(self, prompt: str | None) -> bool:
        """Whether the chat template words pairs as the published script does."""
        query, document = Content(text="query"), Content(text="document")
        # without a prompt, the template has its own default
        default = self.template.default_instruction if prompt is None else prompt
        return all(
            self.wording(Pair(ours, query, document))
            == self._published(Pair(published, query, document))
            for ours, published in (("instruction", "instruction"), (prompt, default))
        )

    def wording(self, item: Pair) -> Wording:
        if self._chat is None:
            return self._published(item)
        parts = self._chat.scoring(item.instruction is not None)
        if parts is None:
            raise ValueError(
                f"the checkpoint's chat template ({self._chat.file}) has no place for an "
                "instruction; give none"
            )
        return Wording().parts(parts, item.instruction, item.contents, self._controls)

    def _published(self, item: Pair) -> Wording:
        """The prompt as the published script words it."""
        return Wording().parts(self.template.parts, item.instruction, item.contents)

    def pair(
        self,
        name: str,
        query: object,
        document: object,
        instruction: str | None = None,
        reader: Reader | None = None,
    ) -> Pair:
        """Reads and validates one pair.

        Args:
            name: what messages call the document: ``documents[3]``, ``line 7``.
            instruction: None takes that of a templated pair, or the encoder's default.

        Raises:
            TypeError, ValueError: as `Reader.read`; for a lone surrogate, half a template, or one
                with an instruction other than the one given; for an instruction or pictures that
                leave no room for text, and for pictures where the model reads text only.
        """
        if instruction is not None:
            check_text("instruction", instruction)
        asked = self._read(f"the query of {name}", query, reader)
        found = self._read(name, document, reader)
        own = None
        if self._chat is None:
            try:
                own, *texts = unformat_pair(asked.text or "", found.text or "")
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if own is not None:
            check_agreed(name, own, instruction)
            asked, found = replace(asked, text=texts[0]), replace(found, text=texts[1])
            instruction = own
        elif instruction is None:
            instruction = self.default
        return self._checked(name, Pair(instruction, asked, found))


class InputEncoder(Encoder[Input]):
    """Makes prompts of inputs, with one family's embedding prompt, or with the folder's own."""

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
            self._edits = self.wording(example) == self._published(example)
        self._least = self._shortest(Input(None, Content(), self.modules.default_prompt))

    def wording(self, item: Input) -> Wording:
        # the script edits a caller's instruction, and leaves the folder's prompts as they are
        edits = self._edits and item.instruction is not None
        if self.modules.chat is not None and not edits:
            said = item.prompt if item.instruction is None else item.instruction
            parts = self.modules.chat.embedding(said is not None)
            return Wording().parts(parts, said, item.contents, self._controls)
        return self._published(item)

    def _published(self, item: Input) -> Wording:
        """The prompt as the published script words it, or with the folder's text before it."""
        if self.family == "qwen3-vl":
            return Wording().parts(EMBEDDING, representation(item.instruction), item.contents)
        parts = [item.prompt or "", "user", ""] if item.instruction is None else TEXT_EMBEDDING
        before, after = self._ends
        wording = Wording().tokens(*before)
        wording.parts(parts, item.instruction, item.contents, self._controls)
        return wording.tokens(*after)

    def input(
        self,
        name: str,
        value: object,
        instruction: str | None = None,
        reader: Reader | None = None,
        prompt_name: str | None = None,
    ) -> Input:
        """As `PairEncoder.pair`, for one input.

        ``prompt_name`` is one of the folder's prompts, in place of an instruction; ValueError is
        raised if there is no such prompt, or an instruction, too.
        """
        if instruction is not None:
            check_text("instruction", instruction)
        prompt = self._prompt(prompt_name, instruction)
        content = self._read(name, value, reader)
        if content.text is not None:
            own, text = unformat_input(self.family, content.text)
            content = replace(content, text=text)
            if own is not None:
                check_agreed(name, own, instruction)
                instruction = own
        item = Input(instruction, content, prompt)
        wording = self.wording(item)
        if not wording.between and not any(wording.texts):
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
            known = ", ".join(map(repr, prompts)) or "none"
            raise ValueError(
                f"prompt_name {name!r} is none of the checkpoint's prompts, which are {known}"
            )
        if instruction is not None:
            raise ValueError(f"give prompt_name {name!r} or an instruction, not both")
        return prompts[name] or None
