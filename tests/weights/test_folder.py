"""What a checkpoint's folder says, against the tools that write it: vectors and scores of
sentence-transformers and transformers, or the refusal's text."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from pyrerank import CheckpointError, Embedder, Reranker, convert
from pyrerank.weights.checkpoint import open_checkpoint
from pyrerank.weights.find import DEMO

pytestmark = pytest.mark.slow

# the demonstration model's vocabulary is a tenth of the published one
VOCABULARY = 16026
SIZE = 48
TEXTS = [
    "What is the capital of China?",
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "a",
    "The sea rises and falls twice a day under the pull of the Moon. " * 8,
]
PAIRS = [[TEXTS[0], text] for text in TEXTS]
TEMPLATE = (
    '{%- set said = messages | selectattr("role", "eq", "system") | map(attribute="content") | '
    'first | default("Given a web search query, retrieve relevant passages that answer the query") '
    '-%}\n{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") '
    '| first -%}\n{%- set text = messages | selectattr("role", "eq", "document") | '
    'map(attribute="content") | first -%}\n'
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ said }}\n<Query>: {{ query }}\n<Document>: {{ text }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
OTHER = (
    '{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message["content"] }}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path, kind: type = Qwen3ForCausalLM, **settings: Any) -> None:
    """A small checkpoint as transformers saves it, with the demonstration model's vocabulary."""
    torch.manual_seed(1)
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=4096,
        pad_token_id=16000, tie_word_embeddings=True, num_labels=1,
    )  # fmt: skip
    model = kind(Qwen3Config(**sizes | settings))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)


