"""Writes a small Qwen3 checkpoint that compares shared words: set by hand, not trained.

    python examples/make_checkpoint.py OUTDIR [--embedding] [--vision]

The folder has the published layout and the whole Qwen vocabulary, and loads like any published
checkpoint: Qwen3-Reranker, or with --embedding Qwen3-Embedding; with --vision, of their Qwen3-VL
kind. It knows no meaning, no synonyms and no second language: use it to try the software. Of
pictures it knows colours, as words; see `colours.py`.

A token's hidden state is a code, the same for all spellings of a word (" Panther", "panthers"),
beside ten named channels. The embedding fills the code, a constant, two section marks and the
word's weight; the layers fill the rest. A reranker has three, which count the words that query and
document share:

Layer 0, where am I?  Two heads share one key-value head. Each looks for one mark, the `Query` of
    `<Query>:` or the `<Document` of `<Document>:`; a token that finds it lies behind it. Together
    they tell query from document.
Layer 1, is my word asked for?  One head compares codes. A token finds itself, its n - 1 earlier
    repetitions in the document, and its k repetitions in the query, all equally alike, so the share
    of attention that goes to the query is k / (k + n): 1/2 for the first occurrence in the document
    of a word asked for once, 1/3 at most for the next, 0 for other words. Two SwiGLU neurons make
    a step between 1/3 and 1/2: the token is found. (A picture asks for a colour as often as it has
    it, and finds it nearly as often.)
Layer 2, how much was found?  The last token attends to all of the query and to what was found, to
    each word by its weight: exp(log(weight)). The share that falls on the document is
    found / (found + asked), which depends on the part of the query that was found and on no length.
    It drives `yes` against `no`.

An embedder has two layers, which make a bag of words: layer 0 as above, with the word before the
content as its mark (`Query:`, or the header of the user's turn); in the last, the last token
attends to the words behind the mark, where there is one, by their weights. The vector is the mean
of their codes, and the inner product of two of them the share of common words, roughly.

Queries and keys are compared in the slow half of the rotary dimensions, so distance does not
matter: rope_theta is 1e10 (published: 1e6 and 5e6), at which they turn by less than 0.2 radian in
10240 tokens. Attention only looks back and the query comes first, so it is the document's tokens
that look at the query, never the reverse.
"""

import argparse
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import colours
import torch
from qwen_vocab import ranks
from qwen_vocab import write as write_tokenizer
from safetensors.torch import save_file

