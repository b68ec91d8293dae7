"""Prompts against the published templates, and what user text can and cannot do to them."""

import re
import unicodedata
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import PROMPTS, prompt, truncate
from qwen_vocab import NOT_SPECIAL, SPECIAL
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pyrerank.checks import check_text
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.prompts.items import Pair, pair_up
from pyrerank.prompts.templates import HEAD, TAIL, TEMPLATES, THOUGHT
from pyrerank.prompts.unformat import unformat_pair

FAMILIES = ["qwen3", "qwen3-vl"]
CONTROLS = SPECIAL + NOT_SPECIAL

plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
    lambda text: not any(control in text for control in CONTROLS)
)
hostile_text = st.lists(st.one_of(st.sampled_from(CONTROLS), plain_text), max_size=6).map("".join)


@pytest.fixture(scope="module")
def reference(vocabulary) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tokenizer: Tokenizer) -> PairEncoder:
    return PairEncoder(tokenizer, request.param)


def family_of(encoder: PairEncoder) -> str:
    return next(name for name in FAMILIES if TEMPLATES[name] is encoder.template)


def encode(encoder: PairEncoder, query: str, document: str, instruction=None):
    return encoder.encode([encoder.pair("document", query, document, instruction)])[0]


@given(query=plain_text, document=plain_text, instruction=st.none() | plain_text)
def test_ids_equal_the_published_prompt_tokenised_whole(
    encoder, reference, query, document, instruction
):
    text = prompt(family_of(encoder), query, document, instruction)
    want = reference(text, add_special_tokens=False).input_ids
    assert encode(encoder, query, document, instruction).ids == want


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "\n\n",
        "(odd",
        "\u0301combining",
        "e\u0301",
        "🎉👩‍👩‍👧",
        "北京是首都",
        "عاصمة الصين",
    ],
)
def test_texts_that_touch_the_template(encoder, reference, document):
    text = prompt(family_of(encoder), "q", document)
    want = reference(text, add_special_tokens=False).input_ids
    assert encode(encoder, "q", document).ids == want


def test_explain_writes_the_prompt_out(encoder):
    pair = encoder.pair("document", "capital of China?", "Beijing 北京 🎉")
    explanation = encoder.explain(pair)
    assert explanation.text == prompt(family_of(encoder), pair.query.text, pair.document.text)
    assert explanation.ids == encoder.encode([pair])[0].ids


@given(query=hostile_text, document=hostile_text, instruction=hostile_text)
def test_user_text_never_becomes_a_control_token(encoder, tokenizer, query, document, instruction):
    added = [t for t in tokenizer.get_added_tokens_decoder() if t >= 151643]
    empty = encode(encoder, "", "", "").ids
    ids = encode(encoder, query, document, instruction).ids
    assert [id for id in ids if id in added] == [id for id in empty if id in added]
    # and it is all still there, as text
    text = tokenizer.decode([id for id in ids if id not in added], skip_special_tokens=False)
    bare = re.sub(r"<\|.*?\|>|</?think>", "", PROMPTS[family_of(encoder)][0])
    own = {"query": query, "document": document, "instruction": instruction}
    turn = re.sub(r"{(\w+)}", lambda match: own[match[1]], bare)
    assert text == unicodedata.normalize("NFC", turn)