def edit(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON file, which may be new."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(before | changes))


def end_texts(folder: Path, before: str = "", after: str = " <|endoftext|>") -> None:
    """Lets the tokenizer add tokens, as Qwen3-Embedding's does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [(name, tokenizer.token_to_id(name)) for name in (before + after).split()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A{after}", pair=f"{before}$A{after} $B{after}", special_tokens=ids
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write(folder)
    return folder


@pytest.fixture
def base(plain, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(plain, tmp_path / "base"))


def embedder(base: Path, *modules: Any, **settings: Any) -> tuple[SentenceTransformer, Path]:
    """A model of sentence-transformers around ``base``, and the folder that it was saved in."""
    saved = base.parent / "saved"
    made = SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu", **settings)
    made.save(str(saved))
    return SentenceTransformer(str(saved), device="cpu"), saved


def same(theirs: np.ndarray, ours: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-3  # the texts are not all one to this model


@pytest.mark.parametrize("mode", ["lasttoken", "mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_and_normalisation(base, mode, normalize):
    after = [Normalize()] if normalize else []
    theirs, saved = embedder(base, Pooling(SIZE, mode), *after)
    ours = Embedder(saved, dtype="float32", token_budget=200)
    texts = TEXTS if mode != "cls" else ["first", "second", "third"]
    same(theirs.encode(texts), ours.embed(texts))
    assert ours.normalize == normalize
    if normalize:  # truncation of our own is followed by normalisation
        cut = theirs.encode(texts, truncate_dim=16, normalize_embeddings=True)
        same(cut, Embedder(saved, dtype="float32", dim=16).embed(texts))
    else:
        same(
            theirs.encode(texts, normalize_embeddings=True),
            Embedder(saved, dtype="float32", normalize=True).embed(texts),
        )


def test_layers_after_pooling(base):
    layers = [
        Normalize(),
        Dense(SIZE, 40, activation_function=torch.nn.Tanh()),
        Dense(40, 24, bias=False, activation_function=torch.nn.GELU(), use_residual=True),
        Dense(24, 24, activation_function=None, use_residual=True),
    ]
    theirs, saved = embedder(base, Pooling(SIZE, "mean"), *layers)
    ours = Embedder(saved, dtype="float32")
    assert ours.dim == 24
    same(theirs.encode(TEXTS), ours.embed(TEXTS))
    same(theirs.encode(TEXTS, truncate_dim=9), Embedder(saved, dtype="float32", dim=9).embed(TEXTS))
    with pytest.raises(ValueError, match="dim must be an int from 1 to 24"):
        Embedder(saved, dim=25)
    tensors = load_file(saved / "3_Dense/model.safetensors")
    save_file({"linear.weight": tensors["linear.weight"]}, saved / "3_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match=r"3_Dense/model.safetensors holds .* asks for"):
        Embedder(saved)


def test_a_folders_own_dimension(base):
    theirs, saved = embedder(base, Pooling(SIZE, "lasttoken"), Normalize(), truncate_dim=16)
    ours = Embedder(saved, dtype="float32")
    assert ours.dim == 16
    same(theirs.encode(TEXTS), ours.embed(TEXTS))
    same(
        theirs.encode(TEXTS, normalize_embeddings=True),
        Embedder(saved, dtype="float32", normalize=True).embed(TEXTS),
    )


def test_prompts(base):
    prompts = {"query": "query: ", "passage": "passage: ", "none": ""}
    theirs, saved = embedder(
        base, Pooling(SIZE, "mean"), prompts=prompts, default_prompt_name="query"
    )
    ours = Embedder(saved, dtype="float32")
    same(theirs.encode(TEXTS), ours.embed(TEXTS))
    for name in ("query", "passage", "none", "document"):
        want = theirs.encode(TEXTS, prompt_name=name)
        same(want, ours.embed(TEXTS, prompt_name=name))
    asked = theirs.encode(TEXTS, prompt="Instruct: Find it.\nQuery:")
    same(asked, ours.embed(TEXTS, instruction="Find it."))
    with pytest.raises(ValueError, match=r"prompt_name 'other' is none of .* 'query', .*'passage'"):
        ours.embed(TEXTS, prompt_name="other")
    with pytest.raises(ValueError, match="give prompt_name 'query' or an instruction, not both"):
        ours.embed(TEXTS, prompt_name="query", instruction="Find it.")
    edit(saved / "config_sentence_transformers.json", default_prompt_name="gone")
    with pytest.raises(CheckpointError, match="default_prompt_name 'gone' is none of its prompts"):
        Embedder(saved)


def test_tokens_of_a_folders_own_prompt(base):
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens(["[QUERY]"])
    tokenizer.save(str(base / "tokenizer.json"))
    id = tokenizer.token_to_id("[QUERY]")
    tensors = load_file(base / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    rows = torch.randn(id + 1 - len(table), SIZE)
    tensors["model.embed_tokens.weight"] = torch.cat((table, rows))
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    edit(base / "config.json", vocab_size=id + 1)
    prompts = {"query": "[QUERY] ", "tool": "<tool_call>", "text": "<|no_token|> "}
    theirs, saved = embedder(base, Pooling(SIZE, "mean"), prompts=prompts)
    ours = Embedder(saved, dtype="float32")
    for name in prompts:
        same(theirs.encode(TEXTS, prompt_name=name), ours.embed(TEXTS, prompt_name=name))
    plain = ours.embed(["[QUERY] a"])  # of a user it is text
    assert np.abs(plain - theirs.encode(["[QUERY] a"])).max() > 1e-3


def test_a_limit_in_a_file_of_another_name(base):
    theirs, saved = embedder(base, Pooling(SIZE, "mean"))
    (saved / "sentence_bert_config.json").rename(saved / "sentence_roberta_config.json")
    edit(saved / "sentence_roberta_config.json", max_seq_length=16)
    theirs = SentenceTransformer(str(saved), device="cpu")
    with pytest.warns(UserWarning, match="longer than 16 tokens"):
        same(theirs.encode(TEXTS), Embedder(saved, dtype="float32").embed(TEXTS))


def test_prompts_that_no_file_lists(base):
    theirs, saved = embedder(base, Pooling(SIZE, "mean"))
    (saved / "config_sentence_transformers.json").unlink()
    theirs = SentenceTransformer(str(saved), device="cpu")
    ours = Embedder(saved, dtype="float32").embed(TEXTS, prompt_name="query")
    same(theirs.encode(TEXTS, prompt_name="query"), ours)


def test_tokens_that_the_tokenizer_adds(base):
    end_texts(base, "<|im_start|> ", " <|endoftext|>")
    theirs, saved = embedder(base, Pooling(SIZE, "lasttoken"), Normalize())
    same(theirs.encode([*TEXTS, ""]), Embedder(saved, dtype="float32").embed([*TEXTS, ""]))


def test_a_text_without_any_token(base):
    _, saved = embedder(base, Pooling(SIZE, "mean"))
    with pytest.raises(ValueError, match=r"inputs\[1\] is empty, and this checkpoint's prompt"):
        Embedder(saved, dtype="float32").embed(["a", ""])


@pytest.mark.parametrize("where", ["max_seq_length", "model_max_length"])
def test_limits(base, where):
    end_texts(base)
    theirs, saved = embedder(base, Pooling(SIZE, "mean"))
    if where == "max_seq_length":
        edit(saved / "sentence_bert_config.json", max_seq_length=24)
        theirs = SentenceTransformer(str(saved), device="cpu")
    else:
        theirs.max_seq_length = 24
        theirs.save(str(saved))
    ours = Embedder(saved, dtype="float32")
    assert ours.max_tokens == 24 == theirs.max_seq_length
    same(theirs.encode(TEXTS), ours.embed(TEXTS))


def test_lower_case(base):
    _, saved = embedder(base, Pooling(SIZE, "mean"))
    edit(saved / "sentence_bert_config.json", do_lower_case=True)
    theirs = SentenceTransformer(str(saved), device="cpu")
    same(theirs.encode(TEXTS), Embedder(saved, dtype="float32").embed(TEXTS))


def test_an_embedders_chat_template(base):
    (base / "chat_template.jinja").write_text(OTHER)
    _, saved = embedder(base, Pooling(SIZE, "lasttoken"), Normalize(), prompts={"p": "Find it."})
    for header in (False, True):
        chat = {"add_generation_prompt": header}
        edit(saved / "sentence_bert_config.json", processing_kwargs={"chat_template": chat})
        theirs = SentenceTransformer(str(saved), device="cpu")
        ours = Embedder(saved, dtype="float32")
        same(theirs.encode(TEXTS), ours.embed(TEXTS))
        asked = theirs.encode(TEXTS, prompt_name="p")
        same(asked, ours.embed(TEXTS, prompt_name="p"))
        same(asked, ours.embed(TEXTS, instruction="Find it."))


def cross_encoder(base: Path, **settings: Any) -> tuple[CrossEncoder, Path]:
    saved = base.parent / "saved"
    transformer = Transformer(str(base), transformer_task="text-generation")
    answers = settings.pop("answers", (9693 % VOCABULARY, 2152))
    made = CrossEncoder(modules=[transformer, LogitScore(*answers)], device="cpu", **settings)
    made.save_pretrained(str(saved))
    return CrossEncoder(str(saved), device="cpu"), saved


def logits(engine: Reranker) -> np.ndarray:
    return np.array([r.logit for r in engine.details(TEXTS[0], TEXTS)])


@pytest.mark.parametrize("template", [TEMPLATE, OTHER])
@pytest.mark.parametrize("answers", [(40, 71), (1000, None)])
def test_cross_encoders(base, template, answers):
    (base / "chat_template.jinja").write_text(template)
    identity = torch.nn.Identity()
    theirs, saved = cross_encoder(base, answers=answers, activation_fn=identity)
    ours = Reranker(saved, dtype="float32")
    same(theirs.predict(PAIRS), logits(ours))
    asked = theirs.predict(PAIRS, prompt="Find it.")
    engine = Reranker(saved, dtype="float32", instruction="Find it.")
    same(asked, logits(engine))
    edit(
        saved / "config_sentence_transformers.json",
        prompts={"query": "Find it."},
        default_prompt_name="query",
        activation_fn="torch.nn.modules.activation.Sigmoid",
    )
    theirs = CrossEncoder(str(saved), device="cpu")
    ours = Reranker(saved, dtype="float32")
    same(theirs.predict(PAIRS), np.array(ours.score(TEXTS[0], TEXTS)))
    with pytest.raises(CheckpointError, match="is a CrossEncoder, which scores pairs: use Rerank"):
        Embedder(saved)


def test_one_label_classifiers(tmp_path):
    write(tmp_path / "base", Qwen3ForSequenceClassification, tie_word_embeddings=False)
    (tmp_path / "base/chat_template.jinja").write_text(TEMPLATE)
    CrossEncoder(str(tmp_path / "base"), device="cpu").save_pretrained(str(tmp_path / "saved"))
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    ours = Reranker(tmp_path / "saved", dtype="float32")
    same(theirs.predict(PAIRS), np.array(ours.score(TEXTS[0], TEXTS)))


def test_a_limit_of_pairs(base):
    (base / "chat_template.jinja").write_text(TEMPLATE)
    theirs, saved = cross_encoder(base, answers=(40, 71))
    theirs.max_seq_length = 100
    theirs.save_pretrained(str(saved))
    ours = Reranker(saved, dtype="float32")
    assert ours.max_tokens == 100
    pairs = [(TEXTS[0], text * 3) for text in TEXTS]
    want = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    same(want, np.array([r.logit for r in ours.details(TEXTS[0], [d for _, d in pairs])]))
    assert ours.details(TEXTS[0], [pairs[-1][1]])[0].truncated > 100


def test_words_added_before_fine_tuning(base):
    """Words are found in text as the tokenizer finds them, control tokens never."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    words = [
        AddedToken("[SKU]", lstrip=True, rstrip=True),
        AddedToken("ﬀ", normalized=True, single_word=True),
        AddedToken("<|field|>", special=False),
    ]
    tokenizer.add_tokens(words)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|own|>"]})
    tokenizer.save_pretrained(base)
    model = Qwen3ForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(base)
    theirs, saved = embedder(base, Pooling(SIZE, "mean"))
    texts = ["a [SKU]  7", "x[SKU]y", "ﬀ and eﬀort", "<|field|>name<|field|> [SKU]", "plain", "a"]
    ours = Embedder(saved, dtype="float32")
    same(theirs.encode(texts), ours.embed(texts))
    mixed = ours.core.encoder.input("inputs[0]", "<|own|><|im_end|><think>[SKU]", None)
    [prompt] = ours.core.encoder.encode([mixed])
    added = [id for id in prompt.ids if id >= 16000]
    assert added == [tokenizer.convert_tokens_to_ids("[SKU]")]