VOCABULARY, HIDDEN, HEAD, NEURONS = 151936, 80, 128, 16
CODE = 64  # the first channels: the word's code of +1 and -1
ONE, QUERY_MARK, DOCUMENT_MARK, WEIGHT, PAST_QUERY, PAST_DOCUMENT, SHARE, FOUND, ANSWER, LARGE = (
    range(CODE, CODE + 10)
)
# LARGE is the same in all hidden states and makes most of their norm, and channels other than codes
# are small. So all have nearly one norm, and RMSNorm with that norm as its weight changes nothing.
BALLAST, SMALL = 32.0, 0.25
RMS = math.sqrt((CODE + 1 + BALLAST**2) / HIDDEN)
# Head dimensions i and i + HEAD / 2 turn together, the slower the larger i is. Codes have the slow
# half.
SLOW = [*range(HEAD // 4, HEAD // 2), *range(3 * HEAD // 4, HEAD)]
FLAG, OTHER_FLAG, REST = HEAD // 4 - 1, HEAD // 4 - 2, HEAD // 4 - 3  # the next slowest

# These are tokens of the templates. A text that holds `<Document` or an unspaced `Query` confuses
# sections, and so does an unspaced `user` in an embedder of the Qwen3-VL kind.
QUERY, DOCUMENT, YES, NO = "Query", "<Document", "yes", "no"
USER, ASSISTANT, START = "user", "assistant", "<|im_start|>"
VISION_START, VISION_END, IMAGE, VIDEO = 151652, 151653, 151655, 151656
NATS = 12.0  # e**NATS: the weight of the rarest word that passed over one that did not
GAIN = 8.0  # logits run from -4, nothing found, to 4, all of it
LIGHTEST = 0.01  # the weight of the commonest words, where the rarest weigh 1


def word(token: bytes) -> str | None:
    """What the spellings of a token have in common; None if the token is no text of its own."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return None
    if len(text) > 1 and not text[0].isalnum():
        text = text[1:]
    if not text[:1].isalnum():
        return None
    text = text.casefold()
    if text.isascii() and len(text) > 3 and text.endswith("s") and not text.endswith("ss"):
        text = text[:-1]
    return text


def lexicon() -> tuple[list[int], list[float]]:
    """For each token id, the number of its code and the weight of its word.

    Ids are in order of frequency, near enough. By Zipf's law the logarithm of a word's rank among
    the words of its script is then minus that of its frequency.
    """
    codes: dict[str | bytes, int] = {}
    weights: list[float] = []
    seen: Counter[str] = Counter()
    of_token = []
    for token in sorted(ranks(), key=ranks().__getitem__):
        name = word(token)
        key = token if name is None else name
        if key not in codes:
            codes[key] = len(codes)
            weight = 0.0
            if name is not None:
                script = unicodedata.name(name[0], "?").split()[0]
                seen[script] += 1
                weight = max(LIGHTEST, rarity(seen[script]))
            weights.append(weight)
        of_token.append(codes[key])
    return of_token, [weights[code] for code in of_token]


def rarity(rank: int) -> float:
    return min(1.0, math.log(rank) / math.log(20000)) ** 3


def embeddings(
    codes: Sequence[int],
    weights: Sequence[float],
    rows: int,
    ids: Mapping[str, int],
    query_mark: str = QUERY,
) -> torch.Tensor:
    """Makes the decoder's embeddings [rows, HIDDEN]; rows after the last token's are zero.

    Args:
        codes: the number of each token's code.
        weights: the weight of each token's word, from 0 to 1; a token without a word weighs 0.
        ids: the ids of the template's tokens.
    """
    used = len(codes)
    table = torch.zeros(rows, HIDDEN)
    signs = torch.randint(0, 2, (max(codes) + 1, CODE), generator=torch.Generator().manual_seed(0))
    table[:used, :CODE] = signs[torch.tensor(codes)] * 2.0 - 1.0
    table[:used, ONE], table[:used, LARGE] = 1.0, BALLAST
    # Attention weighs by exp, so the log is stored. A word of weight 0 cancels that it is past a
    # mark.
    table[:used, WEIGHT] = SMALL * torch.tensor(weights).log().clamp(min=-NATS) / NATS
    for token, mark in [(query_mark, QUERY_MARK), (DOCUMENT, DOCUMENT_MARK)]:
        table[ids[token], mark], table[ids[token], WEIGHT] = SMALL, -SMALL
    if query_mark == USER:
        table[ids[ASSISTANT], WEIGHT] = -SMALL  # it stands behind the mark, and is no content
    # A little is always found outside the document. It counts if the query has only stop words.
    table[ids[START], FOUND], table[ids[START], WEIGHT] = SMALL, SMALL * math.log(LIGHTEST) / NATS
    table[ids[YES], ANSWER], table[ids[NO], ANSWER] = 1.0, -1.0
    return table


class Layer:
    """The weights of a decoder layer with 2 query heads on 1 key-value head; all are zero at
    first."""

    def __init__(self) -> None:
        self.query = torch.zeros(2, HEAD, HIDDEN)
        self.key, self.value = torch.zeros(HEAD, HIDDEN), torch.zeros(HEAD, HIDDEN)
        self.output = torch.zeros(HIDDEN, 2, HEAD)
        self.gate, self.up = torch.zeros(NEURONS, HIDDEN), torch.zeros(NEURONS, HIDDEN)
        self.down = torch.zeros(HIDDEN, NEURONS)
        self.sharpness = 1.0  # of attention; it is the weight of the norm of queries

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        norm = torch.full((HIDDEN,), RMS)
        return {
            prefix + name: tensor
            for name, tensor in {
                "input_layernorm.weight": norm,
                "post_attention_layernorm.weight": norm.clone(),
                "self_attn.q_proj.weight": self.query.flatten(0, 1),
                "self_attn.k_proj.weight": self.key,
                "self_attn.v_proj.weight": self.value,
                "self_attn.o_proj.weight": self.output.flatten(1),
                "self_attn.q_norm.weight": torch.full((HEAD,), self.sharpness),
                "self_attn.k_norm.weight": torch.ones(HEAD),
                "mlp.gate_proj.weight": self.gate,
                "mlp.up_proj.weight": self.up,
                "mlp.down_proj.weight": self.down,
            }.items()
        }


def section_layer() -> Layer:
    layer = Layer()
    # Keys have a rest beside the marks, because a norm of q and k leaves only directions.
    layer.key[REST, ONE] = 1.0
    for head, (flag, mark, past) in enumerate(
        [(FLAG, QUERY_MARK, PAST_QUERY), (OTHER_FLAG, DOCUMENT_MARK, PAST_DOCUMENT)]
    ):
        layer.query[head, flag, ONE] = 1.0
        layer.key[flag, mark] = 1.0 / SMALL
        layer.value[head, mark] = 1.0
        layer.output[past, head, head] = 1.0
    # A mark's key points half to its flag, so its score is sqrt(HEAD / 2) = 8 times this, or 24.
    layer.sharpness = 3.0
    return layer


def match_layer() -> Layer:
    layer = Layer()
    code = torch.eye(HIDDEN)[:CODE]
    layer.query[0, SLOW] = code
    layer.key[SLOW] = code
    # The score of two tokens is 18 * (cosine of codes + section). The section is 0.5 if the key is
    # past the query mark, and else -0.5, so that the instruction's words do not count. Codes are
    # nearly orthogonal, so a token's match with itself outweighs all its chance likenesses
    # together.
    section = math.sqrt(0.5 * CODE)
    layer.query[0, FLAG, ONE] = section
    layer.key[FLAG, ONE] = -section
    layer.key[FLAG, PAST_QUERY] = 2 * section / SMALL
    layer.sharpness = 18 * 1.5 / math.sqrt(HEAD)
    layer.value[0, PAST_QUERY], layer.value[0, PAST_DOCUMENT] = 1.0, -1.0  # 1: the query
    layer.output[SHARE, 0, 0] = 1.0
    # silu(steep * z) - silu(steep * (z - width)) is a step from 0, at z = 0, to steep * width.
    start, width, steep = 0.38, 0.09, 250.0
    for neuron, sign, threshold in [(0, 1.0, start), (1, -1.0, start + width)]:
        layer.gate[neuron, SHARE], layer.gate[neuron, ONE] = steep / SMALL, -steep * threshold
        layer.gate[neuron, PAST_QUERY] = -steep / SMALL  # the query itself asks, and is not found
        layer.gate[neuron, PAST_DOCUMENT] = steep / SMALL
        layer.up[neuron, ONE] = SMALL
        layer.down[FOUND, neuron] = sign / (steep * width)
    return layer


def read_layer() -> Layer:
    layer = passing_layer()
    layer.key[FLAG, FOUND] = 1.0
    layer.key[FLAG, PAST_DOCUMENT] = -1.0  # the query passes this test
    layer.value[0, PAST_DOCUMENT] = 1.0 / SMALL
    layer.value[0, ONE] = -0.25  # gives even odds if a third of the query is found: 1/3 / (1/3 + 1)
    layer.output[ANSWER, 0, 0] = 1.0
    return layer


def pool_layer() -> Layer:
    layer = passing_layer()
    layer.value[:CODE] = torch.eye(HIDDEN)[:CODE]
    # The last token's own code is in the vector, too, and must be a small part of it.
    layer.output[:CODE, 0, :CODE] = 256.0 * torch.eye(CODE)
    return layer


def passing_layer() -> Layer:
    """Attends to the tokens past the query mark, by their weights."""
    layer = Layer()
    layer.query[0, [FLAG, OTHER_FLAG], ONE] = 1.0
    # A rest ten times as large lets the norm of k keep flags in proportion to what they read.
    layer.key[REST, ONE] = 10.0 * SMALL
    layer.key[FLAG, PAST_QUERY] = layer.key[OTHER_FLAG, WEIGHT] = 1.0
    layer.sharpness = 10 * NATS / math.sqrt(HEAD / 2)
    return layer


def decoder_tensors(table: torch.Tensor, prefix: str, embedding: bool) -> dict[str, torch.Tensor]:
    """Makes the decoder for these embeddings: float32 tensors by their published names."""
    layers = [section_layer()]
    layers += [pool_layer()] if embedding else [match_layer(), read_layer()]
    norm = torch.zeros(HIDDEN)
    if embedding:
        norm[:CODE] = 1.0
    else:
        # The output matrix is the embedding, so the final norm keeps only the answer.
        norm[ANSWER] = GAIN * RMS
    tensors = {prefix + "embed_tokens.weight": table, prefix + "norm.weight": norm}
    for number, layer in enumerate(layers):
        tensors |= layer.tensors(f"{prefix}layers.{number}.")
    return tensors


def state_dict(vision: bool, embedding: bool) -> dict[str, torch.Tensor]:
    """Makes the checkpoint's tensors, float32, by their published names."""
    codes, weights = lexicon()
    codes += range(len(codes), len(codes) + 26)  # added tokens have no word, and so no weight
    weights += [0.0] * 26
    ids = {token: ranks()[token.encode()] for token in (QUERY, DOCUMENT, YES, NO, USER, ASSISTANT)}
    mark = USER if vision and embedding else QUERY
    table = embeddings(codes, weights, VOCABULARY, ids | {START: 151644}, mark)
    prefix = "model.language_model." if vision else "" if embedding else "model."
    tensors = decoder_tensors(table, prefix, embedding)
    if vision:
        words = {name: table[ranks()[b" " + name.encode()]] for name in colours.COLOURS}
        words[colours.MIXED] = table[IMAGE].clone()
        words[colours.MIXED][WEIGHT] = SMALL * math.log(LIGHTEST) / NATS
        for name, tensor in colours.vision_tensors(words).items():
            tensors["model.visual." + name] = tensor
    return tensors


def config(dtype: str, vision: bool, embedding: bool) -> dict[str, object]:
    decoder: dict[str, object] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": NEURONS,
        "max_position_embeddings": 40960,
        "num_attention_heads": 2,
        "num_hidden_layers": 2 if embedding else 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e10,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    common: dict[str, object] = {"tie_word_embeddings": True, "torch_dtype": dtype}
    if not vision:
        kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_scaling": None}
        return kind | decoder | common
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return common | {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": IMAGE,
        "model_type": "qwen3_vl",
        "text_config": decoder | {"model_type": "qwen3_vl_text", "rope_scaling": rope},
        "video_token_id": VIDEO,
        "vision_config": colours.vision_config(HIDDEN),
        "vision_end_token_id": VISION_END,
        "vision_start_token_id": VISION_START,
    }


def write_checkpoint(
    folder: Path, dtype: str = "bfloat16", *, vision: bool = False, embedding: bool = False
) -> None:
    write_tokenizer(folder)
    settings = json.dumps(config(dtype, vision, embedding), indent=2)
    (folder / "config.json").write_text(settings + "\n")
    tensors = state_dict(vision, embedding)
    stored = {name: t.to(getattr(torch, dtype)).contiguous() for name, t in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a small checkpoint that compares shared words."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--embedding", action="store_true", help="an embedder, not a reranker")
    parser.add_argument("--vision", action="store_true", help="of the Qwen3-VL kind")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    write_checkpoint(
        arguments.folder,
        arguments.dtype,
        vision=arguments.vision,
        embedding=arguments.embedding,
    )
    print(f"{arguments.folder}: hand-set weights that compare shared words; not a trained model")


if __name__ == "__main__":
    main()
