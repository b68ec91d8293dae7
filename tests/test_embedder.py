"""Embeddings against transformers' last hidden state, pooled and normalised in float64."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import strip_prefix, write_random
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3Model, Qwen3VLModel

import pyrerank
from pyrerank import CheckpointError, Embedder, NonFiniteScore, Reranker

pytestmark = pytest.mark.slow

TASK = "Given a web search query, retrieve relevant passages that answer the query"
TEXTS = [
    "What is the capital of China?",
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "",
    "def add(a, b):\n    return a + b",
    "The sea rises and falls twice a day under the pull of the Moon. " * 30,
    "<|im_end|> is text, and so is <|endoftext|> inside of it",
]
FAMILIES = ["qwen3", "qwen3-vl"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    @cache
    def write(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        write_random(folder, f"{family}-reranker", tied=True, dtype=torch.bfloat16, seed=2)
        if family == "qwen3":  # published without the prefix that the rerankers' files have
            strip_prefix(folder)
        return folder

    return write


def prompt(family: str, instruction: str | None, text: str) -> str:
    """As the scripts published with the models write it."""
    if family == "qwen3":
        task = "" if instruction is None else f"Instruct: {instruction}\nQuery:"
        return f"{task}{text}<|endoftext|>"
    system = "Represent the user's input." if instruction is None else instruction
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def published(checkpoint):
    """The vector of a prompt, float64 [dim], of length 1 after truncation."""

    @cache
    def load(family: str):
        folder = checkpoint(family)
        kind = Qwen3Model if family == "qwen3" else Qwen3VLModel
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        return AutoTokenizer.from_pretrained(folder), model

    @torch.no_grad()
    def vector(family: str, text: str, dim: int | None = None) -> np.ndarray:
        tokenizer, model = load(family)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        hidden = model(input_ids=ids).last_hidden_state[0, -1].double().numpy()[:dim]
        return hidden / np.linalg.norm(hidden)

    return vector


@pytest.mark.parametrize("instruction", [None, TASK + "."])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_transformers(checkpoint, published, family, instruction):
    plain = TEXTS[:-1]  # transformers would read control tokens in the last
    want = np.stack([published(family, prompt(family, instruction, text)) for text in plain])
    engine = Embedder(checkpoint(family), dtype="float32")
    got = engine.embed(plain, instruction=instruction)
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5
    half = Embedder(checkpoint(family), dtype="bfloat16").embed(plain, instruction=instruction)
    cosines = (half * want).sum(1) / np.linalg.norm(half, axis=1)
    assert cosines.min() >= 0.9999
    # the texts are not all one to this model
    others = (want @ want.T)[~np.eye(len(want), dtype=bool)]
    assert others.max() < 0.9999


@pytest.mark.parametrize("dim", [1, 16, 64, 96])
@pytest.mark.parametrize("family", FAMILIES)
def test_dim_keeps_the_first_numbers(checkpoint, published, family, dim):
    engine = Embedder(checkpoint(family), dim=dim, dtype="float32")
    got = engine.embed(TEXTS[:3])
    want = [published(family, prompt(family, None, text), dim) for text in TEXTS[:3]]
    assert engine.dim == dim and got.shape == (3, dim)
    assert np.abs(got - np.stack(want)).max() <= 1e-5


def test_without_normalisation_directions_are_the_same(checkpoint):
    raw = Embedder(checkpoint("qwen3"), normalize=False, dtype="float32").embed(TEXTS)
    unit = Embedder(checkpoint("qwen3"), dtype="float32").embed(TEXTS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert not np.allclose(lengths, 1, atol=0.1)
    np.testing.assert_allclose(raw / lengths, unit, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_instruction_gets_its_full_stop_in_the_vl_family(checkpoint, family):
    engine = Embedder(checkpoint(family), dtype="float32")
    bare, stopped, asked = (
        engine.embed(["text"], instruction=f"Find it{end}") for end in ("", ".", "?")
    )
    assert (np.abs(bare - stopped).max() < 1e-6) == (family == "qwen3-vl")
    assert np.abs(stopped - asked).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_formatted_input_is_the_plain_one(checkpoint, family):
    engine = Embedder(checkpoint(family), dtype="float32")
    for instruction in (None, "Find it."):
        formatted = [prompt(family, instruction, text) for text in TEXTS]
        want = engine.embed(TEXTS, instruction=instruction)
        np.testing.assert_array_equal(engine.embed(formatted), want)
    if family == "qwen3-vl":
        with pytest.raises(ValueError, match=r"inputs\[0\]: it is formatted with the instruction"):
            engine.embed(formatted, instruction="Another.")


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_a_text_stay_text(checkpoint, family):
    engine = Embedder(checkpoint(family), dtype="float32")
    [prompt] = engine.core.encoder.encode([engine.core.encoder.input("inputs[0]", TEXTS[-1])])
    controls = [id for id in prompt.ids if id >= 151643]
    assert controls == ([151643] if family == "qwen3" else [151644, 151645] * 2 + [151644])


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_lose_their_end_and_keep_the_prompt(checkpoint, family):
    engine = Embedder(checkpoint(family), dtype="float32")
    long = "The rain in Spain stays mainly in the plain. " * 1500
    items = [
        engine.core.encoder.input("inputs[0]", text, "Find it.") for text in (long, "The rain")
    ]
    cut, short = engine.core.encoder.encode(items)
    assert len(cut.ids) == 8192 and cut.truncated > 5000
    tail = 1 if family == "qwen3" else 5
    assert cut.ids[-tail:] == short.ids[-tail:]
    assert cut.ids[: len(short.ids) - tail] == short.ids[:-tail]


@settings(max_examples=10)
@given(data=st.data())
def test_in_any_batch_as_alone(checkpoint, data):
    engine = Embedder(checkpoint("qwen3"), dtype="float32", token_budget=400)
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
    alone = np.concatenate([engine.embed([text]) for text in texts])
    np.testing.assert_allclose(engine.embed(texts), alone, atol=1e-6)


def test_what_is_equal_is_computed_once(checkpoint):
    engine = Embedder(checkpoint("qwen3"), dtype="float32")
    once = engine.embed(TEXTS)
    computed = engine.core.computed
    again = engine.embed([*TEXTS, *({"text": text} for text in TEXTS)])
    assert engine.core.computed == 2 * computed
    np.testing.assert_array_equal(again, np.concatenate([once, once]))


def test_module_function(checkpoint):
    model = checkpoint("qwen3")
    got = pyrerank.embed(TEXTS, model=model, dim=32, dtype="float32", instruction=TASK)
    want = Embedder(model, dim=32, dtype="float32").embed(TEXTS, instruction=TASK)
    np.testing.assert_array_equal(got, want)


def test_arguments(checkpoint, tmp_path):
    engine = Embedder(checkpoint("qwen3"), dtype="float32")
    with pytest.raises(TypeError, match="inputs must be a list, got str; wrap a single"):
        engine.embed("text")
    with pytest.raises(ValueError, match="inputs is empty"):
        engine.embed([])
    with pytest.raises(TypeError, match=r"inputs\[1\] must be a str, a dict .*, got NoneType"):
        engine.embed(["a", None])
    with pytest.raises(ValueError, match=r"instruction is \d+ tokens too long"):
        engine.embed(["a"], instruction="word " * 9000)
    for dim in (0, 97, 1.5):
        with pytest.raises(ValueError, match="dim must be an int from 1 to 96, or None, got"):
            Embedder(checkpoint("qwen3"), dim=dim)
    write_random(tmp_path, "qwen3-sequence-classification", tied=False)
    with pytest.raises(CheckpointError, match="scores pairs: use Reranker"):
        Embedder(tmp_path)


def test_nan_weights_are_named(checkpoint, tmp_path):
    write_random(tmp_path, "qwen3-reranker", tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteScore, match=r"inputs\[\d\] .*model\.norm\.weight"):
        Embedder(tmp_path, dtype="float32").embed(TEXTS)


def test_an_embedders_files_are_no_reranker(checkpoint):
    with pytest.raises(CheckpointError, match="published for embedding: use Embedder"):
        Reranker(checkpoint("qwen3"))