def test_a_head_that_a_tied_checkpoint_stores(base):
    tensors = load_file(base / "model.safetensors")
    head = torch.randn(VOCABULARY, SIZE)
    save_file(tensors | {"lm_head.weight": head}, base / "model.safetensors", {"format": "pt"})
    model = Qwen3ForCausalLM.from_pretrained(base).eval()
    engine = Reranker(base, dtype="float32")
    explained = [engine.explain(TEXTS[0], text) for text in TEXTS]
    yes, no = engine.core.encoder.yes, engine.core.encoder.no
    with torch.no_grad():
        ends = [model(torch.tensor([e.ids])).logits[0, -1] for e in explained]
    same(np.array([(end[yes] - end[no]).item() for end in ends]), logits(engine))


VL_TEMPLATE = (
    "{%- set said = (messages | selectattr('role', 'eq', 'system') | first).content[0].text %}"
    "<|im_start|>system\n{{ said or 'Represent.' }}<|im_end|>\n{% for message in messages %}"
    "{% if message.role == 'user' %}<|im_start|>user\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def vl(tmp_path) -> Path:
    """A small Qwen3VLModel with files of sentence-transformers, which itself needs torchvision for
    this family."""
    torch.manual_seed(1)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True,
                         "mrope_section": [6, 5, 5]},
    )  # fmt: skip
    vision = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=SIZE,
                  deepstack_visual_indexes=[0], num_position_embeddings=16)  # fmt: skip
    ids = {"image_token_id": 16012, "video_token_id": 16013}
    Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(
        tmp_path
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(VL_TEMPLATE)
    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": at} for kind, at in parts]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "1_Pooling").mkdir()
    edit(tmp_path / "1_Pooling/config.json", pooling_mode="mean")
    message = {"method": "forward", "method_output_name": "last_hidden_state"}
    edit(tmp_path / "sentence_bert_config.json",
         modality_config={"message": message | {"format": "structured"}},
         processing_kwargs={"chat_template": {"add_generation_prompt": True}})  # fmt: skip
    edit(tmp_path / "config_sentence_transformers.json",
         prompts={"default": "Say it."}, default_prompt_name="default")  # fmt: skip
    return tmp_path


def test_a_vl_embedder(vl):
    model = Qwen3VLModel.from_pretrained(vl).eval()
    tokenizer = AutoTokenizer.from_pretrained(vl)
    want = []
    for text in TEXTS:
        messages = [{"role": role, "content": [{"type": "text", "text": said}]}
                    for role, said in (("system", "Say it."), ("user", text))]  # fmt: skip
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        with torch.no_grad():
            want.append(model(input_ids=ids).last_hidden_state[0].mean(0).numpy())
    engine = Embedder(vl, dtype="float32")
    same(np.stack(want), engine.embed(TEXTS))
    # instructions get their full stop, as the published script gives it, where the template is its
    stopped = engine.embed(TEXTS, instruction="Find it.")
    np.testing.assert_array_equal(engine.embed(TEXTS, instruction="Find it"), stopped)
    chat = {"add_generation_prompt": False}
    edit(vl / "sentence_bert_config.json", processing_kwargs={"chat_template": chat})
    other = Embedder(vl, dtype="float32").embed(TEXTS, instruction="Find it")
    assert np.abs(other - stopped).max() > 1e-3
    picture = engine.embed([{"text": TEXTS[0], "image": PIL.Image.new("RGB", (64, 64), "red")}])
    assert np.abs(picture - want[0]).max() > 1e-3


def test_a_vl_embedder_of_bare_texts(vl):
    (vl / "sentence_bert_config.json").unlink()
    with pytest.raises(CheckpointError, match="sentence-transformers would embed bare texts"):
        Embedder(vl, dtype="float32")


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("processor_config.json", {"image_processor": {"image_mean": [0.48, 0.46, 0.41]}},
         "image_mean must be .* in processor_config.json, image_processor"),
        ("processor_config.json", {"video_processor": {"do_rescale": False}},
         "do_rescale must be True, got False in processor_config.json, video_processor"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize must be True"),
        ("video_preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor must be"),
        ("preprocessor_config.json", {"resample": 2}, "resample must be 3, got 2"),
        ("config.json", {"image_token_id": 16013}, "gives '<.image_pad.>' the id 16012"),
    ],
)  # fmt: skip
def test_pictures_prepared_in_another_way(vl, file, settings, message):
    edit(vl / file, **settings)
    with pytest.raises(CheckpointError, match=message):
        Embedder(vl, dtype="float32")