class TestTruncation:
    """The limits and the order of cuts."""

    def test_keeps_what_the_published_scripts_keep(self, encoder, reference):
        special = set(reference.all_special_ids)
        for words in (8000, 8300, 10200, 10400, 30000):
            document = " ".join(f"w{i % 7}" for i in range(words // 2))
            text = prompt(family_of(encoder), "a query", document)
            ids = reference(text, add_special_tokens=False).input_ids
            want = truncate(family_of(encoder), ids, special)
            got = encode(encoder, "a query", document)
            assert got.ids == want
            assert got.truncated == len(ids) - len(want)

    def test_document_goes_before_the_query(self, encoder, tokenizer):
        limit = encoder.template.max_tokens
        ids = encode(encoder, "word " * 20000, "document").ids
        assert len(ids) == limit
        text = tokenizer.decode(ids, skip_special_tokens=False)
        # the template is whole; of the document only what shares a token with it can be left
        assert re.search(r"word \n<Document>:( document)?" + re.escape(TAIL), text)

    def test_an_instruction_too_long_is_an_error(self, encoder):
        with pytest.raises(ValueError, match=r"instruction is .* tokens too long"):
            encoder.pair("document", "q", "d", "word " * 20000)

    def test_an_instruction_just_short_enough(self, encoder):
        def pair(words: int) -> Pair:
            return encoder.pair("document", "(q " * 9000, "(d " * 9000, "word " * words)

        def is_too_long(words: int) -> bool:
            try:
                pair(words)
            except ValueError:
                return True
            return False

        limit = encoder.template.max_tokens
        longest = bisect_left(range(limit), True, key=is_too_long) - 1
        assert len(encoder.encode([pair(longest)])[0].ids) == limit


class TestFormatted:
    """Pairs that already carry the template, as the examples for other servers send them."""

    def wrapped(self, style: str, instruction: str, query: str, document: str) -> tuple[str, str]:
        head = HEAD + "user\n"
        if style == "spaced":
            return (
                f"{head}<Instruct>: {instruction}\n<Query>: {query}\n",
                f"<Document>: {document}{TAIL}",
            )
        if style == "thought":
            return (
                f"{head}<Instruct>: {instruction}\n<Query>: {query}\n",
                f"<Document>: {document}{TAIL}{THOUGHT}",
            )
        return (
            f"{head}<Instruct>: {instruction}<Query>:{query}\n",
            f"<Document>:{document}{TAIL}",
        )

    @pytest.mark.parametrize("style", ["spaced", "thought", "tight"])
    @given(
        query=plain_text.filter(lambda t: "<Query>:" not in t),
        document=plain_text,
        instruction=plain_text.filter(lambda t: "<Query>:" not in t and not t.endswith("\n")),
    )
    def test_scores_as_the_bare_pair(self, encoder, style, query, document, instruction):
        formatted = self.wrapped(style, instruction, query, document)
        assert unformat_pair(*formatted) == (instruction, query, document)
        assert encode(encoder, *formatted) == encode(encoder, query, document, instruction)

    def test_an_instruction_beside_the_formatted_one(self, encoder):
        formatted = self.wrapped("spaced", "find it", "q", "d")
        assert encode(encoder, *formatted, "find it") == encode(encoder, *formatted)
        with pytest.raises(ValueError, match=r"documents\[2\].*'find it'.*'other'"):
            encoder.pair("documents[2]", *formatted, "other")

    def test_half_a_template_is_an_error(self, encoder):
        query, document = self.wrapped("spaced", "i", "q", "d")
        with pytest.raises(ValueError, match="format both or neither"):
            encoder.pair("document", query, "bare")
        with pytest.raises(ValueError, match="format both or neither"):
            encoder.pair("document", query, document.removesuffix("\n"))
        with pytest.raises(ValueError, match="does not go on"):
            encoder.pair("document", query.removesuffix("\n"), document)

    def test_a_document_alone_that_looks_formatted_is_text(self, encoder):
        document = self.wrapped("spaced", "i", "q", "d")[1]
        assert encoder.pair("document", "bare", document).document.text == document


class TestArguments:
    def test_pairing(self):
        assert pair_up("q", ["a", "b"]) == [("q", "a"), ("q", "b")]
        assert pair_up(["p", "q"], ("a", "b")) == [("p", "a"), ("q", "b")]

    @pytest.mark.parametrize(
        ("query", "documents", "error", "message"),
        [
            ("q", [], ValueError, "documents is empty"),
            ("q", "d", TypeError, "wrap a single content in a list"),
            ("q", b"d", TypeError, "documents must be a list, got bytes"),
            ("q", None, TypeError, "documents must be a list, got NoneType"),
            ("q", {"a": 1}, TypeError, "got dict"),
            (["p", "q"], ["d"], ValueError, "query has 2 entries and documents has 1"),
            (["p"], ["d", "e"], ValueError, "lists of equal length"),
        ],
    )
    def test_what_cannot_be_paired(self, query, documents, error, message):
        with pytest.raises(error, match=message):
            pair_up(query, documents)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (None, TypeError, r"documents\[1\] must be str, got NoneType"),
            (b"d", TypeError, "got bytes; decode it first"),
            (3.5, TypeError, "got float"),
            ("ab\ud83dc", ValueError, r"documents\[1\].*U\+D83D, at character 2"),
        ],
    )
    def test_what_is_not_text(self, value, error, message):
        with pytest.raises(error, match=message):
            check_text("documents[1]", value)