def test_conversion_of_a_cross_encoder(base):
    """The tokens are kept, and what a converted folder has no place for is refused."""
    (base / "chat_template.jinja").write_text(TEMPLATE)
    _, saved = cross_encoder(base, answers=(40, 71))
    convert(saved, base.parent / "converted")
    same(
        logits(Reranker(saved, dtype="float32")),
        logits(Reranker(base.parent / "converted", dtype="float32")),
    )
    edit(saved / "sentence_bert_config.json", max_seq_length=500)
    with pytest.raises(CheckpointError, match="cannot be converted: its files of sentence-tran"):
        convert(saved, base.parent / "other")


class TestRefusals:
    """Each names the file and what it asks for."""

    def refused(self, folder: Path, message: str, kind: Any = Embedder) -> None:
        with pytest.raises(CheckpointError, match=message):
            kind(folder)

    @pytest.mark.parametrize(
        "mode", ["max", "weightedmean", "mean_sqrt_len_tokens", ("cls", "mean")]
    )
    def test_other_pooling(self, base, mode):
        _, saved = embedder(base, Pooling(SIZE, mode))
        names = " and ".join([mode] if isinstance(mode, str) else mode)
        self.refused(saved, f"1_Pooling/config.json pools by {names}; pyrerank pools by one of")

    def test_pooling_as_older_files_spell_it(self, base):
        theirs, saved = embedder(base, Pooling(SIZE, "mean"))
        file = saved / "1_Pooling/config.json"
        old = {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True}
        file.write_text(json.dumps(old | {"pooling_mode_lasttoken": False}))
        same(theirs.encode(TEXTS), Embedder(saved, dtype="float32").embed(TEXTS))
        file.write_text(json.dumps(old | {"pooling_mode_cls_token": True}))
        self.refused(saved, "pools by cls and mean")
        file.write_text(json.dumps(old | {"include_prompt": False}))
        self.refused(saved, "sets include_prompt to false")
        file.write_text(json.dumps(old | {"pooling_mode_new": True}))
        self.refused(saved, "sets pooling_mode_new to True, which pyrerank does not follow")

    def test_a_module_whose_file_is_absent(self, base):
        _, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        (saved / "1_Pooling/config.json").unlink()
        self.refused(saved, "lists Pooling in 1_Pooling, and there is no 1_Pooling/config.json")

    @pytest.mark.parametrize(
        ("file", "changes", "message"),
        [
            ("config.json", {"is_causal": False}, "sets is_causal to False"),
            ("config.json", {"use_bidirectional_attention": True}, "sets use_bidirectional_atten"),
            ("config.json", {"layer_types": ["full_attention", "sliding_attention"]},
             r"sets layer_types to \['full_attention', 'sliding_attention'\]"),
            ("config.json", {"auto_map": {"AutoModel": "own.Model"}}, "own .auto_map: AutoModel"),
            ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}},
             "config.json has a quantization_config, of gptq, which changes"),
            ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
             "sets activation_fn to 'torch.nn.Tanh'"),
            ("config.json", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
             "sets rope type to 'yarn'"),
            ("tokenizer_config.json", {"truncation_side": "left"}, "sets truncation_side to 'le"),
            ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}},
             "sets processing_kwargs.text.truncation to False"),
            ("sentence_bert_config.json",
             {"processing_kwargs": {"chat_template": {"max_length": 30}}},
             "sets processing_kwargs.chat_template.max_length to 30"),
            ("tokenizer_config.json", {"split_special_tokens": True}, "sets split_special_tokens"),
            ("tokenizer_config.json", {"added_tokens_decoder": {"16026": {"content": "[NEW]"}}},
             r"gives '\[NEW\]' the id None, and the files beside it 16026"),
            ("added_tokens.json", {"[NEW]": 16026}, r"gives '\[NEW\]' the id None"),
            ("sentence_bert_config.json", {"query_length": 32}, "sets query_length to 32"),
            ("sentence_bert_config.json", {"model_args": {"subfolder": "x"}}, "model_args.subfol"),
            ("sentence_bert_config.json", {"modality_config": {
                "text": {"method": "forward", "method_output_name": "pooler_output"}}},
             "takes 'pooler_output' of 'forward' for text"),
            ("sentence_bert_config.json",
             {"processing_kwargs": {"text": {"add_special_tokens": False}}},
             "sets processing_kwargs.text.add_special_tokens"),
            ("config_sentence_transformers.json", {"model_type": "SparseEncoder"},
             "says that this is a SparseEncoder, and modules.json lists Transformer, Pooling"),
        ],
    )  # fmt: skip
    def test_keys(self, base, file, changes, message):
        _, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        edit(saved / file, **changes)
        self.refused(saved, message)

    def test_keys_that_are_off(self, base):
        theirs, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        off = {"query_length": None, "query_expansion": None, "unpad_inputs": False}
        edit(saved / "sentence_bert_config.json", **off)
        edit(saved / "config.json", is_causal=True, attention_dropout=0.1, logit_scale=2.0)
        theirs = SentenceTransformer(str(saved), device="cpu")
        same(theirs.encode(TEXTS), Embedder(saved, dtype="float32").embed(TEXTS))

    @pytest.mark.parametrize(
        ("type_", "message"),
        [
            (
                "sentence_transformers.models.LSTM",
                "lists LSTM in 1_Pooling, which pyrerank does",
            ),
            ("own.Pooling", "lists 'own.Pooling' in '1_Pooling', which is no module of sentence"),
            ("sentence_transformers.models.Normalize", "lists Normalize in 1_Pooling"),
        ],
    )
    def test_other_modules(self, base, type_, message):
        _, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        entries = json.loads((saved / "modules.json").read_text())
        entries[1]["type"] = type_
        (saved / "modules.json").write_text(json.dumps(entries))
        self.refused(saved, message)

    def test_another_activation(self, base):
        layer = Dense(SIZE, 8, activation_function=torch.nn.Hardtanh())
        _, saved = embedder(base, Pooling(SIZE, "mean"), layer)
        self.refused(saved, "2_Dense/config.json sets activation_function to 'torch.nn.modules.act")
        (saved / "2_Dense/model.safetensors").unlink()
        self.refused(saved, "2_Dense has no model.safetensors")

    def test_the_other_task(self, base):
        _, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        self.refused(saved, "is published for embedding: use Embedder", Reranker)
        (saved / "modules.json").unlink()
        for kind in (Reranker, Embedder):
            self.refused(saved, "has folders of modules but no modules.json", kind)

    def test_chat_templates(self, base):
        (base / "chat_template.jinja").write_text(OTHER)
        _, saved = embedder(base, Pooling(SIZE, "lasttoken"))
        for template, message in [
            ("{{ messages[0].content | trim }}", "does not render each of user once and as it is"),
            ("{{ nothing.at.all }}", "cannot be rendered: 'nothing' is undefined"),
        ]:
            (saved / "chat_template.jinja").write_text(template)
            self.refused(saved, f"chat_template.jinja: this chat template {message}")
        (saved / "chat_template.jinja").unlink()
        self.refused(saved, "asks for the chat template 'default', and the folder has none")

    def test_answers_and_prompts_of_a_cross_encoder(self, base):
        _, saved = cross_encoder(base, answers=(40, 71))
        edit(saved / "1_LogitScore/config.json", true_token_id=VOCABULARY)
        self.refused(saved, r"the score is that of tokens \[16026, 71\]", Reranker)
        edit(saved / "1_LogitScore/config.json", true_token_id="yes")
        self.refused(saved, "true_token_id and false_token_id must be token ids", Reranker)
        edit(saved / "1_LogitScore/config.json", true_token_id=40)
        edit(saved / "config_sentence_transformers.json", activation_fn="torch.nn.Tanh")
        self.refused(saved, "sets activation_fn to 'torch.nn.Tanh'", Reranker)
        changes = {"activation_fn": None, "prompts": {"q": "Say"}, "default_prompt_name": "q"}
        edit(saved / "config_sentence_transformers.json", **changes)
        self.refused(saved, "has no chat template that says where this prompt goes", Reranker)

    def test_labels(self, tmp_path):
        write(tmp_path, Qwen3ForSequenceClassification, num_labels=2)
        self.refused(tmp_path, r"score.weight is \(2, 48\), not \(1, 48\)", Reranker)


def test_published_folders(base):
    """The files that Qwen publishes beside the weights change nothing."""
    end_texts(base)
    want = Embedder(base, dtype="float32").embed(TEXTS)
    parts = ("Transformer", "Pooling", "Normalize")
    entries = [
        {"idx": n, "name": str(n), "path": f"{n}_{part}" if n else "",
         "type": f"sentence_transformers.models.{part}"}
        for n, part in enumerate(parts)
    ]  # fmt: skip
    (base / "modules.json").write_text(json.dumps(entries))
    (base / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens",
             "weightedmean_tokens", "lasttoken")  # fmt: skip
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    edit(base / "1_Pooling/config.json", **pooling, word_embedding_dimension=SIZE,
         include_prompt=True)  # fmt: skip
    query = "Instruct: Given a web search query, retrieve relevant passages that answer the query"
    prompts = {"query": f"{query}\nQuery:", "document": ""}
    edit(base / "config_sentence_transformers.json", similarity_fn_name="cosine",
         prompts=prompts, default_prompt_name=None)  # fmt: skip
    engine = Embedder(base, dtype="float32")
    np.testing.assert_array_equal(engine.embed(TEXTS), want)
    asked = engine.embed(TEXTS, instruction=query.removeprefix("Instruct: "))
    np.testing.assert_array_equal(engine.embed(TEXTS, prompt_name="query"), asked)
    same(SentenceTransformer(str(base), device="cpu").encode(TEXTS), want)


def test_the_demonstration_model_opens():
    assert not open_checkpoint("demo").modules.listed
